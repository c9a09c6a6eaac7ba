"""Train: the phases of the job over the training split; validation chooses the checkpoint."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from tlbatch.data.activations import Feed, open_store
from tlbatch.data.loader import ImageSet, num_workers, open_set
from tlbatch.data.order import num_batches
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.epochs import Epoch, Feeds, Session, Validation, labels_of_split, samples_of, train_epoch, validate
from tlbatch.job.cli import once, stage_main
from tlbatch.job.config import Job
from tlbatch.job.errors import UserError
from tlbatch.job.learning import Phase
from tlbatch.job.paths import RunPaths
from tlbatch.job.records import Best, Marker, RunRecord, job_digest, load_record
from tlbatch.job.section import SplitName
from tlbatch.job.stop import StopFlag
from tlbatch.job.world import World, read_world
from tlbatch.model.checkpoint import Average, Keeper, averaged, pretrained_classifier
from tlbatch.model.classifier import turned
from tlbatch.model.fitted import FittedHead, Vectors, fit_head
from tlbatch.model.phase import start_phase
from tlbatch.model.ranks import joined_ranks

log = logging.getLogger(__name__)


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
    cached = load_record(Marker, paths.marker("cache"), missing="run cache first: python -m tlbatch.cache RUN")
    stop = StopFlag()
    stop.install()
    model = pretrained_classifier(record, images.manifest)
    precision = job.train.mixed_precision
    with joined_ranks(world, job.slurm, paths.rendezvous, stage="train", mixed_precision=precision) as accelerator:
        train(Session(job, images, paths, world, accelerator, stop, model, Keeper(paths, world)), cached)
        accelerator.wait_for_everyone()


def train(session: Session, cached: Marker) -> None:
    """Run the phases one after another and keep the checkpoint that validates best."""
    if session.world.is_main:
        session.paths.metrics.unlink(missing_ok=True)
    in_run = 0
    for number, phase in enumerate(session.job.phase):
        feeds = _feeds(session, cached, number)
        work = _fit_phase if phase.fit else _run_phase
        work(session, feeds, phase, Epoch(number, 0, in_run))
        in_run += phase.epochs


def _fit_phase(session: Session, feeds: Feeds, phase: Phase, first: Epoch) -> None:
    """Let rank 0 fit the head at once on all training vectors, and give it to the others."""
    assert phase.fit is not None
    model, world, keeper = session.model, session.world, session.keeper
    began = time.monotonic()
    model.to(session.accelerator.device)
    model.set_cut(phase.cut, freeze_batch_norm=True)
    found: list[FittedHead | None] = [None]
    labels = np.empty(0, np.int64)
    if world.is_main:
        vectors = _vectors(session, feeds)
        log.info("%s: %d vectors of %d numbers", phase.fit, *vectors.features.shape)
        found = [fit_head(phase.fit, vectors, seed=session.job.seed)]
        labels = vectors.labels
    (fitted,) = broadcast_object_list(found)
    assert fitted is not None
    model.head = fitted.head.to(session.accelerator.device)
    validation = validate(session, feeds)
    keeper.offer(_candidate(session, first, validation), model, fitted.outputs, labels[fitted.judged])
    line = {"phase": first.phase, "fit": phase.fit, "penalties": fitted.scores}
    _tell(session, first, line, validation=validation, seconds=time.monotonic() - began)
    keeper.write(model)


def _vectors(session: Session, feeds: Feeds) -> Vectors:
    """The features of all training images in all their views, or of their mean, and what is known of them."""
    images, model, job = session.images, session.model, session.job
    rows = images.index[images.rows("train")]
    views = Views(model.spec.size) if job.head.view_mean else training_views(job.train, model.spec.size)
    samples = Samples(len(rows), views, every_view=True)
    size = job.train.batch_size
    batches = (np.arange(start, min(start + size, len(samples))) for start in range(0, len(samples), size))
    features, positions = [], []
    for batch in feeds.train.batches(samples, batches):
        seen = turned(batch.inputs.to(session.accelerator.device), batch.turns)
        features.append((model.to_cut(seen) if seen.dtype == torch.uint8 else seen).double().cpu().numpy())
        positions.append(batch.positions.numpy())
    of = np.concatenate(positions)
    return Vectors(
        np.concatenate(features),
        rows["label"][of].astype(np.int64),
        rows["group"][of],
        model.num_classes,
        ordered=job.objective == "regression",
    )


def _run_phase(session: Session, feeds: Feeds, phase: Phase, first: Epoch) -> None:
    """Its epochs, until validation no longer gets better; then the mean of begin and end, where the job asks for it."""
    model, keeper = session.model, session.keeper
    labels = labels_of_split(session.images, "val")
    running = start_phase(
        session.accelerator,
        model,
        phase,
        steps_per_epoch=num_batches(len(samples_of(session, phase, first)), session.job.train.batch_size),
        seed=session.job.seed + first.phase,
    )
    moving = Average(model, phase.ema) if phase.ema else None
    start = Average(model, 0.5) if phase.average else None
    without_gain = 0
    for number in range(phase.epochs):
        epoch = Epoch(first.phase, number, first.in_run + number)
        began = time.monotonic()
        loss = train_epoch(session, feeds, running, epoch, moving)
        seconds = time.monotonic() - began
        with averaged(model, moving):
            validation = validate(session, feeds)
            better = keeper.offer(_candidate(session, epoch, validation), model, validation.outputs, labels)
        line = {"phase": epoch.phase, "epoch": number, "loss": loss, "lr": running.schedule.get_last_lr()[0]}
        _tell(session, epoch, line, validation=validation, seconds=seconds)
        without_gain = 0 if better else without_gain + 1
        if phase.patience and without_gain >= phase.patience:
            log.info("phase %d ends: no better validation for %d epochs", epoch.phase, phase.patience)
            break
    if start is not None:
        start.update(model)  # half of the begin, half of the end
        with averaged(model, start):
            validation = validate(session, feeds)
            better = keeper.offer(
                _candidate(session, epoch, validation, averaged=True), model, validation.outputs, labels
            )
        log.info("mean of begin and end: %s", f"kept, validation {validation.score}" if better else "not better")
    keeper.write(model)
    running.release()


def _feeds(session: Session, cached: Marker, phase: int) -> Feeds:
    job, images, size = session.job, session.images, session.model.spec.size
    workers = num_workers(job.train, session.world, session.accelerator.device.type)

    def feed(split: SplitName, views: Views) -> Feed:
        store = open_store(job, cached, phase=phase, split=split)
        return Feed(images, images.rows(split), views, store, workers=workers, mean=job.head.view_mean)

    views = training_views(job.train, size)
    return Feeds(feed("train", views), feed("val", views if job.head.view_mean else Views(size)))


def _check_batches(job: Job, images: ImageSet, world: World) -> None:
    num_train = images.manifest.num_images["train"]
    smallest = num_train // num_batches(num_train, job.train.batch_size)
    if smallest < world.world_size:
        raise UserError(
            f"{num_train} training images in batches of {smallest} are too few for {world.world_size} ranks; "
            f"raise train.batch_size ({job.train.batch_size}), add images, or ask for fewer nodes or GPUs"
        )


def _tell(
    session: Session, epoch: Epoch, line: Mapping[str, object], *, validation: Validation, seconds: float
) -> None:
    """Log an epoch, or a fit, and add a line to the run's metrics."""
    if not session.world.is_main:
        return
    metric, phase = session.job.metric, session.job.phase[epoch.phase]
    rate = len(samples_of(session, phase, epoch)) / seconds
    shown = "undefined" if validation.score is None else f"{validation.score:.4f}"
    what = f"epoch {epoch.number}: loss {line['loss']:.4f}" if "loss" in line else f"fitted in {seconds:.1f} s"
    log.info("phase %d %s, validation %s %s, %.0f images/s", epoch.phase, what, metric, shown, rate)
    whole = {**line, f"val_{metric}": validation.score, "val_loss": validation.loss, "images_per_s": rate}
    with session.paths.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(whole) + "\n")


def _candidate(session: Session, epoch: Epoch, validation: Validation, *, averaged: bool = False) -> Best:
    return Best(
        weights=f"phase{epoch.phase}-epoch{epoch.number}{'-average' if averaged else ''}.safetensors",
        digest="",
        phase=epoch.phase,
        epoch=epoch.number,
        metric=session.job.metric,
        val_score=validation.score,
        val_loss=validation.loss,
        classes=session.images.manifest.classes,
        num_parameters=session.model.num_parameters(),
    )


if __name__ == "__main__":
    stage_main("train", run, __doc__)
