"""Join the ranks and train the phases of a run."""

import itertools
import logging
from collections.abc import Mapping

from tlbatch.config.job import Job
from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import copy_file
from tlbatch.core.text import counted
from tlbatch.data.image_set import ImageSet
from tlbatch.data.phrase_checks import odd_phrases
from tlbatch.data.sampler import num_batches
from tlbatch.distributed.process_group import join_process_group
from tlbatch.model.attribute_head import attributes_in
from tlbatch.model.checkpoint import BestCheckpoint, pretrained_classifier
from tlbatch.model.phrase_decoder import PhraseHead, outputs_named
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import SPLITS
from tlbatch.runs.run import Run
from tlbatch.runs.stage import require_finished
from tlbatch.runs.world import World
from tlbatch.training.phases import train_phases
from tlbatch.training.snapshot import SnapshotManager
from tlbatch.training.state import TrainingContext

log = logging.getLogger(__name__)
KILL_WAIT = "TLBATCH_KILL_WAIT"
"""Environment variable with the seconds between SLURM's request to stop a task and its kill."""
_LEAVE_S = 5
"""Seconds reserved for shutting down."""


def take_checkpoint(other: RunPaths, paths: RunPaths, images: ImageSet) -> None:
    """Copy the checkpoint of another run in place of training; UserError if it is incomplete, or for other classes."""
    best, weights = other.load_best()
    if best.classes != images.manifest.classes:
        raise UserError(
            f"{other.folder}: its classes are {', '.join(best.classes)}, but those of the images are "
            f"{', '.join(images.manifest.classes)}; give a run with the same classes"
        )
    paths.checkpoints.mkdir(exist_ok=True)
    for file in (weights, other.unseen(best)) if best.unseen else (weights,):
        copy_file(file, paths.checkpoints / file.name)
    copy_file(other.metrics, paths.metrics)
    best.save(paths.best)


def save_limits(slurm: Slurm, environment: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds that SLURM leaves a job for saving, by the warning to log if they are too few."""
    found = {"raise slurm.signal_delay_s, or work is lost at the time limit": slurm.signal_delay_s - _LEAVE_S}
    if environment.get(KILL_WAIT, "").isdecimal():
        lost = f"slurm.snapshot_interval_min = {slurm.snapshot_interval_min:g} min"
        lost = f"a job that is preempted or requeued at once loses up to {lost}"
        found[f"{lost}; KillWait in slurm.conf is too short"] = int(environment[KILL_WAIT]) - 1
    return {follows: float(limit_s) for follows, limit_s in found.items()}


def join_and_train(run: Run, images: ImageSet, world: World, snapshots: SnapshotManager) -> None:
    """Join the ranks and train all phases."""
    job, paths = run.job, run.paths
    _check_batches(job, images, world)
    cached = require_finished("cache", run)
    model = pretrained_classifier(run.record, images.manifest)
    if isinstance(model.head, PhraseHead) and world.is_main:
        _log_odd_phrases(job, images)
    with join_process_group("train", run, world) as ranks:
        train_phases(
            TrainingContext(job, images, paths, ranks, model, BestCheckpoint(paths, world), snapshots), cached.outputs
        )
        ranks.accelerator.wait_for_everyone()


def _log_odd_phrases(job: Job, images: ImageSet) -> None:
    names, data = images.manifest.classes, job.data
    vocabulary, attributes = outputs_named(job, images.manifest), data.attributes_in(names)
    max_tags = len(attributes_in(vocabulary, data)) if job.phase[0].fit else job.decoder.max_tags
    odd = odd_phrases(images.index, images.manifest, vocabulary, max_tags, attributes=attributes, causes=())
    log.info("phrases use a vocabulary of %d tags, at most %d per phrase", len(vocabulary), max_tags)
    lacking = [tag for own in data.attributes.values() for tag in own if tag not in names]
    if lacking:
        log.warning("data.attributes: no image has %s", ", ".join(lacking[:10]))
    counts = {
        "more tags than that": odd.num_too_long,
        "a tag outside the vocabulary": odd.num_unseen,
        "several tags of one attribute": odd.num_several,
    }
    for split, (what, number) in itertools.product(SPLITS, counts.items()):
        if number[split]:
            log.warning("%s with %s", counted(number[split], f"{split} image"), what)
    if odd.num_contradicting:
        log.warning("%s (nearly) identical to one with another phrase", counted(odd.num_contradicting, "image"))


def _check_batches(job: Job, images: ImageSet, world: World) -> None:
    num_train = len(images.rows("train"))
    smallest = num_train // num_batches(num_train, job.train.batch_size)
    if smallest < world.world_size:
        raise UserError(
            f"{num_train} training images in batches of {smallest} are too few for {world.world_size} ranks; "
            f"raise train.batch_size ({job.train.batch_size}), add images, or ask for fewer nodes or GPUs"
        )
