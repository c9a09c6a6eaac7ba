"""Status of runs of all states, with a squeue and a scontrol that answer from files."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tlbatch import status
from tlbatch.cluster.create import make_run, resolve
from tlbatch.cluster.follow import Bar
from tlbatch.config.load import load_job
from tlbatch.runs import attempts
from tlbatch.runs.attempts import AttemptEnd, AttemptStart, Submitted
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import Progress
from tlbatch.runs.records import Failure, FailureKind, Marker, RunRecord
from tlbatch.runs.stages import STAGES, StageName

SQUEUE = """#!/bin/sh
echo "$@" >> "$FAKE/calls"
cat "$FAKE/squeue.err" >&2
cat "$FAKE/squeue.out"
exit "$(cat "$FAKE/squeue.rc")"
"""
SCONTROL = """#!/bin/sh
echo scontrol "$@" >> "$FAKE/calls"
for job; do :; done
cat "$FAKE/job-$job" 2> "$FAKE/null" || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
"""


class Slurm:
    """What the fake commands answer, and were asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        for name, text in (("squeue", SQUEUE), ("scontrol", SCONTROL)):
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
        self.queue()

    def queue(self, *lines: str, error: str = "", code: int = 0) -> None:
        """Let squeue answer with lines of id, state, start, end, name and reason."""
        answers = {"out": "".join(f"{line}\n" for line in lines), "err": error, "rc": str(code)}
        for name, text in answers.items():
            (self._folder / f"squeue.{name}").write_text(text, encoding="utf-8")

    def job(self, number: str, text: str) -> None:
        (self._folder / f"job-{number}").write_text(text, encoding="utf-8")

    @property
    def asked(self) -> list[str]:
        return self.calls.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Slurm(folder)


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path) -> Callable[[str], RunPaths]:
    (tmp_path / "images").mkdir()

    def made(run: str) -> RunPaths:
        where = [f"data.images={tmp_path / 'images'}", f"workspace={tmp_path / 'space'}", f"run={run}"]
        return make_run(resolve(load_job([tiny_job], [*where, "slurm.gpus_per_node=2"]))).paths

    return made


def finish(paths: RunPaths, *stages: StageName) -> RunPaths:
    for stage in stages:
        Marker(stage=stage, inputs={}, outputs={}, world_size=1, seconds=1).save(paths.marker(stage))
    return paths


def submit(paths: RunPaths, stage: StageName, *jobs: str, age_s: float = 60) -> RunPaths:
    for job in jobs:
        attempts._append(paths.jobs, Submitted(stage=stage, job=job, time=time.time() - age_s))
    return paths


def begin(paths: RunPaths, stage: StageName, *, job: str | None, age_s: float, process: str = "away:1:1") -> RunPaths:
    line = AttemptStart(
        stage=stage, attempt=f"{job}-0-0", job=job, restart=0, hosts="n1", tasks=2, gpus=2, process=process,
        time=time.time() - age_s,
    )  # fmt: skip
    attempts._append(paths.ledger, line)
    return paths


def end(paths: RunPaths, stage: StageName, outcome: attempts.Outcome, *, job: str | None, age_s: float) -> RunPaths:
    attempts._append(
        paths.ledger, AttemptEnd(stage=stage, attempt=f"{job}-0-0", outcome=outcome, time=time.time() - age_s)
    )
    return paths


def tell(paths: RunPaths, stage: StageName, *, job: str | None, age_s: float = 0) -> RunPaths:
    Progress(
        stage=stage, attempt=f"{job}-0-0", where="phase 1 epoch 3", done=120, total=400, unit="steps",
        images_per_s=95.2, seconds_left=240 + age_s, metric="validation accuracy 0.9312", time=time.time() - age_s,
    ).save(paths.progress)  # fmt: skip
    return paths


