"""Training and validation of an epoch, over all ranks."""

import itertools
import json
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import broadcast, gather_object

from tlbatch.activations.batches import BatchSource
from tlbatch.config.training import Phase
from tlbatch.core.errors import UserError
from tlbatch.core.typing import Ints
from tlbatch.data.dataset import SampleBatch
from tlbatch.data.sampler import SamplerState, class_balanced, num_batches, prediction_batches, training_batches
from tlbatch.data.sources.base import shown_key
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.metrics.scores import mean_log_loss, score
from tlbatch.model.classifier import predicted
from tlbatch.model.phrase_decoder import PhraseHead, outputs_named, same_phrases, unpacked
from tlbatch.runs.records import Best
from tlbatch.training.state import Epoch, PhaseState, SplitBatches, StopRequestedError, TrainingContext, save
from tlbatch.training.step import class_weights

log = logging.getLogger(__name__)
_DIVERGED = "the validation loss is not finite: training diverged; lower phase.N.optimizer.lr"


class Validation(NamedTuple):
    """Validation results of a checkpoint; scores are None where undefined."""

    score: float | None
    loss: float | None
    outputs: npt.NDArray[np.float32]
    """Outputs of the head, (n, num_outputs), in the order of the split."""


def samples_of(context: TrainingContext, phase: Phase, epoch: Epoch) -> Samples:
    """Return the training samples of an epoch."""
    job, images = context.job, context.images
    strength = phase.balance_decay**epoch.number
    picked = None
    if phase.balance == "sampler":
        picked = class_balanced(images.labels("train"), strength=strength, seed=job.seed, epoch=epoch.in_run)
    views = training_views(job.train, context.model.spec.size)
    return Samples(
        len(images.rows("train")), views, job.seed, epoch.in_run, every_view=job.train.every_view, picked=picked
    )


def weights_of(context: TrainingContext, phase: Phase, epoch: Epoch) -> torch.Tensor:
    """Return the class weights in the loss of an epoch, (num_classes,)."""
    if context.images.manifest.tags:
        return torch.ones(0)
    labels = torch.from_numpy(context.images.labels("train"))
    counts = torch.bincount(labels, minlength=len(context.images.manifest.classes))
    return class_weights(counts, strength=phase.balance_decay**epoch.number if phase.balance == "loss" else 0.0)


def train_epoch(context: TrainingContext, batches: SplitBatches, state: PhaseState) -> float:
    """Run the rest of a pass over the training split; return the mean loss of the complete pass over all ranks.

    Raises StopRequestedError on all ranks at the same step.
    """
    job, world, running, epoch = context.job, context.world, state.running, state.epoch
    samples = samples_of(context, running.phase, epoch)
    weights = weights_of(context, running.phase, epoch)
    sampler = SamplerState(job.seed, epoch.in_run, state.position)
    size = job.train.batch_size
    own = training_batches(sampler, len(samples), batch_size=size, rank=world.rank, world_size=world.world_size)
    sizes, shares = itertools.tee(own)
    steps = num_batches(len(samples), size)
    consensus = RankConsensus(context, state)
    running.model.train()
    update = partial(context.ranks.reporter.update, unit="steps", where=f"phase {epoch.phase} epoch {epoch.number}")
    update(state.step, steps, images=state.position)
    loaded = batches.train.batches(samples, (share for _, share in shares))
    with context.ranks.watchdog.expected(f"phase {epoch.phase} epoch {epoch.number}"):
        for (size, _), batch in zip(sizes, loaded, strict=True):
            consensus.sync()
            loss = running.step(batch.inputs, batch.labels, batch.symmetry, global_size=size, class_weights=weights)
            consensus.add(batch, loss)
            if state.moving is not None:
                state.moving.update(context.model)
            state.step += 1
            state.position += size
            context.ranks.watchdog.step_done()
            update(state.step, steps, images=state.position)
        consensus.sync(at_once=True)
    return float(context.accelerator.reduce(state.loss, "mean")) / steps


class RankConsensus:
    """Lets all ranks agree, about once a second, whether to stop or save, and whether the loss is finite."""

    def __init__(self, context: TrainingContext, state: PhaseState) -> None:
        self._context, self._state = context, state
        self._recent: list[tuple[int, Ints, torch.Tensor]] = []
        self._next, self._before, self._since = state.step, state.step, time.monotonic()

    def add(self, batch: SampleBatch, loss: torch.Tensor) -> None:
        """Record the loss of a step."""
        self._state.loss += loss
        self._recent.append((self._state.step, batch.positions.numpy(), loss))

    def sync(self, *, at_once: bool = False) -> None:
        """Agree with the other ranks, at some of the steps only.

        Raises StopRequestedError or UserError on all ranks at the same step.
        """
        context, state = self._context, self._state
        if state.step < self._next and not at_once:
            return
        finite, stop = bool(torch.isfinite(state.loss)), context.ranks.stop
        due = context.world.is_main and context.snapshots is not None and context.snapshots.is_due()
        each = (time.monotonic() - self._since) / max(1, state.step - self._before)
        flags = torch.tensor([not finite, bool(stop), stop.wants_again, due, each], device=context.accelerator.device)
        with context.ranks.watchdog.waiting():
            broken, stopped, again, save_now, seconds = context.accelerator.reduce(flags, "sum").tolist()
        if broken:
            self._refuse()
        if stopped:
            raise StopRequestedError(stop.signal_name, again=bool(again))
        if save_now:
            save(context, state.place, state)
        self._recent.clear()
        in_a_second = int(context.world.world_size / max(seconds, 1e-3))
        steps = max(1, min(in_a_second, 2 * (state.step - self._before)))
        self._next, self._before, self._since = state.step + steps, state.step, time.monotonic()

    def _refuse(self) -> NoReturn:
        context, phase = self._context, self._state.epoch.phase
        context.best_checkpoint.write(context.model)
        kept = "" if context.best_checkpoint.best is None else "; the best checkpoint so far is kept"
        raise UserError(
            f"the loss is not finite in phase {phase} epoch {self._state.epoch.number} {self._where()}; lower "
            f"phase.{phase}.optimizer.lr, or set phase.{phase}.grad_clip{kept}"
        )

    def _where(self) -> str:
        for step, positions, loss in self._recent:
            if not torch.isfinite(loss):
                rows = self._context.images.rows("train")[positions]
                keys = [shown_key(key.decode()) for key in self._context.images.index["key"][rows]]
                return f"step {step} (images {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''})"
        return "on another rank"


