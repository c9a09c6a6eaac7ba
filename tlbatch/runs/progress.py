"""How far a stage is: ``progress.json`` for those who watch, and a plain line now and then in the log."""

import logging
import time
from typing import Literal

from pydantic import ValidationError

from tlbatch.core.errors import UserError
from tlbatch.core.files import to_json, write_text
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Record, StageName
from tlbatch.runs.world import World

log = logging.getLogger(__name__)
Unit = Literal["images", "views", "steps"]
_SAVE_S = 2.0
_LOG_S = 30.0
_SHARE = 0.05
"""Of the time, for the saves at the ends of pieces: on a slow file system many short epochs must not wait for them."""
_ALLOWANCE_S = 0.1


class Progress(Record):
    """``progress.json``: how far the stage that is at work is."""

    stage: StageName
    attempt: str
    """As `World.attempt`."""
    where: str
    """The piece of work, e.g. "phase 1 epoch 3"; may be empty."""
    done: int
    total: int
    unit: Unit
    images_per_s: float | None
    """Measured since the piece began in this process; None: nothing to measure yet."""
    seconds_left: float | None
    """Of the piece."""
    metric: str
    """The last that is known, e.g. "validation accuracy 0.9312"; may be empty."""
    time: float
    """Unix seconds."""

    def __str__(self) -> str:
        of = f"step {self.done} of {self.total}" if self.unit == "steps" else f"{self.done} of {self.total} {self.unit}"
        return f"{self.where}: {', '.join([of, *self.pace])}" if self.where else ", ".join([of, *self.pace])

    @property
    def pace(self) -> list[str]:
        """How fast it goes and how long it will take, as far as that is known."""
        left = None if self.done >= self.total else self.seconds_left
        speed = [] if self.images_per_s is None else [f"{rate(self.images_per_s)} images/s"]
        return speed + ([] if left is None else [f"{span(left)} left"])


def load_progress(paths: RunPaths) -> Progress | None:
    """What a run last told; None where it has told nothing that can be read."""
    try:
        return Progress.model_validate_json(paths.progress.read_bytes())
    except (OSError, ValidationError):
        return None


def span(seconds: float) -> str:
    """A time in the unit that people would use."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.0f} days"


def rate(per_second: float) -> str:
    """A speed, with a decimal where it is slow."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.1f}"


def rank_0_of(where: str, world: World) -> str:
    """Names a piece of work of which rank 0 tells only its own share."""
    return f"{where} on rank 0 of {world.world_size}" if world.world_size > 1 else where


class _Piece:
    """A stretch of work in this process, whose speed is measured from the first that was told of it."""

    def __init__(self, key: tuple[str, str, int], done: int, images: int) -> None:
        self.key = key
        self.done = done
        self._first = done
        self._first_images = images
        self._began = time.monotonic()

    def pace(self, total: int, images: int) -> tuple[float | None, float | None]:
        """Images a second, and seconds left."""
        took, done = time.monotonic() - self._began, self.done - self._first
        if took <= 0 or done <= 0:
            return None, None
        return (images - self._first_images) / took, (total - self.done) * took / done


class ProgressReporter:
    """Tells on rank 0 how far a stage is, seldom enough to cost nothing."""

    def __init__(self, paths: RunPaths, world: World, stage: StageName, *, saves: bool = True) -> None:
        """Begin to tell.

        Parameters
        ----------
        saves
            Whether progress.json is written; of several tasks that share a stage only one may.
        """
        self._paths = paths
        self._world = world
        self._stage: StageName = stage
        self._saves = saves
        self._metric = ""
        self._piece: _Piece | None = None
        self._began = time.monotonic()
        self._next_save = self._began if saves else float("inf")
        self._next_log = self._began + _LOG_S
        self._spent_s = 0.0

    def update(
        self,
        done: int,
        total: int,
        *,
        unit: Unit,
        where: str = "",
        images: int | None = None,
        metric: str | None = None,
    ) -> None:
        """Say that so much of a piece of work is done; call it at its begin too, which makes the speed exact.

        Parameters
        ----------
        images
            Images, of all ranks, that the piece has seen so far; None: as many as are done.
        metric
            Kept until there is another.
        """
        if not self._world.is_main:
            return
        if metric is not None:
            self._metric = metric
        key, seen = (where, unit, total), done if images is None else images
        if self._piece is None or self._piece.key != key or done < self._piece.done:
            self._piece = _Piece(key, done, seen)
        self._piece.done = done
        now = time.monotonic()
        is_due = now >= self._next_save or (done >= total and self._may_save_end(now))
        if not is_due and now < self._next_log:
            return
        images_per_s, seconds_left = self._piece.pace(total, seen)
        progress = Progress(
            stage=self._stage, attempt=self._world.attempt, where=where, done=done, total=total, unit=unit,
            images_per_s=images_per_s, seconds_left=seconds_left, metric=self._metric, time=time.time(),
        )  # fmt: skip
        if is_due:
            self._save(progress)
        if now >= self._next_log:
            self._next_log = now + _LOG_S
            log.info("%s", progress)

    def _may_save_end(self, now: float) -> bool:
        """Whether the saves so far took little of the time."""
        return self._saves and self._spent_s <= _ALLOWANCE_S + _SHARE * (now - self._began)

    def _save(self, progress: Progress) -> None:
        """Write the file, whole or not at all; work goes on where it cannot be written."""
        began = time.monotonic()
        try:
            write_text(self._paths.progress, to_json(progress.model_dump(mode="json")), lasting=False)
        except (OSError, UserError) as error:
            log.warning("how far it is cannot be written (%s); the work goes on", error)
            self._saves, self._next_save = False, float("inf")
            return
        now = time.monotonic()
        self._spent_s += now - began
        self._next_save = now + _SAVE_S