def fail(paths: RunPaths, stage: StageName, kind: FailureKind, message: str, *, rank: int = 0) -> RunPaths:
    Failure(stage=stage, rank=rank, message=message, kind=kind).save(paths.failure(stage, rank))
    return paths


def log(paths: RunPaths, name: str, lines: int) -> Path:
    paths.logs.mkdir(exist_ok=True)
    file = paths.logs / name
    file.write_text("".join(f"line {number}\n" for number in range(lines)), encoding="utf-8")
    return file


def rows(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]], str]:
    """The exit code, what is said of each run as JSON, and what is on stderr."""
    with pytest.raises(SystemExit) as left:
        status.main([str(one) for one in (*arguments, "--json")])
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    return int(str(left.value.code)), {str(row["run"]): row for row in found}, err


def text(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        status.main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    return int(str(left.value.code)), out, err


def starts(seconds_ago: float) -> int:
    return round(time.time() - seconds_ago)


def test_every_state_is_told_from_one_squeue_and_the_runs_own_files(
    make: Callable[[str], RunPaths], slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(make("queued"), "shard", "1")
    tell(begin(submit(make("running"), "shard", "2"), "shard", job="2", age_s=1800), "shard", job="2")
    tell(begin(submit(make("silent"), "shard", "3"), "shard", job="3", age_s=1800), "shard", job="3", age_s=480)
    restarting = begin(submit(make("restarting"), "shard", "4"), "shard", job="4", age_s=900)
    fail(end(restarting, "shard", "stopped", job="4", age_s=100), "shard", "stopped", "stopped by SIGUSR2")
    stopping = begin(submit(make("stopping"), "shard", "5"), "shard", job="5", age_s=900)
    fail(end(stopping, "shard", "stopped", job="5", age_s=1), "shard", "stopped", "stopped by SIGUSR2")
    fail(submit(make("stopped"), "shard", "6"), "shard", "stopped", "stopped by SIGTERM")
    fail(submit(make("failed"), "shard", "7"), "shard", "user", "data.images: no such folder")
    submit(begin(make("dead"), "shard", job="8", age_s=1800), "shard", "8")
    submit(make("ending"), "shard", "9")
    fail(submit(make("anew"), "shard", "10"), "shard", "crash", "of the attempt before")
    slurm.queue(
        "1|PENDING|N/A|N/A|tiny-shard|Resources",
        f"2|RUNNING|{starts(1800)}|N/A|tiny-shard|None",
        f"3|RUNNING|{starts(1800)}|N/A|tiny-shard|None",
        f"4|PENDING|{starts(-100)}|N/A|tiny-shard|BeginTime",
        f"5|COMPLETING|{starts(900)}|N/A|tiny-shard|None",
        f"9|COMPLETED|{starts(900)}|{starts(3)}|tiny-shard|None",
        f"10|RUNNING|{starts(-5)}|N/A|tiny-shard|None",
    )
    slurm.job("8", "JobId=8 JobName=tiny-shard JobState=OUT_OF_MEMORY Reason=OutOfMemory ExitCode=0:125\n")
    code, found, err = rows("--workspace", tmp_path / "space", capsys=capsys)
    assert (code, err) == (1, "")
    assert {run: (row["state"], row["why"]) for run, row in found.items()} == {
        "queued": ("queued", "Resources"),
        "running": ("running", ""),
        "silent": ("running", "silent for 8 min"),
        "restarting": ("restarting", "BeginTime"),
        "stopping": ("running", "stopping"),
        "stopped": ("stopped", ""),
        "failed": ("failed", ""),
        "dead": ("dead", ""),
        "ending": ("running", "ending"),
        "anew": ("running", ""),
    }
    assert found["failed"]["cause"] == "data.images: no such folder"
    assert "(OUT_OF_MEMORY, OutOfMemory, exit code 0:125)" in str(found["dead"]["cause"])
    assert [line.split()[-1] for line in slurm.asked] == ["--jobs=1,10,2,3,4,5,6,7,8,9", "8"]


def test_a_line_has_progress_restarts_and_gpu_hours(
    make: Callable[[str], RunPaths], slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = finish(submit(make("one"), "train", "2"), "shard", "cache")
    end(begin(paths, "train", job="2", age_s=7200), "train", "killed", job="2", age_s=5400)
    tell(begin(paths, "train", job="2", age_s=1800), "train", job="2")
    slurm.queue(f"2|RUNNING|{starts(1800)}|N/A|tiny-train|None")
    code, out, _ = text(paths.folder, capsys=capsys)
    header, line = out.splitlines()
    assert code == 0
    cells = dict(zip(re.split(r"  +", header), re.split(r"  +", line), strict=True))
    left = cells.pop("left")
    assert cells == {
        "run": "one", "stage": "train", "state": "running", "where": "phase 1 epoch 3", "done": "120/400 steps",
        "images/s": "95", "metric": "validation accuracy 0.9312", "restarts": "1", "GPU-hours": "2.00",
    }  # fmt: skip
    assert left in ("3 min", "4 min")
    assert header.index("metric") == line.index("validation")


def test_an_array_counts_as_long_as_one_of_its_tasks_is_there(
    make: Callable[[str], RunPaths], slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = submit(make("shares"), "shard", "20", "24")
    tell(paths, "shard", job="20")
    slurm.queue(
        f"20_0|COMPLETED|{starts(300)}|{starts(200)}|tiny-shard|None",
        f"20_1|RUNNING|{starts(300)}|N/A|tiny-shard|None",
        "24|PENDING|N/A|N/A|tiny-shard|Dependency",
    )
    row = rows(paths.folder, capsys=capsys)[1]["shares"]
    assert (row["state"], row["done"]) == ("running", 120)
    slurm.queue("20_1|PENDING|N/A|N/A|tiny-shard|JobArrayTaskLimit", "24|PENDING|N/A|N/A|tiny-shard|Dependency")
    row = rows(paths.folder, capsys=capsys)[1]["shares"]
    assert (row["state"], row["why"]) == ("queued", "JobArrayTaskLimit")
    other = submit(begin(make("task"), "shard", job="30_1", age_s=60), "shard", "30")
    slurm.queue(f"30_1|RUNNING|{starts(60)}|N/A|tiny-shard|None")
    assert rows(other.folder, capsys=capsys)[1]["task"]["state"] == "running"
    slurm.queue()
    assert rows(other.folder, capsys=capsys)[1]["task"]["state"] == "dead"


def test_jobs_that_slurm_has_forgotten_are_dead_and_not_an_error(
    make: Callable[[str], RunPaths], slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = submit(make("old"), "shard", "2", age_s=7200)
    begin(
        end(begin(paths, "shard", job="2", age_s=7000), "shard", "failed", job="2", age_s=6900),
        "cache",
        job="2",
        age_s=6500,
    )
    os.utime(paths.record, (time.time() - 7200, time.time() - 7200))
    slurm.queue(error="slurm_load_jobs error: Invalid job id specified\n", code=1)
    code, found, err = rows(paths.folder, capsys=capsys)
    assert (code, found["old"]["state"], err) == (1, "dead", "")
    assert not [line for line in slurm.asked if line.startswith("scontrol")]


def test_a_job_of_another_name_with_the_number_of_an_old_one_is_not_ours(
    make: Callable[[str], RunPaths], slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = submit(make("old"), "shard", "2")
    slurm.queue(f"2|RUNNING|{starts(300)}|N/A|somebody|None")
    assert rows(paths.folder, capsys=capsys)[1]["old"]["state"] == "dead"


def test_a_controller_that_does_not_answer_says_nothing_about_a_run(
    make: Callable[[str], RunPaths], slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(make("waits"), "shard", "2")
    tell(begin(submit(make("works"), "shard", "3"), "shard", job="3", age_s=60), "shard", job="3")
    slurm.queue(error="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", code=1)
    code, found, err = rows("--workspace", tmp_path / "space", capsys=capsys)
    assert code == 0
    assert {run: row["state"] for run, row in found.items()} == {"waits": "unknown", "works": "running"}
    assert err.startswith("warning: squeue: slurm_load_jobs error: Unable to contact slurm controller")


def test_runs_on_this_machine_need_no_slurm(
    make: Callable[[str], RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make("starting")
    here = attempts._here()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    begin(make("running"), "shard", job=None, age_s=1, process=f"{here}:{os.getpid()}")
    begin(make("killed"), "shard", job=None, age_s=1, process=f"{here}:{gone.pid}")
    begin(make("elsewhere"), "shard", job=None, age_s=480)
    between = finish(begin(make("between"), "shard", job=None, age_s=1, process=f"{here}:{os.getpid()}"), "shard")
    end(between, "shard", "finished", job=None, age_s=0)
    abandoned = make("abandoned")
    os.utime(abandoned.record, (time.time() - 999, time.time() - 999))
    monkeypatch.setattr(attempts.psutil.Process, "create_time", lambda _: time.time() - 900)
    monkeypatch.setenv("PATH", "/nowhere")
    code, found, err = rows("--workspace", tmp_path / "space", capsys=capsys)
    assert (code, err) == (1, "")
    assert {run: (row["state"], row["why"]) for run, row in found.items()} == {
        "starting": ("starting", ""),
        "running": ("running", ""),
        "killed": ("dead", ""),
        "elsewhere": ("running", "silent for 8 min"),
        "between": ("starting", ""),
        "abandoned": ("dead", ""),
    }


def test_a_failed_run_shows_its_cause_and_the_last_ten_lines_of_the_newest_log(
    make: Callable[[str], RunPaths], slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = submit(make("bad"), "shard", "2")
    fail(paths, "shard", "stopped", "stopped by SIGTERM", rank=0)
    fail(paths, "shard", "crash", "ValueError: bang", rank=1)
    os.utime(log(paths, "shard-1.0-rank0.log", 50), (time.time() - 50, time.time() - 50))
    newest = log(paths, "shard-2.0-rank0.log", 100)
    log(paths, "2_0_log.out", 0)
    code, out, _ = text(paths.folder, capsys=capsys)
    assert code == 1
    assert out.splitlines()[2:] == [
        "", "bad: shard failed: ValueError: bang", str(newest), *(f"  line {number}" for number in range(90, 100)),
    ]  # fmt: skip
    assert slurm.asked
    dead = submit(make("gone"), "shard", "3")
    out = text(dead.folder, capsys=capsys)[1]
    why = "did not start (killed, out of memory, or cancelled)"
    assert f"gone: shard dead: {why}; resume with python -m tlbatch.submit {dead.folder}\n" in out


def test_a_finished_run_shows_its_score_and_is_left_out_after_a_day(
    make: Callable[[str], RunPaths], slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("new", "old"):
        paths = finish(submit(make(run), "reduce", "2"), *(stage for stage in STAGES if stage != "choose"))
        paths.report.mkdir()
        paths.report_json.write_text('{"score": 0.93125}', encoding="utf-8")
    os.utime(paths.marker("reduce"), (time.time() - 90000, time.time() - 90000))
    code, found, _ = rows("--workspace", tmp_path / "space", capsys=capsys)
    assert code == 0
    assert {run: (row["state"], row["metric"]) for run, row in found.items()} == {
        "new": ("finished", "test accuracy 0.9313")
    }
    assert slurm.asked == []
    assert rows(paths.folder, capsys=capsys)[1]["old"]["state"] == "finished"


def test_the_last_metric_outlives_the_stage_that_told_it(
    make: Callable[[str], RunPaths], slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = finish(submit(make("one"), "predict", "2"), "shard", "cache", "train")
    paths.metrics.write_text('{"val_accuracy": 0.5}\n{"val_accuracy": 0.75, "val_loss": 1.0}\n', encoding="utf-8")
    slurm.queue("2|PENDING|N/A|N/A|tiny-predict|Priority")
    row = rows(paths.folder, capsys=capsys)[1]["one"]
    assert (row["stage"], row["metric"]) == ("predict", "validation accuracy 0.7500")


def test_a_wrong_folder_is_a_user_error_and_a_damaged_run_among_others_is_said(
    make: Callable[[str], RunPaths], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = text(tmp_path / "none", capsys=capsys)
    assert code == 2
    assert err.startswith(f"error: {tmp_path / 'none' / 'job.json'}: does not exist; name a run folder")
    code, _, err = text("--workspace", tmp_path / "none", capsys=capsys)
    assert (code, err) == (
        2,
        f"error: {tmp_path}/none/runs: no such folder; name run folders, or set --workspace PATH\n",
    )
    make("good")
    make("bad").record.write_text("{", encoding="utf-8")
    code, found, _ = rows("--workspace", tmp_path / "space", capsys=capsys)
    assert code == 1
    assert {run: row["state"] for run, row in found.items()} == {"good": "starting", "bad": "unreadable"}
    assert "damaged" in str(found["bad"]["cause"])


def test_five_hundred_runs_take_one_squeue_and_little_time(
    make: Callable[[str], RunPaths], slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord.model_validate_json(make("run").record.read_bytes())
    for number in range(500):
        paths = RunPaths(tmp_path / "space" / "runs" / f"run{number}")
        paths.folder.mkdir()
        (paths.folder / "job.json").write_text(record.model_copy(update={"run": f"run{number}"}).model_dump_json())
        tell(
            begin(submit(paths, "shard", str(number + 1)), "shard", job=str(number + 1), age_s=50),
            "shard",
            job=str(number + 1),
        )
    slurm.queue(*(f"{number + 1}|RUNNING|{starts(60)}|N/A|tiny-shard|None" for number in range(0, 500, 2)))
    began = time.perf_counter()
    code, out, _ = text("--workspace", tmp_path / "space", capsys=capsys)
    took = time.perf_counter() - began
    print(f"{took:.2f} s for 500 runs")
    assert took < 20
    assert code == 1
    assert len(re.findall(r"^run\d+ .* running ", out, re.MULTILINE)) == 250
    assert len(re.findall(r"^run\d+ .* dead ", out, re.MULTILINE)) == 250
    assert "245 more have failed" in out
    assert len([line for line in slurm.asked if not line.startswith("scontrol")]) == 1


def test_following_ends_when_all_have_ended_and_prints_a_line_only_when_something_changed(
    make: Callable[[str], RunPaths], slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = submit(make("one"), "shard", "1"), submit(make("two"), "shard", "2")
    slurm.queue("1|PENDING|N/A|N/A|tiny-shard|Resources", f"2|RUNNING|{starts(9)}|N/A|tiny-shard|None")
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            slurm.queue(f"1|RUNNING|{starts(9)}|N/A|tiny-shard|None", f"2|RUNNING|{starts(9)}|N/A|tiny-shard|None")
        if looks == 6:
            finish(one, *(stage for stage in STAGES if stage != "choose"))
            fail(two, "shard", "user", "no")
            slurm.queue()

    clock = SimpleNamespace(sleep=sleep, time=time.time, monotonic=time.monotonic, strftime=time.strftime)
    monkeypatch.setattr(status, "time", clock)
    code, out, _ = text(one.folder, two.folder, "--follow", capsys=capsys)
    assert (code, looks) == (1, 6)
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in out.splitlines()]
    assert lines == [
        "one: shard queued (Resources)", "two: shard running", "one: shard running", "one: - finished",
        "two: shard failed", "", "two: shard failed: no",
    ]  # fmt: skip
    assert "\x1b" not in out
    finish(two, *(stage for stage in STAGES if stage != "choose"))
    assert text(one.folder, two.folder, "--follow", capsys=capsys)[0] == 0


def on_a_terminal(code: str, *arguments: object) -> str:
    """What Python code writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    with subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=theirs) as done:
        os.close(theirs)
        shown = b""
        try:
            while new := os.read(ours, 4096):
                shown += new
        except OSError:  # the end of a terminal
            pass
        os.close(ours)
    assert done.returncode in (0, 1)
    return shown.decode()


@pytest.mark.chain
def test_on_a_terminal_the_table_is_drawn_in_place(make: Callable[[str], RunPaths], slurm: Slurm) -> None:
    one = submit(make("one"), "shard", "1")
    slurm.queue(f"1|RUNNING|{starts(9)}|N/A|tiny-shard|None")
    code = (
        "import sys, time; from tlbatch import status; from pathlib import Path; from types import SimpleNamespace\n"
        "empty = lambda _: (Path(sys.argv[2]) / 'squeue.out').write_text('')\n"
        "status.time = SimpleNamespace(time=time.time, sleep=empty)\n"
        "status.main([sys.argv[1], '--follow'])"
    )
    shown = on_a_terminal(code, one.folder, slurm.calls.parent)
    assert shown.count("\x1b[2F\x1b[J") == 1
    assert re.search(r"running .*\x1b\[2F.*dead ", shown, re.DOTALL)


BAR = """
import os, sys, time
from pathlib import Path
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import ProgressReporter
from tlbatch.runs.world import World
from tlbatch.cluster.follow import Follower, run_step
paths = RunPaths(Path(sys.argv[1]))
first, second = (paths.logs / f"train-7.{attempt}-rank0.log" for attempt in (0, 1))
follower = Follower(paths, "train-7.*-rank0.log")
first.write_text("a line\\n")
reporter = ProgressReporter(paths, World(), "train")
reporter.update(3, 4, unit="steps", where="phase 1 epoch 3", metric="validation accuracy 0.9312")
follower.show()
first.write_text("a line\\nanother line\\n")
second.write_text("of a second attempt\\n")
follower.end()
run_step(["sh", "-c", "echo from a step; printf 'no newline'"], paths, os.environ)
"""


@pytest.mark.chain
def test_logs_have_a_bar_below_them_on_a_terminal_and_none_elsewhere(make: Callable[[str], RunPaths]) -> None:
    paths = make("one")
    shown = on_a_terminal(BAR, paths.folder)
    assert re.search(r"train phase 1 epoch 3 +75%\|.*\| 3/4, validation accuracy 0\.9312", shown)
    assert all(f"{line}\r\n" in shown for line in ("a line", "another line", "of a second attempt", "from a step"))
    piped = subprocess.run([sys.executable, "-c", BAR, paths.folder], capture_output=True, text=True, check=True)
    assert piped.stdout == "a line\nanother line\nof a second attempt\nfrom a step\nno newline"
    assert piped.stderr == ""


def test_what_an_earlier_run_told_makes_no_bar(
    make: Callable[[str], RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tell(make("one"), "train", job=None, age_s=60)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bar = Bar(paths)
    bar.draw()
    assert bar._bar is None


@pytest.mark.chain
def test_help_is_light() -> None:
    heavy = {
        "torch",
        "torchvision",
        "accelerate",
        "webdataset",
        "sklearn",
        "pandas",
        "polars",
        "timm",
        "numpy",
        "submitit",
    }
    code = (
        "import sys\ntry:\n    from tlbatch.status import main; main(['--help'])\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted({heavy!r} & set(sys.modules)))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"--help took {time.perf_counter() - began:.2f} s")
    assert "HEAVY []" in done.stdout


def test_a_reader_that_goes_away_is_no_error(make: Callable[[str], RunPaths]) -> None:
    folder = make("one").folder
    command = f"{sys.executable} -m tlbatch.status {folder} {folder} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
