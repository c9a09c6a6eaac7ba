"""Train: the phases of the job over the training split; validation chooses the checkpoint."""

import itertools
import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from tlbatch.data.loader import ImageSet, SplitDataset, load, load_for_prediction, num_workers, open_set
from tlbatch.data.order import State, num_batches, training_batches
from tlbatch.data.views import View
from tlbatch.job.cli import once, stage_main
from tlbatch.job.config import Job
from tlbatch.job.errors import StoppedError, UserError
from tlbatch.job.files import digest_file
from tlbatch.job.paths import RunPaths, weights_file
from tlbatch.job.records import Best, RunRecord, job_digest
from tlbatch.job.stop import WAY_OUT, StopFlag
from tlbatch.job.world import World, read_world
from tlbatch.model.checkpoint import keep_best
from tlbatch.model.classifier import Classifier, build_classifier, probabilities
from tlbatch.model.phase import RunningPhase, start_phase
from tlbatch.model.ranks import joined_ranks
from tlbatch.report.metrics import mean_log_loss, score

log = logging.getLogger(__name__)
_CHECK_STEPS = 8
_TELL_S = 30


@dataclass(frozen=True)
class Session:
    """What all phases of a training share."""

    job: Job
    images: ImageSet
    paths: RunPaths
    world: World
    accelerator: Accelerator
    stop: StopFlag
    model: Classifier


@dataclass(frozen=True)
class Epoch:
    """A pass over the training split: its place in the run."""

    phase: int
    number: int
    in_run: int


class Validation(NamedTuple):
    """What the validation split says of a checkpoint; None where undefined."""

    score: float | None
    loss: float | None