def validate(context: TrainingContext, source: BatchSource, views: Views) -> Validation:
    """Compute the job's metric and the log loss on the validation split, over all ranks, each image once.

    The probabilities of several views are averaged, and so are the outputs that are returned. Raises StopRequestedError
    on all ranks, when one was asked to stop.
    """
    world, model, ranks, began = context.world, context.model, context.ranks, time.monotonic()
    if world.world_size > 1:  # the running statistics of rank 0, as before the forward pass of a training step
        for buffer in model.buffers():
            broadcast(buffer)
    labels = context.images.labels("val")
    samples = Samples(len(labels), views, every_view=len(views.numbers) > 1)
    batches = prediction_batches(
        len(samples), batch_size=context.job.train.batch_size, rank=world.rank, world_size=world.world_size
    )
    own: list[tuple[Ints, npt.NDArray[np.float32]]] = []
    with ranks.watchdog.expected("validation"):
        for batch in source.batches(samples, batches):
            if ranks.stop:
                break
            known = batch.labels if isinstance(model.head, PhraseHead) else None
            found = predicted(model, batch.inputs, batch.symmetry, context.accelerator, labels=known).numpy()
            own.append((batch.positions.numpy(), found))
            ranks.watchdog.step_done()
    with ranks.shares_of_others(time.monotonic() - began):
        gathered = gather_object([(bool(ranks.stop), ranks.stop.wants_again, own)])
    if any(stopped for stopped, _, _ in gathered):
        raise StopRequestedError(ranks.stop.signal_name, again=any(again for _, again, _ in gathered))
    everyone = [found for _, _, of_rank in gathered for found in of_rank]
    if not everyone:
        return Validation(None, None, np.empty((0, 1), np.float32))
    order = np.argsort(np.concatenate([positions for positions, _ in everyone]), kind="stable")
    assert len(order) == len(samples), "validation must cover every view of every image once"
    outputs = np.concatenate([found for _, found in everyone])[order]
    if isinstance(model.head, PhraseHead):
        return _validated_phrases(context, model.head, outputs)
    table = model.probabilities(torch.from_numpy(outputs).to(context.accelerator.device)).cpu().numpy()
    if not np.isfinite(table).all():
        raise UserError(_DIVERGED)
    table, outputs = (found.reshape(len(labels), -1, found.shape[1]).mean(axis=1) for found in (table, outputs))
    metric = score(context.job.metric, labels, table.argmax(axis=1))
    return Validation(metric, mean_log_loss(labels, table), outputs)


def _validated_phrases(context: TrainingContext, head: PhraseHead, outputs: npt.NDArray[np.float32]) -> Validation:
    """Return the fraction of phrases that match exactly, and their mean loss."""
    written, _, losses = unpacked(torch.from_numpy(outputs))
    if not torch.isfinite(losses).all():
        raise UserError(_DIVERGED)
    truth = head.phrases(torch.from_numpy(context.images.tags("val")).to(head.of_class.device)).cpu()
    return Validation(float(same_phrases(written, truth).float().mean()), float(losses.mean()), outputs)


def log_epoch(
    context: TrainingContext, epoch: Epoch, line: Mapping[str, object], *, validation: Validation, seconds: float
) -> None:
    """Log an epoch or a fit, and append a line to the run's metrics."""
    if not context.world.is_main:
        return
    metric, phase = context.job.metric, context.job.phase[epoch.phase]
    rate = len(samples_of(context, phase, epoch)) * (phase.epochs if phase.lr_grid else 1) / seconds
    shown = "undefined" if validation.score is None else f"{validation.score:.4f}"
    what = f"epoch {epoch.number}: loss {line['loss']:.4f}" if "loss" in line else f"fitted in {seconds:.1f} s"
    log.info("phase %d %s, validation %s %s, %.0f images/s", epoch.phase, what, metric, shown, rate)
    found = {f"val_{metric}": validation.score, "val_loss": validation.loss}
    with context.paths.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, **found, "seconds": seconds, "images_per_s": rate}) + "\n")


def checkpoint_candidate(
    context: TrainingContext, epoch: Epoch, validation: Validation, *, averaged: bool = False
) -> Best:
    """Return the record of an epoch's checkpoint, for `BestCheckpoint.consider`."""
    return Best(
        weights=f"phase{epoch.phase}-epoch{epoch.number}{'-average' if averaged else ''}.safetensors",
        digest="",
        phase=epoch.phase,
        epoch=epoch.number,
        metric=context.job.metric,
        val_score=validation.score,
        val_loss=validation.loss,
        classes=outputs_named(context.job, context.images.manifest),
        max_tags=context.model.head.max_tags if isinstance(context.model.head, PhraseHead) else 0,
        num_parameters=context.model.num_parameters(),
    )
