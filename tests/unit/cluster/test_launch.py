import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tlbatch.cluster import launch
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.config.slurm import Slurm
from tlbatch.core.cli import EXIT_AGAIN
from tlbatch.core.errors import UserError
from tlbatch.runs.records import Failure
from tlbatch.runs.run import Run

NASTY = "a 'b' \"c\" $(d)\n%j \\"
Make = Callable[[], Run]


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path) -> Make:
    def made() -> Run:
        options = [f"data.images={tmp_path}", f"workspace={tmp_path / 'w'}", "run=r", "slurm.tasks_per_node=2"]
        job = load_job([tiny_job], options)
        slurm = type(job.slurm).model_validate(job.slurm.model_dump() | {"environment": {"VALUE": NASTY}})
        return make_run(resolve(job.model_copy(update={"slurm": slurm})))

    return made


@pytest.mark.chain
def test_on_this_machine_the_tasks_have_the_variables_of_the_job_and_nobody_else(make: Make, tmp_path: Path) -> None:
    run = make()

    def write(folder: str) -> None:  # pickled whole, since no task could import this file
        Path(folder, os.environ["SUBMITIT_LOCAL_GLOBALID"]).write_text(os.environ["VALUE"], encoding="utf-8")

    (tmp_path / "seen").mkdir()
    launch._run_locally(run, 1, write, str(tmp_path / "seen"))
    assert [file.read_text("utf-8") for file in sorted((tmp_path / "seen").iterdir())] == [NASTY, NASTY]
    assert "VALUE" not in os.environ


def test_in_an_allocation_the_steps_have_the_variables_of_the_job(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()
    srun = tmp_path / "srun"
    srun.write_text(f"#!/bin/sh\nprintf %s \"$VALUE\" > '{tmp_path}/seen'\n", encoding="utf-8")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launch.run_in_allocation(run, {**os.environ, "SLURM_JOB_ID": "7"}) == 1
    assert (tmp_path / "seen").read_text("utf-8") == NASTY


def test_nothing_is_started_in_a_run_folder_that_others_can_write(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    logs = run.paths.logs
    monkeypatch.setattr(launch.submitit, "SlurmExecutor", None)  # none is asked
    logs.chmod(0o770)
    with pytest.raises(UserError, match=f"^{re.escape(str(logs))}: others can write to it"):
        launch.submit_chain(run)
    with pytest.raises(UserError, match="others can write to it"):
        launch._run_locally(run, 1, sys.exit)
    assert list(logs.iterdir()) == []


def test_what_failed_before_is_no_cause_of_a_stage_that_does_not_begin(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make()
    Failure(stage="shard", rank=0, message="of yesterday", kind="user").save(run.paths.failure("shard", 0))
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launch.run_in_allocation(run, {**os.environ, "SLURM_JOB_ID": "7"}) == 1
    assert "of yesterday" not in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "asked"), [(0, False), (1, True)])
def test_on_this_machine_too_the_container_is_asked_for_gpus(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, gpus: int, asked: bool
) -> None:
    run = make()
    (tmp_path / "i.sif").touch()
    slurm = Slurm(container=f"apptainer:{tmp_path / 'i.sif'}", gpus_per_node=gpus)
    seen: list[str] = []

    class Executor:
        def __init__(self, _: Path, *, python: str) -> None:
            seen.append(python)
            raise KeyboardInterrupt

    monkeypatch.setattr(launch.submitit, "LocalExecutor", Executor)
    with pytest.raises(KeyboardInterrupt):
        launch.run_here(Run(run.record.resubmitted(slurm, ()), run.paths))
    assert "apptainer exec" in seen[0]
    assert (" --nv " in seen[0]) == asked


def test_an_environment_without_torch_needs_a_container_that_can_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    for where in ("local", "allocation", "chain"):
        with pytest.raises(UserError, match=r"^torch: not installed here, so tasks need a container"):
            launch.check_start(where, Slurm())
    monkeypatch.setenv("PATH", "/nowhere")
    launch.check_start("chain", Slurm(container="apptainer:/i"))
    for container, message in (
        ("pyxis:/i", "pyxis runs in SLURM's steps only"), ("apptainer:/i", "apptainer is not on PATH"),
        ("charliecloud:/i", "ch-run is not on PATH"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^slurm.container: {message}"):
            launch.check_start("local", Slurm(container=container))


@pytest.mark.parametrize(
    ("tasks", "steps"),
    [
        ("1", ["--ntasks=1 shard,cache,train,predict,reduce"]),
        ("2", ["--ntasks=1 --nodes=1 shard", "--ntasks=2 cache,train,predict", "--ntasks=1 --nodes=1 reduce"]),
    ],
)
def test_stages_on_the_same_tasks_of_an_allocation_share_a_step(
    make: Make, monkeypatch: pytest.MonkeyPatch, tasks: str, steps: list[str]
) -> None:
    run = make()
    seen: list[str] = []

    def step(command: list[str], *_: object) -> None:
        stages = command[-2]
        seen.append(" ".join([*re.findall(r"--n\w+=\d", " ".join(command)), stages]))
        for stage in stages.split(","):
            run.paths.marker(stage).parent.mkdir(exist_ok=True)
            run.paths.marker(stage).touch()

    monkeypatch.setattr(launch, "run_step", step)
    assert launch.run_in_allocation(run, {**os.environ, "SLURM_JOB_ID": "7", "SLURM_NTASKS": tasks}) == 0
    assert seen == steps


@pytest.mark.parametrize(("restarts", "code"), [("0", EXIT_AGAIN), ("99", EXIT_AGAIN), ("100", 1)])
def test_an_allocation_asks_for_another_life_as_often_as_the_job_allows(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, code: int
) -> None:
    run = make()
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nmkdir -p "$(dirname "$TLBATCH_AGAIN")" && touch "$TLBATCH_AGAIN"\n', encoding="utf-8")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
    assert launch.run_in_allocation(run, environment) == code
