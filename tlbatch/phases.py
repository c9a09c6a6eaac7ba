"""The phases of a job, one after another over all ranks."""

import json
import logging
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from tlbatch.course import Course, Epoch, Feeds, Session, go_on, resume, save, saved_when_stopped
from tlbatch.data.activations import open_stores
from tlbatch.data.feed import Feed
from tlbatch.data.loader import num_workers
from tlbatch.data.order import Positions, State, num_batches, training_batches
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.epochs import Validation, samples_of, train_epoch, validate, weights_of
from tlbatch.job.learning import Phase
from tlbatch.job.records import Best, Place
from tlbatch.job.section import SplitName
from tlbatch.model.checkpoint import Average, Unseen, averaged, load_best, load_trained, moving
from tlbatch.model.fitted import FittedHead, Vectors, best_of, fit_head
from tlbatch.model.many import Epochs, train_heads
from tlbatch.model.phase import start_phase
from tlbatch.model.snapshot import Snapshot
from tlbatch.model.thresholds import rounding
from tlbatch.model.turns import turned

log = logging.getLogger(__name__)


def train_phases(session: Session, stores: Mapping[str, str]) -> Validation | None:
    """Run the phases one after another, keep the checkpoint that validates best, and return what the last one says.

    A training that was saved goes on where it was; what the last phase said is not known where that had ended.

    Parameters
    ----------
    stores
        As `tlbatch.filling.fill_cache` returns them.

    Raises
    ------
    StoppedError
        On all ranks, when one was asked to end; a session with a saver has saved by then.
    """
    snapshot = go_on(session)
    begin = snapshot.record.place.phase if snapshot else 0
    last, in_run = None, 0
    for number, phase in enumerate(session.job.phase):
        place, first = Place(phase=number), Epoch(number, 0, in_run)
        in_run += phase.epochs
        if number < begin:
            continue
        if number > begin:
            save(session, place, None)
        feeds = _feeds(session, stores, number)
        if phase.fit or phase.rates:
            with saved_when_stopped(session, place):
                last = _fit_phase(session, feeds, phase, first)
        else:
            last = _run_phase(session, feeds, phase, first, snapshot if number == begin else None)
    end = Place(phase=len(session.job.phase))
    if session.job.train.test_views and not session.job.head.view_mean and len(session.images.rows("val")):
        if begin < end.phase:
            save(session, end, None)
        with saved_when_stopped(session, end):
            _try_views(session)
    session.keeper.clean()
    return last


def _try_views(session: Session) -> None:
    """Let validation judge the mean over the views of an image, with the kept checkpoint; note it if that is better."""
    job, images, model = session.job, session.images, session.model
    session.accelerator.wait_for_everyone()
    best, weights = load_best(session.paths)
    load_trained(model, weights)
    model.to(session.accelerator.device)
    model.thresholds.copy_(
        torch.from_numpy(rounding(model.num_classes))
    )  # the kept score was measured with rounding too
    model.set_cut(job.phase[best.phase].cut, freeze_batch_norm=False)
    views = Views(model.spec.size, job.train.augment)
    workers = num_workers(job.train, session.world, session.accelerator.device.type)
    feed = Feed(images, images.rows("val"), views, None, workers=workers, head=job.head)
    found = validate(session, feed, views)
    better = (found.score or 0.0, -(found.loss or 0.0)) > (best.val_score or 0.0, -(best.val_loss or 0.0))
    log.info(
        "mean over %d views: validation %s, %s", len(views.numbers), found.score, "kept" if better else "not better"
    )
    if better and session.world.is_main:
        kept = {"views": job.train.augment, "val_score": found.score, "val_loss": found.loss}
        best.model_copy(update=kept).save(session.paths.best)
    session.accelerator.wait_for_everyone()