def run(run_dir: Path) -> None:
    """Train the run's model, unless that is done."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    images = open_set(paths.set_paths(record.job), record.job.slurm)
    inputs = {"job": job_digest(record), "set": images.manifest.index_digest}
    once("train", paths, inputs, world, lambda: _join_and_train(record, images, paths, world))


def _join_and_train(record: RunRecord, images: ImageSet, paths: RunPaths, world: World) -> None:
    job = record.job
    _check_batches(job, images, world)
    _check_weights(record)
    stop = StopFlag()
    stop.install()
    model = build_classifier(job.model, len(images.manifest.classes), seed=job.seed, pretrained=True)
    for phase in job.phase:  # a wrong cut of the last phase is found before the first begins
        model.set_cut(phase.cut, freeze_batch_norm=phase.batch_norm == "frozen")
    precision = job.train.mixed_precision
    with joined_ranks(world, job.slurm, paths.rendezvous, stage="train", mixed_precision=precision) as accelerator:
        train(Session(job, images, paths, world, accelerator, stop, model))
        accelerator.wait_for_everyone()


def train(session: Session) -> None:
    """Run the phases one after another and keep the checkpoint that validates best."""
    if session.world.is_main:
        session.paths.metrics.unlink(missing_ok=True)
    steps = num_batches(session.images.manifest.num_images["train"], session.job.train.batch_size)
    best: Best | None = None
    in_run = 0
    for number, phase in enumerate(session.job.phase):
        running = start_phase(
            session.accelerator,
            session.model,
            phase,
            session.job.train,
            steps_per_epoch=steps,
            seed=session.job.seed + number,
        )
        for epoch in (Epoch(number, n, in_run + n) for n in range(phase.epochs)):
            start = time.monotonic()
            loss = _train_epoch(session, running, epoch)
            seconds = time.monotonic() - start
            validation = _validate(session)
            _tell(session, running, epoch, loss=loss, validation=validation, seconds=seconds)
            best = keep_best(best, _candidate(session, epoch, validation), session.model, session.paths, session.world)
        in_run += phase.epochs
        running.release()


def _check_batches(job: Job, images: ImageSet, world: World) -> None:
    if images.manifest.tags:
        raise UserError(
            "data.tag_separator: the images have several tags, and train classifies into one; leave it empty"
        )
    num_train = images.manifest.num_images["train"]
    smallest = num_train // num_batches(num_train, job.train.batch_size)
    if smallest < world.world_size:
        raise UserError(
            f"{num_train} training images in batches of {smallest} are too few for {world.world_size} ranks; "
            f"raise train.batch_size ({job.train.batch_size}), add images, or ask for fewer nodes or GPUs"
        )
    if job.train.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.mixed_precision: fp16 needs a GPU; set it to bf16 or no")


def _check_weights(record: RunRecord) -> None:
    file = weights_file(record.job.model.weights)
    if file is not None and digest_file(file) != record.weights_digest:
        raise UserError(f"{file}: the weights have changed since the job was submitted; submit it again")


def _train_epoch(session: Session, running: RunningPhase, epoch: Epoch) -> float:
    """One pass over the training split; the mean loss over all ranks."""
    job, world = session.job, session.world
    view = View(
        size=session.model.spec.size,
        augment=job.train.augment,
        crop_scale=job.train.crop_scale,
        seed=job.seed,
        epoch=epoch.in_run,
    )
    dataset = SplitDataset(session.images, "train", view)
    state = State(job.seed, epoch.in_run, 0, session.images.manifest.index_digest)
    sizes, shares = itertools.tee(
        training_batches(
            state, len(dataset), batch_size=job.train.batch_size, rank=world.rank, world_size=world.world_size
        )
    )
    steps = num_batches(len(dataset), job.train.batch_size)
    total = torch.zeros((), device=session.accelerator.device)
    session.model.train()
    running.model.train()
    told = time.monotonic()
    loaded = load(
        dataset, (own for _, own in shares), workers=num_workers(job.train, world, session.accelerator.device.type)
    )
    for step, ((size, _), own) in enumerate(zip(sizes, loaded, strict=True)):
        _stop_if_asked(session, epoch, step)
        total += running.step(own.images, own.labels, own.turns, global_size=size)
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            log.info("phase %d epoch %d: step %d of %d", epoch.phase, epoch.number, step + 1, steps)
    mean = running.mean_over_ranks(total) / steps
    if not math.isfinite(mean):
        raise UserError(
            f"the loss is {mean} in phase {epoch.phase} epoch {epoch.number}; "
            f"lower phase.{epoch.phase}.optimizer.lr, or set train.grad_clip"
        )
    return mean


def _stop_if_asked(session: Session, epoch: Epoch, step: int) -> None:
    """All ranks leave at the same step, so that none waits for another in a collective."""
    if step % _CHECK_STEPS:
        return
    if session.stop:
        session.accelerator.set_trigger()
    if session.accelerator.check_trigger():
        name = session.stop.signal_name or "a signal on another rank"
        raise StoppedError(f"stopped by {name} in phase {epoch.phase} epoch {epoch.number} step {step} {WAY_OUT}")


def _validate(session: Session) -> Validation:
    """The job's metric and the log loss on the validation split, over all ranks, each image once."""
    world = session.world
    rows = session.images.index[session.images.rows("val")]
    own: list[tuple[int, list[float]]] = []
    device = session.accelerator.device.type
    size = session.model.spec.size
    loaded = load_for_prediction(session.images, "val", session.job.train, world, size=size, device=device, strict=True)
    for batch in loaded:
        found = probabilities(session.model, batch.images, session.accelerator)
        own.extend(zip(batch.positions.tolist(), found.tolist(), strict=True))
    everyone = dict(gather_object(own))
    assert len(everyone) == len(rows), "validation must see every image once"
    num_classes = len(session.images.manifest.classes)
    table = np.array([everyone[position] for position in range(len(rows))]).reshape(-1, num_classes)
    labels = rows["label"].astype(np.int64)
    metric = score(session.job.metric, labels, table.argmax(axis=1), num_classes=num_classes)
    return Validation(metric, mean_log_loss(labels, table))


def _tell(
    session: Session,
    running: RunningPhase,
    epoch: Epoch,
    *,
    loss: float,
    validation: Validation,
    seconds: float,
) -> None:
    if not session.world.is_main:
        return
    metric = session.job.metric
    num_images = session.images.manifest.num_images["train"]
    shown = "undefined" if validation.score is None else f"{validation.score:.4f}"
    log.info(
        "phase %d epoch %d: loss %.4f, validation %s %s, %.0f images/s",
        epoch.phase, epoch.number, loss, metric, shown, num_images / seconds,
    )  # fmt: skip
    line = {
        "phase": epoch.phase,
        "epoch": epoch.number,
        "loss": loss,
        f"val_{metric}": validation.score,
        "val_loss": validation.loss,
        "lr": running.schedule.get_last_lr()[0],
        "images_per_s": num_images / seconds,
    }
    with session.paths.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _candidate(session: Session, epoch: Epoch, validation: Validation) -> Best:
    spec = session.model.spec
    return Best(
        weights=f"phase{epoch.phase}-epoch{epoch.number}.safetensors",
        digest="",
        phase=epoch.phase,
        epoch=epoch.number,
        metric=session.job.metric,
        val_score=validation.score,
        val_loss=validation.loss,
        classes=session.images.manifest.classes,
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        num_parameters=sum(parameter.numel() for parameter in session.model.parameters()),
    )


if __name__ == "__main__":
    stage_main("train", run, __doc__)
