"""Compute the activations at the cuts of the job's phases, once for every view of every image."""

import os
from pathlib import Path

from tlbatch.activations.fill import fill_cache
from tlbatch.data.dataset import ImageSet, open_set
from tlbatch.distributed.process_group import join_process_group
from tlbatch.model.checkpoint import pretrained_classifier
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import RunRecord, job_digest
from tlbatch.runs.stage import run_once, stage_main
from tlbatch.runs.world import World, read_world


def run(run_dir: Path) -> None:
    """Fill the cache for the run, unless it is filled."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    images = open_set(paths.set_paths(record.job), record.job.slurm)
    inputs = {"job": job_digest(record), "set": images.manifest.index_digest}
    run_once("cache", paths, inputs, world, lambda: _join_and_fill(record, images, paths, world))


def _join_and_fill(record: RunRecord, images: ImageSet, paths: RunPaths, world: World) -> dict[str, str]:
    model = pretrained_classifier(record, images.manifest)
    with join_process_group("cache", paths, world, record.job) as ranks:
        return fill_cache(record, images, model, ranks)


if __name__ == "__main__":
    stage_main("cache", run, __doc__)