def _fit_phase(session: Session, feeds: Feeds, phase: Phase, first: Epoch) -> Validation:
    """Let rank 0 fit the head at once on all training vectors, or train one a rate, and give it to the others."""
    model, world, keeper = session.model, session.world, session.keeper
    began = time.monotonic()
    model.to(session.accelerator.device)
    model.set_cut(phase.cut, freeze_batch_norm=True)
    session.changed.update(moving(model))
    found: list[tuple[FittedHead, Unseen] | None] = [None]
    if world.is_main:
        vectors = _vectors(session, feeds)
        log.info("%s: %d vectors of %d numbers", phase.fit or "epochs", *vectors.features.shape)
        if phase.fit:
            head = fit_head(phase.fit, vectors, seed=session.job.seed)
        else:
            head = _trained_heads(session, vectors, phase, first)
        best = best_of(head.scores)
        log.info("%s of %s is best: loss %.4f on unseen vectors", best, ", ".join(head.scores), head.scores[best])
        judged = vectors.chosen(head.judged)
        found = [(head, Unseen(head.outputs, judged.labels, np.asarray(judged.groups, np.bytes_), out_of_fold=True))]
    (given,) = broadcast_object_list(found)
    assert given is not None
    fitted, unseen = given
    new = fitted.head.to(session.accelerator.device)
    if len(new) == 1 and isinstance(new[0], nn.Linear):
        model.head[-1] = new[0]  # after the dropout of later phases
    else:
        model.head = new
    validation = validate(session, feeds.val, Views(model.spec.size))
    keeper.offer(_candidate(session, first, validation), model, unseen)
    tried = {one: loss if np.isfinite(loss) else None for one, loss in fitted.scores.items()}
    line = {"phase": first.phase, "fit": phase.fit or "epochs", "tried": tried}
    _tell(session, first, line, validation=validation, seconds=time.monotonic() - began)
    keeper.write(model)
    return validation


def _trained_heads(session: Session, vectors: Vectors, phase: Phase, first: Epoch) -> FittedHead:
    """A head a rate, over the same batches that the phase would take with one."""
    job, size = session.job, session.job.train.batch_size
    views = _views(session)
    column = np.zeros(1 + max(views.numbers), np.int64)
    column[list(views.numbers)] = range(len(views.numbers))

    def at(number: int) -> Epoch:
        return Epoch(first.phase, number, first.in_run + number)

    def batches(number: int) -> Iterator[Positions]:
        samples = samples_of(session, phase, at(number))
        state = State(job.seed, at(number).in_run, 0, session.images.manifest.index_digest)
        for _, own in training_batches(state, len(samples), batch_size=size, rank=0, world_size=1):
            positions, seen = samples.look_up(own)
            yield positions if job.head.view_mean else positions * len(views.numbers) + column[seen]

    epochs = Epochs(
        batches,
        lambda number: weights_of(session, phase, at(number)),
        steps=num_batches(len(samples_of(session, phase, first)), size),
    )
    return train_heads(session.model.head, phase, vectors, epochs, objective=job.objective, seed=job.seed + first.phase)


def _views(session: Session) -> Views:
    return training_views(session.job.train, session.model.spec.size)


def _vectors(session: Session, feeds: Feeds) -> Vectors:
    """The features of all training images in all their views, or of their mean, and what is known of them."""
    images, model, job = session.images, session.model, session.job
    rows = images.index[images.rows("train")]
    views = Views(model.spec.size) if job.head.view_mean else _views(session)
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


def _run_phase(
    session: Session, feeds: Feeds, phase: Phase, first: Epoch, snapshot: Snapshot | None
) -> Validation | None:
    """Its epochs, until validation no longer gets better; then the mean of begin and end, where the job asks for it."""
    if not len(session.images.rows("val")) and (phase.patience or phase.average):
        log.info("no validation images: phase %d takes all its epochs and keeps the last weights", first.phase)
        phase = phase.model_copy(update={"patience": 0, "average": False})
    course = _begin(session, phase, first, snapshot)
    validation = None
    with saved_when_stopped(session, course.place, course):
        while course.epoch.number < phase.epochs and not 0 < phase.patience <= course.without_gain:
            validation = _run_epoch(session, feeds, course)
        if 0 < phase.patience <= course.without_gain:
            log.info("phase %d ends: no better validation for %d epochs", first.phase, phase.patience)
        if course.start is not None:
            validation = _try_average(session, feeds, course, course.start)
    session.keeper.write(session.model)
    course.running.release()
    return validation


