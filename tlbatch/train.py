"""Train the model of a run in the phases of its job, and select the checkpoint on validation."""

import os
from pathlib import Path

from tlbatch.data.image_set import open_images
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import job_digest
from tlbatch.runs.run import Run
from tlbatch.runs.stage import run_once, stage_main
from tlbatch.runs.world import read_world
from tlbatch.training.snapshot import SnapshotManager
from tlbatch.training.train import join_and_train, save_limits, take_checkpoint


def run(run_dir: Path) -> None:
    """Train the run's model, unless it is done."""
    run, world = Run.load(run_dir), read_world(os.environ)
    paths, slurm, other = run.paths, run.job.slurm, run.record.checkpoint_of
    images = open_images(run, staged=True)
    inputs = {"job": job_digest(run.record), "set": images.manifest.index_digest}
    snapshots = SnapshotManager(
        paths.snapshots, inputs, world, every_min=slurm.snapshot_interval_min, limits=save_limits(slurm, os.environ)
    )

    def work() -> None:
        if other is None:
            join_and_train(run, images, world, snapshots)
        elif world.is_main:
            take_checkpoint(RunPaths(Path(other)), paths, images)

    run_once("train", paths, inputs, world, work, is_there=paths.best.exists())
    snapshots.remove()


if __name__ == "__main__":
    stage_main("train", run, __doc__)
