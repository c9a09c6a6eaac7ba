"""The phases of a job, run one after another over all ranks."""

import logging
import time
from collections.abc import Mapping

import torch

from tlbatch.activations.batches import BatchSource
from tlbatch.activations.store import open_stores
from tlbatch.config.base import SplitName
from tlbatch.config.training import Phase
from tlbatch.core.text import counted
from tlbatch.data.loader import num_workers
from tlbatch.data.sampler import num_batches
from tlbatch.data.views import Views, training_views
from tlbatch.metrics.thresholds import rounding
from tlbatch.model.average import Average, averaged, moving
from tlbatch.model.checkpoint import OutOfFold, load_trained
from tlbatch.training.fit_head import fit_phase
from tlbatch.training.loop import Validation, checkpoint_candidate, log_epoch, samples_of, train_epoch, validate
from tlbatch.training.snapshot import Snapshot, TrainingPosition
from tlbatch.training.state import (
    Epoch,
    PhaseState,
    SplitBatches,
    TrainingContext,
    restore,
    restore_phase,
    save,
    save_when_stopped,
)
from tlbatch.training.step import start_phase

log = logging.getLogger(__name__)


def train_phases(context: TrainingContext, stores: Mapping[str, str]) -> Validation | None:
    """Run the phases in order, keep the best checkpoint by validation, and return the last phase's validation.

    A training with a snapshot resumes there. If its last phase had ended by then, its validation is not known: None.

    Parameters
    ----------
    stores
        Names of the cached activations, as `tlbatch.activations.fill.fill_cache` returns them.

    Raises
    ------
    StoppedError
        On all ranks, when one was asked to stop; a context with a snapshot manager has saved by then.
    """
    snapshot = restore(context)
    begin = snapshot.record.place.phase if snapshot else 0
    last, in_run = None, 0
    for number, phase in enumerate(context.job.phase):
        place, first = TrainingPosition(phase=number), Epoch(number, 0, in_run)
        in_run += phase.epochs
        if number < begin:
            continue
        if number > begin:
            save(context, place, None)
        batches = _split_batches(context, stores, number)
        if phase.fit or phase.lr_grid:
            with save_when_stopped(context, place):
                last = fit_phase(context, batches, phase, first)
        else:
            last = _run_phase(context, batches, phase, first, snapshot if number == begin else None)
    end = TrainingPosition(phase=len(context.job.phase))
    if context.job.train.tta and not context.job.head.view_mean and len(context.images.rows("val")):
        if begin < end.phase:
            save(context, end, None)
        with save_when_stopped(context, end):
            _try_views(context)
    context.best_checkpoint.clean()
    return last


def _try_views(context: TrainingContext) -> None:
    """Validate the kept checkpoint on the mean over an image's views (TTA), and record it if that is better."""
    job, images, model = context.job, context.images, context.model
    context.accelerator.wait_for_everyone()
    best, weights = context.paths.load_best()
    load_trained(model, weights)
    model.to(context.accelerator.device)
    model.thresholds.copy_(torch.from_numpy(rounding(model.num_classes)))  # as when the kept score was measured
    model.set_cut(job.phase[best.phase].cut, freeze_batch_norm=False)
    views = Views(model.spec.size, job.train.augment)
    workers = num_workers(job.train, context.world, context.accelerator.device.type)
    source = BatchSource(images, images.rows("val"), views, None, workers=workers, head=job.head)
    found = validate(context, source, views)
    better = (found.score or 0.0, -(found.loss or 0.0)) > (best.val_score or 0.0, -(best.val_loss or 0.0))
    outcome = "kept" if better else "not better"
    log.info("mean over %d views: validation %s, %s", len(views.numbers), found.score, outcome)
    if better and context.world.is_main:
        kept = {"views": job.train.augment, "val_score": found.score, "val_loss": found.loss}
        best.model_copy(update=kept).save(context.paths.best)
    context.accelerator.wait_for_everyone()