def _begin(session: Session, phase: Phase, first: Epoch, snapshot: Snapshot | None) -> Course:
    """The course of a phase at its begin, or where it was saved."""
    model = session.model
    running = start_phase(
        session.accelerator,
        model,
        phase,
        steps_per_epoch=num_batches(len(samples_of(session, phase, first)), session.job.train.batch_size),
        seed=session.job.seed + first.phase,
    )
    session.changed.update(moving(model))
    course = Course(
        running,
        Average(model, phase.ema) if phase.ema else None,
        Average(model, 0.5) if phase.average else None,
        first,
        loss=torch.zeros((), device=session.accelerator.device),
    )
    if snapshot is not None and snapshot.record.under_way:
        resume(session, course, snapshot)
    return course


def _run_epoch(session: Session, feeds: Feeds, course: Course) -> Validation:
    """What is left of an epoch, and its validation; the course then stands at the begin of the next one."""
    model, epoch = session.model, course.epoch
    loss = train_epoch(session, feeds, course)
    seconds = course.spent_s
    with averaged(model, course.moving):
        judging = time.monotonic()
        validation = validate(session, feeds.val, Views(model.spec.size))
        judging = time.monotonic() - judging
        better = session.keeper.offer(_candidate(session, epoch, validation), model, _unseen(session, validation))
    line = {"phase": epoch.phase, "epoch": epoch.number, "loss": loss, "lr": course.running.schedule.get_last_lr()[0]}
    _tell(session, epoch, line | {"val_seconds": judging}, validation=validation, seconds=seconds)
    course.without_gain = 0 if better else course.without_gain + 1
    course.next_epoch()
    return validation


def _unseen(session: Session, validation: Validation) -> Unseen:
    groups = session.images.index["group"][session.images.rows("val")]
    return Unseen(validation.outputs, session.images.labels("val"), groups)


def _try_average(session: Session, feeds: Feeds, course: Course, start: Average) -> Validation:
    """Offer the mean of the weights at the begin and the end of the phase."""
    model, epoch = session.model, course.epoch
    last = Epoch(epoch.phase, epoch.number - 1, epoch.in_run - 1)
    mean = start.copy()
    mean.update(model)  # half of the begin, half of the end
    with averaged(model, mean):
        validation = validate(session, feeds.val, Views(model.spec.size))
        offered = _candidate(session, last, validation, averaged=True)
        better = session.keeper.offer(offered, model, _unseen(session, validation))
    log.info("mean of begin and end: %s", f"kept, validation {validation.score}" if better else "not better")
    return validation


def _feeds(session: Session, stores: Mapping[str, str], phase: int) -> Feeds:
    job, images, size = session.job, session.images, session.model.spec.size
    workers = num_workers(job.train, session.world, session.accelerator.device.type)

    def feed(split: SplitName, views: Views) -> Feed:
        stored = open_stores(job, stores, phase=phase, split=split)
        return Feed(images, images.rows(split), views, stored, workers=workers, head=job.head)

    views = training_views(job.train, size)
    return Feeds(feed("train", views), feed("val", views if job.head.view_mean else Views(size)))


def _tell(
    session: Session, epoch: Epoch, line: Mapping[str, object], *, validation: Validation, seconds: float
) -> None:
    """Log an epoch, or a fit, and add a line to the run's metrics."""
    if not session.world.is_main:
        return
    metric, phase = session.job.metric, session.job.phase[epoch.phase]
    rate = len(samples_of(session, phase, epoch)) * (phase.epochs if phase.rates else 1) / seconds
    shown = "undefined" if validation.score is None else f"{validation.score:.4f}"
    what = f"epoch {epoch.number}: loss {line['loss']:.4f}" if "loss" in line else f"fitted in {seconds:.1f} s"
    log.info("phase %d %s, validation %s %s, %.0f images/s", epoch.phase, what, metric, shown, rate)
    whole = {**line, f"val_{metric}": validation.score, "val_loss": validation.loss}
    whole |= {"seconds": seconds, "images_per_s": rate}
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
