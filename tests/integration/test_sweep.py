"""A sweep as job arrays on a real SLURM: its runs do not affect each other."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from slurm_cluster import SlurmCluster

from tlbatch.runs.attempts import read_attempts, read_jobs
from tlbatch.runs.paths import RunPaths

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_job: Path, write_folders: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("a b$(c)'sweep")
    write_folders(folder / "images")
    shutil.copy(tiny_job, folder)
    return folder


def submit(slurm: SlurmCluster, tiny: Path, *options: str) -> subprocess.CompletedProcess[str]:
    where = [str(tiny / "tiny.toml"), f"data.images={tiny / 'images'}", f"workspace={tiny / 'space'}"]
    return slurm.run(sys.executable, "-m", "tlbatch.submit", *where, *options, timeout_s=300)


def job_ids(text: str) -> dict[str, str]:
    return {stage: job for job, stage in re.findall(r"^job +(\d+)  (\w+)", text, re.MULTILINE)}


def wait_for(what: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_failed_run_does_not_stop_the_others_and_is_rerun_alone(slurm: SlurmCluster, tiny: Path) -> None:
    sweep = ["run=s", "sweep.seed=[0, 1, 2]"]
    first = submit(slurm, tiny, *sweep)
    assert first.returncode == 0, first.stderr
    runs = [RunPaths(tiny / "space" / "runs" / f"s-seed{seed}") for seed in range(3)]
    jobs = job_ids(first.stdout)
    assert list(jobs) == ["shard", "cache", "train", "predict", "reduce"]
    runs[1].checkpoints.write_text("in the way", encoding="utf-8")
    elements = [f"{jobs[stage]}_{number}" for stage in ("train", "predict", "reduce") for number in range(3)]
    assert list(slurm.wait(elements, 240).values()) == [
        *("COMPLETED", "FAILED", "COMPLETED"), *("COMPLETED", "CANCELLED", "COMPLETED") * 2
    ]  # fmt: skip
    assert [one.job for one in read_jobs(runs[2])] == [jobs["shard"], jobs["cache"], *elements[2::3]]
    assert [one.begin.job for one in read_attempts(runs[2])] == [jobs["shard"], jobs["cache"], *elements[2::3]]
    names = {log.name for log in runs[2].logs.iterdir()}
    assert names == {f"{one.stage}-{one.job}.0-rank0.log" for one in read_jobs(runs[2])}
    board = pd.read_csv(tiny / "space" / "runs" / "leaderboard.csv")
    assert sorted(board["run"]) == ["s-seed0", "s-seed2"]
    status = slurm.run(sys.executable, "-m", "tlbatch.status", "--json", f"--workspace={tiny / 'space'}")
    rows = {row["run"]: row for row in map(json.loads, status.stdout.splitlines())}
    assert {run: (row["stage"], row["state"]) for run, row in rows.items()} == {
        "s-seed0": (None, "finished"), "s-seed1": ("train", "failed"), "s-seed2": (None, "finished"),
    }  # fmt: skip

    again = submit(slurm, tiny, *sweep, "slurm.timeout_min=30", "--wait")
    assert again.returncode == 1, again.stdout + again.stderr
    assert f"run folder  {runs[0].folder}  finished already\n" in again.stdout
    assert list(job_ids(again.stdout)) == ["train", "predict", "reduce"]
    assert again.stderr.startswith("s-seed1: failed\nerror: train: FileExistsError: ")
    assert again.stderr.endswith(
        f"error: 1 of 3 runs failed; resume with python -m tlbatch.submit {quoted(runs[1].folder)}\n"
    )
    assert re.search(r"^tiny-seed0 .*\n?tiny-seed2 |^tiny-seed2 .*\n?tiny-seed0 ", again.stdout, re.MULTILINE)

    runs[1].checkpoints.unlink()
    before = [marker.stat().st_mtime_ns for run in runs[::2] for marker in sorted(run.folder.glob("markers/*.json"))]
    again = submit_runs(slurm, runs)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(pd.read_csv(tiny / "space" / "runs" / "leaderboard.csv")) == 3
    assert [len(read_attempts(run)) for run in runs[::2]] == [5, 5]
    after = [marker.stat().st_mtime_ns for run in runs[::2] for marker in sorted(run.folder.glob("markers/*.json"))]
    assert after == before


def quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def submit_runs(slurm: SlurmCluster, runs: list[RunPaths]) -> subprocess.CompletedProcess[str]:
    folders = [str(run.folder) for run in runs]
    return slurm.run(sys.executable, "-m", "tlbatch.submit", *folders, "--wait", timeout_s=300)


def test_array_element_out_of_time_restarts_alone(slurm: SlurmCluster, tiny: Path) -> None:
    done = submit(slurm, tiny, "run=long", "sweep.seed=[0, 1]", "phase.1.epochs=100000")
    train = job_ids(done.stdout)["train"]
    runs = [RunPaths(tiny / "space" / "runs" / f"long-seed{seed}") for seed in range(2)]
    wait_for(lambda: all(run.metrics.exists() for run in runs))
    twice = submit(slurm, tiny, "run=long", "sweep.seed=[0, 1]", "phase.1.epochs=100000")
    assert re.findall(r"active, job (\S+)", twice.stdout) == [f"{train}_0", f"{train}_1"]
    assert job_ids(twice.stdout) == {}
    slurm.run("scancel", "--signal=USR2", f"{train}_1")  # the last: its bare id is that of the array
    wait_for(lambda: slurm.job_field(f"{train}_1", "JobState") == "PENDING")
    assert slurm.job_field(f"{train}_0", "JobState") == "RUNNING"
    assert [len(list(run.folder.glob("markers/train.again.*"))) for run in runs] == [0, 1]
    slurm.run("scontrol", "update", f"jobid={train}_1", "starttime=now+2")
    wait_for(lambda: len(read_attempts(runs[1])) == 4)
    assert [slurm.job_field(f"{train}_{number}", "Restarts") for number in range(2)] == ["0", "1"]
    assert (runs[1].logs / f"train-{train}_1.1-rank0.log").exists()
    slurm.run("scancel", *job_ids(done.stdout).values())
