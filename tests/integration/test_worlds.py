"""Trainings resumed with a different number of ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tlbatch import cache, predict, reduce, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.cli import EXIT_AGAIN
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Failure, load_record

pytestmark = pytest.mark.chain

CLASSES = ["p_blue", "p_green", "p_red"]


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, tiny_job: Path, write_folders: Callable[..., Path]
) -> Callable[..., RunPaths]:
    folder = tmp_path_factory.mktemp("worlds")
    images = write_folders(folder / "images")

    def made(run: str, *more: str) -> RunPaths:
        options = [f"data.images={images}", f"workspace={folder / 'space'}", f"run={run}", "phase.1.epochs=40", *more]
        paths = make_run(resolve(load_job([tiny_job], [*options, "phase.1.optimizer={name='sgd', lr=1e-3}"]))).paths
        shard.run(paths.folder)
        cache.run(paths.folder)
        return paths

    return made


def start(paths: RunPaths, num_ranks: int) -> list[subprocess.Popen[str]]:
    """Start the processes of a training with several ranks."""
    world = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": str(num_ranks), "SUBMITIT_LOCAL_JOB_ID": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tlbatch.train", str(paths.folder)],
            env={**os.environ, **world, "SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_ranks)
    ]


def stop_after(paths: RunPaths, ranks: list[subprocess.Popen[str]], num_epochs: int) -> None:
    """Send SLURM's warning signal to one of them."""
    deadline = time.monotonic() + 120
    while not paths.metrics.exists() or len(paths.metrics.read_text("utf-8").splitlines()) < num_epochs:
        assert time.monotonic() < deadline
        assert all(rank.poll() is None for rank in ranks), [rank.communicate()[0] for rank in ranks]
        time.sleep(0.02)
    ranks[-1].send_signal(signal.SIGUSR2)
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert EXIT_AGAIN in [rank.returncode for rank in ranks], said
    assert all("stopped by" in text for text in said)


def predictions(paths: RunPaths) -> pd.DataFrame:
    predict.run(paths.folder)
    reduce.run(paths.folder)
    return pd.read_csv(paths.report / "predictions.csv")


def test_training_of_two_ranks_resumes_with_one_and_with_two_again(make: Callable[..., RunPaths]) -> None:
    constant, changed = make("constant"), make("changed")
    train.run(constant.folder)
    stop_after(changed, start(changed, 2), 5)
    stop_after(changed, start(changed, 1), 12)
    ranks = start(changed, 2)
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "saved by 1 rank and resumed by 2: every remaining sample of the epoch is used once" in said[0]
    assert not changed.snapshots.exists()
    one, two = predictions(constant), predictions(changed)
    assert one["image"].tolist() == two["image"].tolist()
    assert np.allclose(one[CLASSES], two[CLASSES], atol=1e-3)


@pytest.mark.parametrize("stopped", [0, 1])
def test_rank_frozen_before_its_first_step_ends_the_others_within_the_limit(
    make: Callable[..., RunPaths], stopped: int
) -> None:
    paths = make(f"stopped-{stopped}", "slurm.watchdog_timeout_s=5", "phase.1.epochs=2000")
    ranks = start(paths, 2)
    try:
        sign = paths.rendezvous / f"train-1.rank-{stopped}"
        deadline = time.monotonic() + 120
        while not sign.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ranks[stopped].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        said, _ = ranks[1 - stopped].communicate(timeout=60)
        assert ranks[1 - stopped].returncode == 1, said
        assert time.monotonic() - began < 5 * 2 + 5, "the limit, one check and a slow machine"
        failure = load_record(Failure, paths.failure("train", 1 - stopped), missing="")
        assert failure.kind == "lost"
        assert f"rank {stopped} sent no heartbeat for" in failure.message
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
