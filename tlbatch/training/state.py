"""The state of a training: what all phases share, what changes from step to step, and how it is saved."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from tlbatch.activations.batches import BatchSource
from tlbatch.config.job import Job
from tlbatch.core.errors import StoppedError
from tlbatch.core.files import write_text
from tlbatch.core.text import counted
from tlbatch.data.image_set import ImageSet
from tlbatch.distributed.process_group import RankContext
from tlbatch.model.attribute_head import restored_head
from tlbatch.model.average import Average
from tlbatch.model.checkpoint import BestCheckpoint
from tlbatch.model.classifier import Classifier
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.world import World
from tlbatch.training.snapshot import Snapshot, SnapshotManager, SnapshotRecord, StateDict, TrainingPosition
from tlbatch.training.step import RunningPhase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingContext:
    """What all phases of a training share."""

    job: Job
    images: ImageSet
    paths: RunPaths
    ranks: RankContext
    model: Classifier
    best_checkpoint: BestCheckpoint
    snapshots: SnapshotManager | None = None
    """None: nothing is saved, as in the trials of strategy = auto."""
    changed: set[str] = field(default_factory=set)
    """Names of the tensors that phases have changed so far."""

    @property
    def world(self) -> World:
        """Rank of this process, and the number of ranks."""
        return self.ranks.world

    @property
    def accelerator(self) -> Accelerator:
        """Accelerator that spans the ranks."""
        return self.ranks.accelerator


@dataclass(frozen=True)
class SplitBatches:
    """Sources of the training and validation samples of a phase."""

    train: BatchSource
    val: BatchSource


@dataclass(frozen=True)
class Epoch:
    """Position of a pass over the training split in the run."""

    phase: int
    number: int
    in_run: int


@dataclass
class PhaseState:
    """State of a running phase: everything that changes from step to step."""

    running: RunningPhase
    moving: Average | None
    """Moving average of the weights over the steps."""
    start: Average | None
    """Weights at the start of the phase."""
    epoch: Epoch
    step: int = 0
    """Number within the epoch."""
    position: int = 0
    """Samples of the epoch that all ranks together have processed."""
    loss: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    """Sum over the steps of the epoch, on this rank."""
    seconds: float = 0.0
    """Time spent on the epoch in earlier attempts."""
    without_gain: int = 0
    """Epochs since validation last improved."""
    began: float = field(default_factory=time.monotonic)

    @property
    def place(self) -> TrainingPosition:
        """Current position."""
        return TrainingPosition(phase=self.epoch.phase, epoch=self.epoch.number, step=self.step, position=self.position)

    @property
    def spent_s(self) -> float:
        """Seconds spent on the epoch so far."""
        return self.seconds + time.monotonic() - self.began

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch = Epoch(self.epoch.phase, self.epoch.number + 1, self.epoch.in_run + 1)
        self.step = self.position = 0
        self.loss = torch.zeros_like(self.loss)
        self.seconds, self.began = 0.0, time.monotonic()


def save(context: TrainingContext, place: TrainingPosition, state: PhaseState | None) -> None:
    """Save the training in its current state, on all ranks together; ``state`` is None between phases."""
    if context.snapshots is None:
        return
    record = SnapshotRecord(
        inputs={}, world_size=1, checksums={},
        place=place,
        under_way=state is not None,
        without_gain=state.without_gain if state else 0,
        seconds=state.spent_s if state else 0.0,
        best=context.best_checkpoint.best,
        metrics=context.paths.metrics.read_text(encoding="utf-8") if context.paths.metrics.exists() else "",
    )  # fmt: skip
    own: StateDict = {"cpu": torch.get_rng_state()}
    if context.accelerator.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(context.accelerator.device)
    if state is not None:
        own |= {"loss": state.loss, "mean_loss": context.accelerator.reduce(state.loss, "mean")}
    with context.ranks.watchdog.expected("saving"):
        context.snapshots.save(record, lambda: _shared(context, state), own, context.accelerator)


class StopRequestedError(Exception):
    """All ranks have agreed to stop here; the text is the signal's name.

    Parameters
    ----------
    again
        See `StoppedError`.
    """

    def __init__(self, by: str | None, *, again: bool) -> None:
        super().__init__(by or "a signal on another rank")
        self.again = again


@contextmanager
def save_when_stopped(
    context: TrainingContext, place: TrainingPosition, state: PhaseState | None = None
) -> Iterator[None]:
    """Save ``state`` if the ranks agree to stop within the block; without a state, ``place`` was saved when it began.

    Raises StoppedError on all ranks.
    """
    try:
        yield
    except StopRequestedError as stop:
        if state is not None:
            place = state.place
            save(context, place, state)
        raise StoppedError(f"stopped by {stop} in {place}", again=stop.again) from None


def restore(context: TrainingContext) -> Snapshot | None:
    """Restore model and best checkpoint from the last snapshot and return it; return None where there is none."""
    snapshot = context.snapshots.latest() if context.snapshots else None
    if snapshot is None:
        if context.world.is_main:
            context.paths.metrics.unlink(missing_ok=True)
        return None
    record, model, world_size = snapshot.record, context.model, context.world.world_size
    log.info("resumes in %s", record.place)
    if record.world_size != world_size:
        log.warning(
            "saved by %s and resumed by %d: every remaining sample of the epoch is used once, but dropout masks "
            "and rounding differ",
            counted(record.world_size, "rank"), world_size,
        )  # fmt: skip
    tensors = snapshot.shared["model"]
    model.head = restored_head(tensors, model.head)
    model.load_state_dict(tensors, strict=False)
    context.changed.update(tensors)
    context.best_checkpoint.load(record.best, snapshot.shared["kept"])
    if context.world.is_main:
        write_text(context.paths.metrics, record.metrics)
    return snapshot


def restore_phase(context: TrainingContext, state: PhaseState, snapshot: Snapshot) -> None:
    """Restore the state of a phase from a snapshot; the random state comes last, as setting up has used it."""
    record, shared, own = snapshot.record, snapshot.shared, snapshot.own
    place, first = record.place, state.epoch
    state.epoch = Epoch(place.phase, place.epoch, first.in_run + place.epoch)
    state.step, state.position = place.step, place.position
    state.without_gain, state.seconds = record.without_gain, record.seconds
    same = record.world_size == context.world.world_size
    state.loss = own["loss" if same else "mean_loss"].to(context.accelerator.device)
    running = state.running
    running.optimizer.load_state_dict(shared["optimizer"])
    running.schedule.load_state_dict(shared["schedule"])
    if context.accelerator.scaler is not None:
        context.accelerator.scaler.load_state_dict(shared["scaler"])
    for tensor, saved in zip(running.anchor.start, shared["anchor"], strict=True):
        tensor.copy_(saved)
    for name, average in (("moving", state.moving), ("start", state.start)):
        for key, tensor in average.tensors.items() if average else ():
            tensor.copy_(shared[name][key])
    if same:
        torch.set_rng_state(own["cpu"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"], context.accelerator.device)


def _shared(context: TrainingContext, state: PhaseState | None) -> StateDict:
    model = context.model
    whole = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    tensors: StateDict = {
        "model": {key: value for key, value in whole.items() if key in context.changed | buffers},
        "kept": context.best_checkpoint.state(),
    }
    if state is None:
        return tensors
    scaler = context.accelerator.scaler
    return tensors | {
        "optimizer": state.running.optimizer.state_dict(),
        "schedule": state.running.schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "anchor": state.running.anchor.start,
        "moving": state.moving.tensors if state.moving else {},
        "start": state.start.tensors if state.start else {},
    }
