"""Choose what to train for a cut or strategy that is auto, by cross-validation on the training images.

Probes at every stage of the backbone show which features classify the images best. Heads on that stage and on several
stages, and fine-tuning from the middle of the backbone, are tried on the same folds. If fine-tuning helps, or the top
of the backbone scores lower than its middle, fine-tuning all of it is tried too. The cheapest candidate within one
standard error of the best, and half a point, is chosen; if the top scores lower, the cheapest fine-tuned one, if it is
that close. Validation and test images are not used.
"""

import os
import shutil
from pathlib import Path

from tlbatch.core.errors import UserError
from tlbatch.data.image_set import ImageSet, open_images
from tlbatch.distributed.process_group import join_process_group
from tlbatch.runs.records import job_digest
from tlbatch.runs.run import Run
from tlbatch.runs.stage import run_once, stage_main
from tlbatch.runs.world import World, read_world
from tlbatch.training.candidates import choose
from tlbatch.training.search import Study


def run(run_dir: Path) -> None:
    """Make the choices for the run, unless they are made."""
    run, world = Run.load_submitted(run_dir), read_world(os.environ)
    if not run.job.chooses:
        raise UserError(
            f"{run_dir}: its job has no cut or strategy that is auto, so there is nothing to choose; run cache"
        )
    images = open_images(run, staged=True)
    inputs = {"job": job_digest(run.record), "set": images.manifest.index_digest}
    run_once("choose", run.paths, inputs, world, lambda: _join_and_choose(run, images, world))
    if world.is_main:
        shutil.rmtree(run.paths.trials, ignore_errors=True)


def _join_and_choose(run: Run, images: ImageSet, world: World) -> None:
    with join_process_group("choose", run, world) as ranks:
        found = choose(Study(run.record, images, ranks, run.paths.trials))
        if world.is_main:
            found.save(run.paths.strategy)
        ranks.accelerator.wait_for_everyone()


if __name__ == "__main__":
    stage_main("choose", run, __doc__)
