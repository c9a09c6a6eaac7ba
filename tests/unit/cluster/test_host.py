"""What the batch script does around a stage, with programs that write down what they are given in place of SLURM's."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tlbatch.cluster.sbatch import HOST

pytestmark = pytest.mark.chain

PROGRAMS = {
    "squeue": "echo 2026-03-01T12:00:00",
    "scontrol": 'echo "$@" >> calls; [ "$1" != show ] || echo "KillWait                = 17 sec"; exit "${REFUSE:-0}"',
    "sleep": 'echo "sleep $1" >> calls',
    "tell": 'echo "tell $*" >> calls; exit 1',
}


class Host:
    """A folder with SLURM's programs, in which lines of a batch script run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, work in PROGRAMS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{work}\n", encoding="utf-8")
            (folder / "bin" / name).chmod(0o755)

    def run(self, lines: str, **environment: str) -> tuple[int, str]:
        own = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "TZ": "UTC"}
        done = subprocess.run(
            ["bash", "-c", f"{HOST}\n{lines}"],
            cwd=self.folder, env=own | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text("utf-8").splitlines() if file.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_tasks_learn_when_the_time_ends_and_where_to_log(host: Host) -> None:
    show = 'echo "$TLBATCH_DEADLINE|$TLBATCH_KILL_WAIT|$TLBATCH_AGAIN|$TLBATCH_LOG"'
    end = int(time.mktime(time.strptime("2026-03-01 12:00 UTC", "%Y-%m-%d %H:%M %Z"))) - time.timezone
    code, said = host.run(f"tlbatch_begin 120 '/a b/100%/r' train; {show}", SLURM_RESTART_COUNT="3")
    assert code == 0
    assert said.strip() == (
        f"{end - 120}|17|/a b/100%/r/markers/train.again.42.3|/a b/100%%/r/logs/train-42.3-rank%t.log"
    )
    element = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "2"}
    assert "/r/logs/train-42_2.0-rank%t.log" in host.run(f"tlbatch_begin 120 /r train; {show}", **element)[1]


def test_without_slurms_answers_the_job_goes_on_without_a_deadline(host: Host) -> None:
    for name in ("squeue", "scontrol"):
        (host.folder / "bin" / name).write_text("#!/bin/bash\nexit 1\n", encoding="utf-8")
    assert host.run('set -euo pipefail; tlbatch_begin 120; echo "<${TLBATCH_DEADLINE:-}>"') == (0, "<>\n")


@pytest.mark.parametrize("code", [0, 1, 143])
def test_what_is_done_is_done_whatever_the_exit_code_of_the_tasks(host: Host, code: int) -> None:
    (host.folder / "done").touch()
    assert host.run(f"tlbatch_end {code} again 3 done") == (0, "")
    assert host.calls == []


@pytest.mark.parametrize(("code", "wanted"), [(0, 1), (5, 5), (143, 143)])
def test_what_is_not_done_never_ends_well(host: Host, code: int, wanted: int) -> None:
    assert host.run(f"tlbatch_end {code} again 3 done")[0] == wanted
    assert not [call for call in host.calls if "requeue" in call]


def test_a_marker_puts_the_job_into_the_queue_again_by_the_id_of_its_element_alone(host: Host) -> None:
    (host.folder / "again").touch()
    begin = "tlbatch_begin 120 /r train; "
    assert "requeueing job 42" in host.run(f"{begin}tlbatch_end 143 again 3 done")[1]
    element = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "2"}
    host.run(f"{begin}tlbatch_end 0 again 3 done", **element)
    assert [call for call in host.calls if "requeue" in call] == ["requeue 42", "requeue 42_2"]


def test_a_job_that_cannot_start_again_ends_badly_and_says_why(host: Host) -> None:
    (host.folder / "again").touch()
    code, said = host.run("tlbatch_begin 1 /r train; tlbatch_end 0 again 3 done", SLURM_RESTART_COUNT="3")
    assert (code, said) == (
        77, "error: restarted as often as slurm.max_restarts = 3 allows; raise it, and resume with tlbatch.submit RUN\n"
    )  # fmt: skip
    code, said = host.run("tlbatch_begin 1 /r train; tlbatch_end 0 again 3 done", REFUSE="1")
    assert code == 77
    assert said.endswith("error: job 42 could not be requeued; resume with tlbatch.submit RUN\n")


def test_a_program_of_the_users_is_told_and_cannot_change_how_it_ends(host: Host) -> None:
    begin = "TLBATCH_NOTIFY=tell; tlbatch_begin 1 '/a b' train; "
    assert host.run(f"{begin}tlbatch_end 7 again 3 done") == (7, "slurm.notify failed, the job continues\n")
    (host.folder / "again").touch()
    host.run(f"{begin}tlbatch_end 0 again 3 done")
    (host.folder / "done").touch()
    assert host.run(f"{begin}tlbatch_end 0 again 3 done")[0] == 0
    assert [call for call in host.calls if call.startswith("tell")] == [
        "tell train /a b failed", "tell train /a b again", "tell train /a b finished",
    ]  # fmt: skip


def test_a_warning_before_the_tasks_have_begun_does_not_end_the_script(host: Host) -> None:
    assert host.run("kill -USR2 $$; echo on")[0] == -12
    ignores = "grep -q 'SigIgn:\\s*0000000000000[0-7]' /proc/self/status && echo none ignored"
    assert host.run(f"tlbatch_begin 1 /r train; kill -USR2 $$; echo on; {ignores}") == (0, "on\nnone ignored\n")
