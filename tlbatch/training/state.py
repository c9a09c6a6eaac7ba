"""The course of a training: what all phases share, what changes from step to step, and how that is saved."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from tlbatch.activations.batches import Feed
from tlbatch.config.job import Job
from tlbatch.core.errors import StoppedError
from tlbatch.core.files import write_text
from tlbatch.data.dataset import ImageSet
from tlbatch.distributed.process_group import Crew
from tlbatch.model.attribute_head import restored_head
from tlbatch.model.checkpoint import Average, Keeper
from tlbatch.model.classifier import Classifier
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.world import World
from tlbatch.training.snapshot import Place, Saver, Snapshot, SnapshotRecord, State, told
from tlbatch.training.step import RunningPhase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What all phases of a training share."""

    job: Job
    images: ImageSet
    paths: RunPaths
    crew: Crew
    model: Classifier
    keeper: Keeper
    saver: Saver | None = None
    """None: nothing is saved, as in the trainings by which a strategy is chosen."""
    changed: set[str] = field(default_factory=set)
    """Names of the tensors that the phases up to now have changed."""

    @property
    def world(self) -> World:
        """Which of how many ranks this is."""
        return self.crew.world

    @property
    def accelerator(self) -> Accelerator:
        """What spans the ranks."""
        return self.crew.accelerator


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


@dataclass
class Course:
    """A phase under way: all that changes from step to step."""

    running: RunningPhase
    moving: Average | None
    """Of the weights at every step."""
    start: Average | None
    """The weights at the begin of the phase."""
    epoch: Epoch
    step: int = 0
    """In the epoch."""
    position: int = 0
    """Samples of the epoch that all ranks together have taken."""
    loss: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    """Sum over the steps of the epoch, of this rank."""
    seconds: float = 0.0
    """Spent on the epoch in earlier lives."""
    without_gain: int = 0
    """Epochs since validation was better."""
    began: float = field(default_factory=time.monotonic)

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(phase=self.epoch.phase, epoch=self.epoch.number, step=self.step, position=self.position)

    @property
    def spent_s(self) -> float:
        """On the epoch so far."""
        return self.seconds + time.monotonic() - self.began

    def next_epoch(self) -> None:
        """Stand at the begin of the epoch after this one."""
        self.epoch = Epoch(self.epoch.phase, self.epoch.number + 1, self.epoch.in_run + 1)
        self.step = self.position = 0
        self.loss = torch.zeros_like(self.loss)
        self.seconds, self.began = 0.0, time.monotonic()


def save(session: Session, place: Place, course: Course | None) -> None:
    """Save the training as it stands, all ranks together; ``course`` is that of a phase that is under way."""
    if session.saver is None:
        return
    record = SnapshotRecord(
        inputs={}, world_size=1, checksums={},
        place=place,
        under_way=course is not None,
        without_gain=course.without_gain if course else 0,
        seconds=course.spent_s if course else 0.0,
        best=session.keeper.best,
        metrics=session.paths.metrics.read_text(encoding="utf-8") if session.paths.metrics.exists() else "",
    )  # fmt: skip
    own = _random_state(session.accelerator)
    if course is not None:
        own |= {"loss": course.loss, "mean_loss": session.accelerator.reduce(course.loss, "mean")}
    with session.crew.pulse.expected("saving"):
        session.saver.save(record, lambda: _shared(session, course), own, session.accelerator)


class StopAgreedError(Exception):
    """All ranks have agreed to end here; its text is the signal's name.

    Parameters
    ----------
    again
        See `StoppedError`.
    """

    def __init__(self, by: str | None, *, again: bool) -> None:
        super().__init__(by or "a signal on another rank")
        self.again = again


@contextmanager
def saved_when_stopped(session: Session, place: Place, course: Course | None = None) -> Iterator[None]:
    """Save the course where the ranks agree to end within the block; without one, ``place`` was saved when it began.

    Raises
    ------
    StoppedError
        On all ranks.
    """
    try:
        yield
    except StopAgreedError as stop:
        if course is not None:
            place = course.place
            save(session, place, course)
        raise StoppedError(f"stopped by {stop} in {told(place)}", again=stop.again) from None


def go_on(session: Session) -> Snapshot | None:
    """Give the session what the last snapshot has of the model and the best checkpoint; nothing to begin anew."""
    snapshot = session.saver.latest() if session.saver else None
    if snapshot is None:
        if session.world.is_main:
            session.paths.metrics.unlink(missing_ok=True)
        return None
    record, model = snapshot.record, session.model
    _say(record, session.world)
    tensors = snapshot.shared["model"]
    model.head = restored_head(tensors, model.head)
    model.load_state_dict(tensors, strict=False)
    session.changed.update(tensors)
    session.keeper.load(record.best, snapshot.shared["kept"])
    if session.world.is_main:
        write_text(session.paths.metrics, record.metrics)
    return snapshot


def _say(record: SnapshotRecord, world: World) -> None:
    log.info("goes on in %s", told(record.place))
    if record.world_size != world.world_size:
        log.warning(
            "saved by %d ranks, gone on with by %d: every remaining sample of the epoch is seen once; dropout draws "
            "otherwise, and sums are rounded otherwise",
            record.world_size, world.world_size,
        )  # fmt: skip


def resume(session: Session, course: Course, snapshot: Snapshot) -> None:
    """Give the course of a phase what the snapshot has of it; the random state last, since setting up has drawn."""
    record, shared, own = snapshot.record, snapshot.shared, snapshot.own
    place, first = record.place, course.epoch
    course.epoch = Epoch(place.phase, place.epoch, first.in_run + place.epoch)
    course.step, course.position = place.step, place.position
    course.without_gain, course.seconds = record.without_gain, record.seconds
    same = record.world_size == session.world.world_size
    course.loss = own["loss" if same else "mean_loss"].to(session.accelerator.device)
    running = course.running
    running.optimizer.load_state_dict(shared["optimizer"])
    running.schedule.load_state_dict(shared["schedule"])
    if session.accelerator.scaler is not None:
        session.accelerator.scaler.load_state_dict(shared["scaler"])
    for tensor, saved in zip(running.anchor.start, shared["anchor"], strict=True):
        tensor.copy_(saved)
    for name, average in (("moving", course.moving), ("start", course.start)):
        for key, tensor in average.tensors.items() if average else ():
            tensor.copy_(shared[name][key])
    if same:
        torch.set_rng_state(own["cpu"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"], session.accelerator.device)


def _shared(session: Session, course: Course | None) -> State:
    model = session.model
    whole = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    state: State = {
        "model": {key: value for key, value in whole.items() if key in session.changed | buffers},
        "kept": session.keeper.state(),
    }
    if course is None:
        return state
    scaler = session.accelerator.scaler
    return state | {
        "optimizer": course.running.optimizer.state_dict(),
        "schedule": course.running.schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "anchor": course.running.anchor.start,
        "moving": course.moving.tensors if course.moving else {},
        "start": course.start.tensors if course.start else {},
    }


def _random_state(accelerator: Accelerator) -> State:
    state: State = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return state
