"""Train the model of a run in the phases of its job, and select the checkpoint on validation."""

import logging
import os
from pathlib import Path

from tlbatch.data.dataset import open_set
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import job_digest
from tlbatch.runs.stage import run_once, stage_main
from tlbatch.runs.world import read_world
from tlbatch.training.snapshot import SnapshotManager
from tlbatch.training.train import join_and_train, save_limits, take_checkpoint

log = logging.getLogger(__name__)


def run(run_dir: Path) -> None:
    """Train the run's model, unless it is done."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    images = open_set(paths.set_paths(record.job), record.job.slurm)
    inputs = {"job": job_digest(record), "set": images.manifest.index_digest}
    slurm = record.job.slurm
    snapshots = SnapshotManager(
        paths.snapshots, inputs, world, every_min=slurm.snapshot_interval_min, limits=save_limits(slurm, os.environ)
    )
    there = paths.best.exists()

    def work() -> None:
        if record.checkpoint_of is None:
            join_and_train(record, images, paths, world, snapshots)
        elif world.is_main:
            take_checkpoint(RunPaths(Path(record.checkpoint_of)), paths, images)

    run_once("train", paths, inputs, world, work, is_there=there)
    snapshots.remove()


if __name__ == "__main__":
    stage_main("train", run, __doc__)
