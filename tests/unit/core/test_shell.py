import os
import subprocess
from pathlib import Path

import pytest

from tlbatch.cluster.create import make_run, resolve
from tlbatch.cluster.sbatch import one_run, render
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.runs.paths import RunPaths

pytestmark = pytest.mark.chain

NASTY = [
    "a b", "it's", '"quoted"', "$(touch pwned)", "`touch pwned`", "a\nb", "\n#SBATCH --qos=high", "back\\slash\\", "%j",
    "; touch pwned #", "a && b | c > d", "*", "~", "!x", "é ü", "", "-n", "\ttab ", "$HOME", "'\"'\"'",
]  # fmt: skip
BASE = ["data.images=eyes", "phase=[{cut='pool'}]"]
FAKE_SRUN = """#!/bin/bash
printf '%s\\0' "$@" > args
env -0 > environment
mkdir -p "$(dirname "$TLBATCH_AGAIN")" && touch "${TLBATCH_AGAIN%.again.7.0}.json"
echo started
"""


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """Holds a srun that writes down what it was given, and leaves the marker of a stage that has finished."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(FAKE_SRUN, encoding="utf-8")
    (folder / "srun").chmod(0o755)
    return folder


def run_script(script: str, bin_folder: Path) -> subprocess.CompletedProcess[str]:
    """Let bash run a batch script, in the folder above that of the fake srun."""
    file = bin_folder.parent / "script.sh"
    file.write_text(script, encoding="utf-8")
    subprocess.run(["bash", "-n", file], check=True)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.run(["bash", file], cwd=file.parent, env=environment, capture_output=True, text=True, check=False)


def make(workspace: Path, tiny_job: Path, images: Path, **slurm: object) -> tuple[RunPaths, str]:
    """A run in the workspace and the script of its stage train, with values of the slurm section set as they are."""
    job = load_job([tiny_job], [f"data.images={images}", "run=r"])
    section = type(job.slurm).model_validate(job.slurm.model_dump() | slurm)
    run = make_run(resolve(job.model_copy(update={"workspace": workspace, "slurm": section})))
    return run.paths, render(one_run(run, "train"), after=None)


@pytest.mark.parametrize("value", NASTY)
def test_values_reach_the_tasks_unchanged_and_run_nothing(
    value: str, tmp_path: Path, tiny_job: Path, bin_folder: Path
) -> None:
    name = value if value.strip() and value.isprintable() and not set("%\\") & set(value) else "plain"
    workspace = tmp_path / name
    paths, script = make(workspace, tiny_job, tmp_path, environment={"VALUE": value}, setup=["export SEEN=$VALUE"])
    directives = [line for line in script.split("# setup")[0].splitlines() if line.startswith("#SBATCH")]
    done = run_script(script, bin_folder)
    assert done.returncode == 0, done.stderr
    environment = dict(
        entry.split("=", 1) for entry in (tmp_path / "environment").read_text("utf-8").split("\0") if entry
    )
    assert (environment["VALUE"], environment["SEEN"]) == (value, value)
    assert environment["SRUN_CPUS_PER_TASK"] == "1"
    arguments = (tmp_path / "args").read_text("utf-8").split("\0")
    assert arguments[:3] == ["--unbuffered", "--output", f"{paths.logs}/%j_%t_log.out"]
    assert arguments[-2] == str(paths.logs)
    assert [line for line in directives if "qos" in line] == []
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint"])
@pytest.mark.parametrize("value", ["gpu\n#SBATCH --wrap=x", "a\rb", "a\\b", "\x1b[31m", "a\\u0000b", "a\\u2028b"])
def test_what_would_leave_its_line_of_the_script_is_refused(key: str, value: str) -> None:
    with pytest.raises(UserError) as error:
        load_job([], [*BASE, f'slurm.{key}="{value}"' if "\\u" in value else f"slurm.{key}={value}"])
    assert str(error.value).startswith(f"slurm.{key}: must not contain control characters or backslashes (got '")
    assert "\n" not in str(error.value)


FAILING = [
    "false", "true; false", "false; true", "false && true", "true && false", "true\nfalse", "false\ntrue",
    "false # why", "(exit 3)", "no-such-command", "f() { return 1; }; f", "it's open", "echo $(", "false || false",
    "x=$(false)", "set -e; false", "! true", ". ./fails.sh", "if true; then false; fi",
]  # fmt: skip
PASSING = [
    "true", "# a comment", "true # a comment", "", "false || true", "if false; then true; fi", "sleep 0 &",
    "echo a \\", "cat <<END\n$HOME\nEND", "echo 'a\nb'", "f() { false; return 0; }; f", ". ./passes.sh", "set -eu",
]  # fmt: skip


@pytest.mark.parametrize("line", FAILING)
def test_a_setup_line_that_fails_stops_the_job_and_is_named(
    line: str, tmp_path: Path, tiny_job: Path, bin_folder: Path
) -> None:
    (tmp_path / "fails.sh").write_text("true\nfalse\n", encoding="utf-8")
    _, script = make(tmp_path / "w", tiny_job, tmp_path, setup=["true", line, "echo on"])
    done = run_script(script, bin_folder)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()[-1:]
    assert line == "error: slurm.setup.1 failed; fix this line of the job, or ignore the failure with || true"
    assert "started" not in done.stdout


@pytest.mark.parametrize("line", PASSING)
def test_a_setup_line_that_does_not_fail_lets_the_job_go_on(
    line: str, tmp_path: Path, tiny_job: Path, bin_folder: Path
) -> None:
    (tmp_path / "passes.sh").write_text("false\ntrue\n", encoding="utf-8")
    _, script = make(tmp_path / "w", tiny_job, tmp_path, setup=[line, "export AFTER=1"])
    done = run_script(script, bin_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("started\n")
    assert "AFTER=1" in (tmp_path / "environment").read_text("utf-8").split("\0")


def test_the_exit_code_of_the_tasks_is_that_of_the_script(tmp_path: Path, tiny_job: Path, bin_folder: Path) -> None:
    (bin_folder / "srun").write_text("#!/bin/bash\nexit 5\n", encoding="utf-8")
    _, script = make(tmp_path / "w", tiny_job, tmp_path, setup=["true"])
    assert run_script(script, bin_folder).returncode == 5


def test_a_run_folder_that_was_opened_after_submit_stops_the_script(
    tmp_path: Path, tiny_job: Path, bin_folder: Path
) -> None:
    paths, script = make(tmp_path / "w", tiny_job, tmp_path)
    paths.logs.chmod(0o777)
    done = run_script(script, bin_folder)
    assert (done.returncode, done.stdout) == (78, "")
    assert "others can write to the run folder" in done.stderr


@pytest.mark.parametrize(
    ("override", "cores"),
    [
        (["slurm.cpus_per_node=9", "slurm.tasks_per_node=2"], 4),
        (["slurm.cpus_per_node=9", "slurm.gpus_per_node=4"], 2),
        (["slurm.cpus_per_node=9", "slurm.cpus_per_task=3"], 3),
        ([], None),
    ],
)
def test_cores_of_a_node_are_shared_out_to_its_tasks(override: list[str], cores: int | None) -> None:
    assert load_job([], [*BASE, *override]).slurm.num_cpus_per_task == cores


def test_too_few_cores_for_the_tasks_of_a_node_are_refused() -> None:
    with pytest.raises(UserError, match="slurm: cpus_per_node must be at least 4, one core per task; raise it"):
        load_job([], [*BASE, "slurm.cpus_per_node=3", "slurm.gpus_per_node=4"])
