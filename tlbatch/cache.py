"""Compute the activations at the cuts of the job's phases, once for every view of every image."""

import os
from pathlib import Path

from tlbatch.activations.fill import fill_cache
from tlbatch.data.image_set import ImageSet, open_images
from tlbatch.distributed.process_group import join_process_group
from tlbatch.model.checkpoint import pretrained_classifier
from tlbatch.runs.records import job_digest
from tlbatch.runs.run import Run
from tlbatch.runs.stage import run_once, stage_main
from tlbatch.runs.world import World, read_world


def run(run_dir: Path) -> None:
    """Fill the cache for the run, unless it is filled."""
    run, world = Run.load(run_dir), read_world(os.environ)
    images = open_images(run, staged=True)
    inputs = {"job": job_digest(run.record), "set": images.manifest.index_digest}
    run_once("cache", run.paths, inputs, world, lambda: _join_and_fill(run, images, world))


def _join_and_fill(run: Run, images: ImageSet, world: World) -> dict[str, str]:
    model = pretrained_classifier(run.record, images.manifest)
    with join_process_group("cache", run, world) as ranks:
        return fill_cache(run.record, images, model, ranks)


if __name__ == "__main__":
    stage_main("cache", run, __doc__)
