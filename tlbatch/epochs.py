"""An epoch of training and its validation, over all ranks."""

import itertools
import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from tlbatch.data.feed import Feed
from tlbatch.data.loader import Batch, ImageSet
from tlbatch.data.order import Positions, State, balanced, num_batches, prediction_batches, training_batches
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.job.config import Job
from tlbatch.job.errors import StoppedError, UserError
from tlbatch.job.learning import Phase
from tlbatch.job.paths import RunPaths
from tlbatch.job.stop import WAY_OUT, StopFlag
from tlbatch.job.world import World
from tlbatch.model.checkpoint import Average, Keeper
from tlbatch.model.classifier import Classifier, predicted
from tlbatch.model.phase import RunningPhase, class_weights
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
    keeper: Keeper


@dataclass(frozen=True)
class Feeds:
    """Where a phase reads its samples."""

    train: Feed
    val: Feed


@dataclass(frozen=True)
class Epoch:
    """A pass over the training split: its place in the run."""

    phase: int
    number: int
    in_run: int


class Validation(NamedTuple):
    """What the validation split says of a checkpoint; scores are None where undefined."""

    score: float | None
    loss: float | None
    outputs: npt.NDArray[np.float32]
    """Of the head, (n, num_outputs), in the order of the split."""


def samples_of(session: Session, phase: Phase, epoch: Epoch) -> Samples:
    """What an epoch takes."""
    job, images = session.job, session.images
    strength = phase.balance_decay**epoch.number
    picked = None
    if phase.balance == "sampler":
        picked = balanced(images.labels("train"), strength=strength, seed=job.seed, epoch=epoch.in_run)
    views = training_views(job.train, session.model.spec.size)
    return Samples(
        len(images.rows("train")), views, job.seed, epoch.in_run, every_view=job.train.every_view, picked=picked
    )


def weights_of(session: Session, phase: Phase, epoch: Epoch) -> torch.Tensor:
    """Of the classes in the loss of an epoch, (num_classes,)."""
    counts = torch.from_numpy(session.images.counts("train"))
    return class_weights(counts, strength=phase.balance_decay**epoch.number if phase.balance == "loss" else 0.0)


def train_epoch(session: Session, feeds: Feeds, running: RunningPhase, epoch: Epoch, moving: Average | None) -> float:
    """One pass over the training split; the mean loss over all ranks."""
    job, world = session.job, session.world
    samples = samples_of(session, running.phase, epoch)
    weights = weights_of(session, running.phase, epoch)
    state = State(job.seed, epoch.in_run, 0, session.images.manifest.index_digest)
    sizes, shares = itertools.tee(
        training_batches(
            state, len(samples), batch_size=job.train.batch_size, rank=world.rank, world_size=world.world_size
        )
    )
    steps = num_batches(len(samples), job.train.batch_size)
    watch = LossWatch(session, epoch)
    running.model.train()
    told = time.monotonic()
    loaded = feeds.train.batches(samples, (own for _, own in shares))
    for step, ((size, _), own) in enumerate(zip(sizes, loaded, strict=True)):
        watch.look(step)
        loss = running.step(own.inputs, own.labels, own.turns, global_size=size, class_weights=weights)
        watch.add(step, own, loss)
        if moving is not None:
            moving.update(session.model)
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            log.info("phase %d epoch %d: step %d of %d", epoch.phase, epoch.number, step + 1, steps)
    watch.look(0)
    return running.mean_over_ranks(watch.total) / steps


class LossWatch:
    """Adds up the losses, and every few steps lets all ranks agree to leave.

    They do when one was asked to stop, or a loss is not finite.
    """

    def __init__(self, session: Session, epoch: Epoch) -> None:
        self.total = torch.zeros((), device=session.accelerator.device)
        self._session = session
        self._epoch = epoch
        self._recent: list[tuple[int, Batch, torch.Tensor]] = []

    def add(self, step: int, batch: Batch, loss: torch.Tensor) -> None:
        """Take in a step."""
        self.total += loss
        self._recent.append((step, batch, loss))

    def look(self, step: int) -> None:
        """Agree with the other ranks, at some of the steps.

        Raises
        ------
        StoppedError, UserError
            On all ranks at the same step.
        """
        if step % _CHECK_STEPS:
            return
        session = self._session
        finite = bool(torch.isfinite(self.total))
        flags = torch.tensor([float(bool(session.stop)), float(not finite)], device=session.accelerator.device)
        stopped, broken = session.accelerator.reduce(flags, "sum").tolist()
        place = f"phase {self._epoch.phase} epoch {self._epoch.number}"
        if broken:
            session.keeper.write(session.model)
            kept = "" if session.keeper.best is None else "; the best checkpoint so far is kept"
            raise UserError(
                f"the loss is not finite in {place} {self._where()}; lower phase.{self._epoch.phase}.optimizer.lr, or "
                f"set phase.{self._epoch.phase}.grad_clip{kept}"
            )
        if stopped:
            name = session.stop.signal_name or "a signal on another rank"
            raise StoppedError(f"stopped by {name} in {place} step {step} {WAY_OUT}")
        self._recent.clear()

    def _where(self) -> str:
        for step, batch, loss in self._recent:
            if not torch.isfinite(loss):
                rows = self._session.images.rows("train")[batch.positions.numpy()]
                keys = [key.decode() for key in self._session.images.index["key"][rows]]
                return f"step {step} (images {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''})"
        return "on another rank"


def validate(session: Session, feed: Feed, views: Views) -> Validation:
    """The job's metric and the log loss on the validation split, over all ranks, each image once.

    Of several views the probabilities are averaged, and so are the outputs that are returned.
    """
    world, model = session.world, session.model
    labels = session.images.labels("val")
    samples = Samples(len(labels), views, every_view=len(views.numbers) > 1)
    batches = prediction_batches(
        len(samples), batch_size=session.job.train.batch_size, rank=world.rank, world_size=world.world_size
    )
    own = [
        (batch.positions.numpy(), predicted(model, batch.inputs, batch.turns, session.accelerator).numpy())
        for batch in feed.batches(samples, batches)
    ]
    everyone: list[tuple[Positions, npt.NDArray[np.float32]]] = gather_object(own)
    if not everyone:
        return Validation(None, None, np.empty((0, 1), np.float32))
    order = np.argsort(np.concatenate([positions for positions, _ in everyone]), kind="stable")
    assert len(order) == len(samples), "validation must see every view of every image once"
    outputs = np.concatenate([found for _, found in everyone])[order]
    table = model.probabilities(torch.from_numpy(outputs).to(session.accelerator.device)).cpu().numpy()
    if not np.isfinite(table).all():
        raise UserError("the loss is not finite on validation images: training diverged; lower phase.N.optimizer.lr")
    table, outputs = (found.reshape(len(labels), -1, found.shape[1]).mean(axis=1) for found in (table, outputs))
    metric = score(session.job.metric, labels, table.argmax(axis=1), num_classes=model.num_classes)
    return Validation(metric, mean_log_loss(labels, table), outputs)
