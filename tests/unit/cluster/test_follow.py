"""What is said of a stage that ended without its marker."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tlbatch.cluster.create import make_run, resolve
from tlbatch.cluster.failures import cause_of, report_failure
from tlbatch.config.load import load_job
from tlbatch.runs.attempts import BEGAN
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Failure, FailureKind
from tlbatch.runs.stage import run_guarded


@pytest.fixture
def paths(tmp_path: Path, tiny_job: Path) -> RunPaths:
    return make_run(
        resolve(load_job([tiny_job], [f"data.images={tmp_path}", f"workspace={tmp_path / 'w'}", "run=r"]))
    ).paths


def fail(paths: RunPaths, rank: int, kind: FailureKind, message: str) -> None:
    Failure(stage="train", rank=rank, message=message, kind=kind).save(paths.failure("train", rank))


def test_the_rank_that_failed_is_named_and_not_those_that_lost_it(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(paths, 0, "lost", "n1 rank 0: another rank is gone")
    fail(paths, 1, "stopped", "stopped by SIGTERM")
    fail(paths, 2, "hung", "n2 rank 2: has made no progress for 50 s in validation")
    assert report_failure("train", paths, "7") == 1
    assert capsys.readouterr().err.startswith("error: train: n2 rank 2: has made no progress for 50 s in validation\n")
    fail(paths, 3, "crash", "ValueError: bang")
    assert report_failure("train", paths, "7") == 1
    assert capsys.readouterr().err.startswith("error: train: ValueError: bang\n")


def test_of_a_rank_that_was_killed_srun_has_the_last_word(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    (paths.logs / "7_0_log.out").write_text("module loaded\nsrun: error: n2: task 1: Out Of Memory\n", encoding="utf-8")
    (paths.logs / "train-7.0-rank0.log").write_text("12:00:00 train on its way\n", encoding="utf-8")
    assert report_failure("train", paths, "7") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: train: ended without a result (n2: task 1: Out Of Memory); its logs may say why\n")
    assert f"resume with python -m tlbatch.submit {paths.folder}" in said
    fail(paths, 0, "lost", "n1 rank 0: another rank is gone")
    assert report_failure("train", paths, "7") == 1
    assert capsys.readouterr().err.startswith(
        "error: train: n1 rank 0: another rank is gone (n2: task 1: Out Of Memory)\n"
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:3"), "lost"),
        (RuntimeError("Timed out waiting 60000ms for recv operation to complete"), "lost"),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:32, remote process exited"), "lost"),
        (ValueError("bang\nsecond line"), "crash"),
    ],
)
def test_a_collective_that_broke_points_to_the_other_ranks(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    for name, value in {"NTASKS": "2", "GLOBALID": "0", "LOCALID": "0", "JOB_ID": "1"}.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", BEGAN):
        monkeypatch.setenv(name, "1")  # which guarded sets for good
    monkeypatch.setattr("tlbatch.runs.stage.stop_at_once", lambda: None)

    def broken(_: Path) -> None:
        raise error

    run: Callable[[Path], None] = broken
    assert run_guarded("train", run, paths.folder) == 1
    found = cause_of("train", paths)
    assert found is not None
    assert found.kind == kind
    assert "\n" not in found.message
