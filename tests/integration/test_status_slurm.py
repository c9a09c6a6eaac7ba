"""Status of a chain on a real SLURM without accounting."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import SlurmCluster

from tlbatch.runs.attempts import read_attempts, read_jobs
from tlbatch.runs.paths import RunPaths

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_job: Path, write_folders: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("status")
    write_folders(folder / "images")
    shutil.copy(tiny_job, folder)
    return folder


def submit(slurm: SlurmCluster, tiny: Path, run: str, *options: str) -> dict[str, str]:
    where = [str(tiny / "tiny.toml"), f"data.images={tiny / 'images'}", f"workspace={tiny / 'workspace'}", f"run={run}"]
    done = slurm.run(sys.executable, "-m", "tlbatch.submit", *where, *options)
    assert done.returncode == 0, done.stderr
    return {stage: job for job, stage in re.findall(r"^job +(\d+)  (\w+)$", done.stdout, re.MULTILINE)}


def status(slurm: SlurmCluster, tiny: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return slurm.run(sys.executable, "-m", "tlbatch.status", *options, cwd=tiny, timeout_s=240)


def row(slurm: SlurmCluster, tiny: Path, run: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in status(slurm, tiny, "--json").stdout.splitlines()]
    found: dict[str, Any] = next(one for one in lines if one["run"] == run)
    return found


def wait_for(what: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_chain_is_shown_queued_running_and_finished(slurm: SlurmCluster, tiny: Path) -> None:
    blocker = slurm.run("sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600")
    jobs = submit(slurm, tiny, "one", "slurm.nodes=2")
    paths = RunPaths(tiny / "workspace" / "runs" / "one")
    assert [(one.stage, one.job) for one in read_jobs(paths)] == list(jobs.items())
    wait_for(lambda: slurm.job_field(jobs["shard"], "Reason") in ("Resources", "Priority"))
    queued = row(slurm, tiny, "one")
    assert (queued["stage"], queued["state"]) == ("shard", "queued")
    assert queued["why"] in ("Resources", "Priority")
    slurm.run("scancel", blocker.stdout.strip())
    wait_for(lambda: paths.marker("shard").exists())
    followed = status(slurm, tiny, str(paths.folder), "--follow", "--every", "0.5")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    lines = [re.sub(r"^\S+ one: ", "", line) for line in followed.stdout.splitlines()]
    assert re.fullmatch(r"- finished, test accuracy \d\.\d{4}", lines[-1])
    assert any(line.startswith("train running") for line in lines)
    attempts = read_attempts(paths)
    assert [(one.stage, one.begin.job, one.outcome) for one in attempts] == [
        (stage, job, "finished") for stage, job in jobs.items()
    ]
    assert [one.begin.tasks for one in attempts] == [1, 2, 2, 2, 1]


def test_a_killed_chain_is_dead_and_a_cancelled_one_stopped_or_dead_with_the_end_of_the_log(
    slurm: SlurmCluster, tiny: Path
) -> None:
    jobs = {run: submit(slurm, tiny, run, "phase.1.epochs=100000") for run in ("killed", "cancelled")}
    runs = {run: RunPaths(tiny / "workspace" / "runs" / run) for run in jobs}
    wait_for(lambda: all(paths.metrics.exists() for paths in runs.values()))
    assert [(row(slurm, tiny, run)["stage"], row(slurm, tiny, run)["state"]) for run in runs] == [
        ("train", "running")
    ] * 2
    slurm.run("scontrol", "update", "partition=urgent", "state=down")
    submit(slurm, tiny, "waiting", "slurm.partition=urgent", "slurm.shard_tasks=2")
    queued = row(slurm, tiny, "waiting")
    slurm.run("scancel", *(one.job for one in read_jobs(RunPaths(tiny / "workspace" / "runs" / "waiting"))))
    slurm.run("scontrol", "update", "partition=urgent", "state=up")
    assert (queued["state"], queued["why"]) == ("queued", "PartitionDown")
    slurm.run("scancel", jobs["cancelled"]["train"])
    os.kill(int(read_attempts(runs["killed"])[-1].begin.process.rpartition(":")[2]), signal.SIGKILL)
    folders = [str(tiny / "workspace" / "runs" / run) for run in ("waiting", "cancelled", "killed")]
    followed = status(slurm, tiny, *folders, "--follow", "--every", "1")
    assert followed.returncode == 1, followed.stdout
    waits, cancelled, killed = followed.stdout.split("\n\n")[-3:]
    assert re.match(r"waiting: shard dead: did not start \(CANCELLED.*\); resume with", waits)
    assert cancelled.startswith("cancelled: train stopped: stopped by SIGTERM in phase 1 ")
    assert re.match(r"killed: train dead: ended without a result \(FAILED, \w+, exit code \S+\); resume with", killed)
    for run, end in (("cancelled", cancelled), ("killed", killed)):
        assert f"\n{runs[run].logs}/" in end
        assert len(end.splitlines()) == 12
    assert [read_attempts(runs[run])[-1].outcome for run in runs] == [None, "stopped"]
