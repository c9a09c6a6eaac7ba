"""The phases of a job, one after another over all ranks."""

import logging
import time
from collections.abc import Mapping

import torch

from tlbatch.activations.batches import Feed
from tlbatch.activations.store import open_stores
from tlbatch.config.base import SplitName
from tlbatch.config.training import Phase
from tlbatch.data.dataset import num_workers
from tlbatch.data.sampler import num_batches
from tlbatch.data.views import Views, training_views
from tlbatch.metrics.thresholds import rounding
from tlbatch.model.checkpoint import Average, Unseen, averaged, load_best, load_trained, moving
from tlbatch.training.fit_head import fit_phase
from tlbatch.training.loop import Validation, candidate, samples_of, tell, train_epoch, validate
from tlbatch.training.snapshot import Place, Snapshot
from tlbatch.training.state import Course, Epoch, Feeds, Session, go_on, resume, save, saved_when_stopped
from tlbatch.training.step import start_phase

log = logging.getLogger(__name__)


def train_phases(session: Session, stores: Mapping[str, str]) -> Validation | None:
    """Run the phases one after another, keep the checkpoint that validates best, and return what the last one says.

    A training that was saved goes on where it was; what the last phase said is not known where that had ended.

    Parameters
    ----------
    stores
        As `tlbatch.activations.fill.fill_cache` returns them.

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
                last = fit_phase(session, feeds, phase, first)
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
        better = session.keeper.offer(candidate(session, epoch, validation), model, _unseen(session, validation))
    line = {"phase": epoch.phase, "epoch": epoch.number, "loss": loss, "lr": course.running.schedule.get_last_lr()[0]}
    tell(session, epoch, line | {"val_seconds": judging}, validation=validation, seconds=seconds)
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
        offered = candidate(session, last, validation, averaged=True)
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