def _run_phase(
    context: TrainingContext, batches: SplitBatches, phase: Phase, first: Epoch, snapshot: Snapshot | None
) -> Validation | None:
    """Run the epochs of a phase until validation stops improving; then try the average of first and last weights."""
    if not len(context.images.rows("val")) and (phase.patience or phase.average):
        log.info("no validation images: phase %d runs all its epochs and keeps the last weights", first.phase)
        phase = phase.model_copy(update={"patience": 0, "average": False})
    state = _start_phase(context, phase, first, snapshot)
    validation = None
    with save_when_stopped(context, state.place, state):
        while state.epoch.number < phase.epochs and not 0 < phase.patience <= state.without_gain:
            validation = _run_epoch(context, batches, state)
        if 0 < phase.patience <= state.without_gain:
            waited = counted(phase.patience, "epoch")
            log.info("phase %d stops early: validation did not improve for %s", first.phase, waited)
        if state.start is not None:
            validation = _try_average(context, batches, state, state.start)
    context.best_checkpoint.write(context.model)
    state.running.release()
    return validation


def _start_phase(context: TrainingContext, phase: Phase, first: Epoch, snapshot: Snapshot | None) -> PhaseState:
    """Return the state of a phase at its start, or as the snapshot saved it."""
    model = context.model
    running = start_phase(
        context.accelerator,
        model,
        phase,
        steps_per_epoch=num_batches(len(samples_of(context, phase, first)), context.job.train.batch_size),
        seed=context.job.seed + first.phase,
    )
    context.changed.update(moving(model))
    state = PhaseState(
        running,
        Average(model, phase.ema) if phase.ema else None,
        Average(model, 0.5) if phase.average else None,
        first,
        loss=torch.zeros((), device=context.accelerator.device),
    )
    if snapshot is not None and snapshot.record.under_way:
        restore_phase(context, state, snapshot)
    return state


def _run_epoch(context: TrainingContext, batches: SplitBatches, state: PhaseState) -> Validation:
    """Run the rest of an epoch and its validation, then move the state to the start of the next one."""
    model, epoch = context.model, state.epoch
    loss = train_epoch(context, batches, state)
    seconds = state.spent_s
    with averaged(model, state.moving):
        began = time.monotonic()
        validation = validate(context, batches.val, Views(model.spec.size))
        val_seconds = time.monotonic() - began
        offered = checkpoint_candidate(context, epoch, validation)
        better = context.best_checkpoint.consider(offered, model, _out_of_fold(context, validation))
    line = {"phase": epoch.phase, "epoch": epoch.number, "loss": loss, "lr": state.running.schedule.get_last_lr()[0]}
    log_epoch(context, epoch, line | {"val_seconds": val_seconds}, validation=validation, seconds=seconds)
    state.without_gain = 0 if better else state.without_gain + 1
    state.next_epoch()
    return validation


def _out_of_fold(context: TrainingContext, validation: Validation) -> OutOfFold:
    groups = context.images.index["group"][context.images.rows("val")]
    return OutOfFold(validation.outputs, context.images.labels("val"), groups)


def _try_average(context: TrainingContext, batches: SplitBatches, state: PhaseState, start: Average) -> Validation:
    """Validate the average of the weights at the start and end of the phase; keep it if it is better."""
    model, epoch = context.model, state.epoch
    last = Epoch(epoch.phase, epoch.number - 1, epoch.in_run - 1)
    mean = start.copy()
    mean.update(model)  # half of the start, half of the end
    with averaged(model, mean):
        validation = validate(context, batches.val, Views(model.spec.size))
        offered = checkpoint_candidate(context, last, validation, averaged=True)
        better = context.best_checkpoint.consider(offered, model, _out_of_fold(context, validation))
    outcome = f"kept, validation {validation.score}" if better else "not better"
    log.info("average of first and last weights: %s", outcome)
    return validation


def _split_batches(context: TrainingContext, stores: Mapping[str, str], phase: int) -> SplitBatches:
    job, images, size = context.job, context.images, context.model.spec.size
    workers = num_workers(job.train, context.world, context.accelerator.device.type)

    def source(split: SplitName, views: Views) -> BatchSource:
        stored = open_stores(job, stores, phase=phase, split=split)
        return BatchSource(images, images.rows(split), views, stored, workers=workers, head=job.head)

    views = training_views(job.train, size)
    return SplitBatches(source("train", views), source("val", views if job.head.view_mean else Views(size)))
