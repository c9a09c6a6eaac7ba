"""Progress of a stage: ``progress.json`` for status, and an occasional line in the log."""

import logging
import time
from typing import Literal

from pydantic import ValidationError

from tlbatch.core.errors import UserError
from tlbatch.core.files import to_json, write_text
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Record
from tlbatch.runs.stages import StageName
from tlbatch.runs.world import World

log = logging.getLogger(__name__)
Unit = Literal["images", "views", "steps"]
_SAVE_S = 2.0
_LOG_S = 30.0
_SHARE = 0.05
"""Largest fraction of the time for saves at the ends of pieces, which slow down short epochs on slow file systems."""
_ALLOWANCE_S = 0.1


class Progress(Record):
    """``progress.json``: the progress of the running stage."""

    stage: StageName
    attempt: str
    """As `World.attempt`."""
    where: str
    """The piece of work, e.g. "phase 1 epoch 3"; may be empty."""
    done: int
    total: int
    unit: Unit
    images_per_s: float | None
    """Measured since the piece started in this process; None: not known yet."""
    seconds_left: float | None
    """Remaining time of the piece."""
    metric: str
    """The latest metric, e.g. "validation accuracy 0.9312"; may be empty."""
    time: float
    """Unix seconds."""

    def __str__(self) -> str:
        of = f"step {self.done} of {self.total}" if self.unit == "steps" else f"{self.done} of {self.total} {self.unit}"
        return f"{self.where}: {', '.join([of, *self.pace])}" if self.where else ", ".join([of, *self.pace])

    @property
    def pace(self) -> list[str]:
        """Speed and remaining time, as far as they are known."""
        left = None if self.done >= self.total else self.seconds_left
        speed = [] if self.images_per_s is None else [f"{rate(self.images_per_s)} images/s"]
        return speed + ([] if left is None else [f"{span(left)} left"])


def load_progress(paths: RunPaths) -> Progress | None:
    """Load the latest progress of a run; None if there is none that can be read."""
    try:
        return Progress.model_validate_json(paths.progress.read_bytes())
    except (OSError, ValidationError):
        return None


def span(seconds: float) -> str:
    """Format a duration in a readable unit."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.0f} days"


def rate(per_second: float) -> str:
    """Format a rate, with a decimal if it is low."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.1f}"


def rank_0_of(where: str, world: World) -> str:
    """Name a piece of work for which rank 0 reports its own share only."""
    return f"{where} on rank 0 of {world.world_size}" if world.world_size > 1 else where


class _Piece:
    """A piece of work in this process, whose speed is measured from its first update."""

    def __init__(self, key: tuple[str, str, int], done: int, images: int) -> None:
        self.key = key
        self.done = done
        self._first = done
        self._first_images = images
        self._began = time.monotonic()

    def pace(self, total: int, images: int) -> tuple[float | None, float | None]:
        """Return images per second, and seconds left."""
        took, done = time.monotonic() - self._began, self.done - self._first
        if took <= 0 or done <= 0:
            return None, None
        return (images - self._first_images) / took, (total - self.done) * took / done


class ProgressReporter:
    """Reports the progress of a stage on rank 0, rarely enough to cost nothing."""

    def __init__(self, paths: RunPaths, world: World, stage: StageName, *, saves: bool = True) -> None:
        """Start to report; of several tasks that share a stage only one may write progress.json (``saves``)."""
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
        """Report how much of a piece of work is done; call it at the start too, which makes the speed exact.

        Parameters
        ----------
        images
            Number of images of all ranks that the piece has processed so far; None: as many as are done.
        metric
            Latest metric, kept until there is another.
        """
        if not self._world.is_main:
            return
        if metric is not None:
            self._metric = metric
        key, num_images = (where, unit, total), done if images is None else images
        if self._piece is None or self._piece.key != key or done < self._piece.done:
            self._piece = _Piece(key, done, num_images)
        self._piece.done = done
        now = time.monotonic()
        is_due = now >= self._next_save or (done >= total and self._may_save_end(now))
        if not is_due and now < self._next_log:
            return
        images_per_s, seconds_left = self._piece.pace(total, num_images)
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
        """Return whether saves have taken a small fraction of the time so far."""
        return self._saves and self._spent_s <= _ALLOWANCE_S + _SHARE * (now - self._began)

    def _save(self, progress: Progress) -> None:
        """Write the file atomically; if it cannot be written, continue without."""
        began = time.monotonic()
        try:
            write_text(self._paths.progress, to_json(progress.model_dump(mode="json")), lasting=False)
        except (OSError, UserError) as error:
            log.warning("progress cannot be written (%s); the work continues", error)
            self._saves, self._next_save = False, float("inf")
            return
        now = time.monotonic()
        self._spent_s += now - began
        self._next_save = now + _SAVE_S
