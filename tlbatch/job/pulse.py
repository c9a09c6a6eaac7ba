"""A rank that stands still ends the job, and says where it stood."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Literal, Self

Stillness = Literal["hung", "lost"]
"""By itself, or in waiting for another rank."""
_FIRST = 10
"""Times the limit that the first step may take, which starts workers and compiles, and times the longest step later."""
_WAITS = ("torch/distributed/", "torch/autograd/")


class Pulse:
    """Watches from a thread whether the main one still gets on with a loop that beats.

    Between two beats may pass the limit, or ten times what the longest step took.

    Parameters
    ----------
    limit_s
        Seconds.
    tell
        Is given what is wrong when the time is over, just before the process ends.
    alone
        Whether there is no other rank to wait for.
    """

    def __init__(self, limit_s: float, tell: Callable[[Stillness, str], None], *, alone: bool) -> None:
        self._limit_s, self._tell, self._alone = limit_s, tell, alone
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._what = ""
        self._waits = False
        self._last = self._longest = self._grace = 0.0
        self._beats = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def beat(self) -> None:
        """Say that a step is done."""
        now = time.monotonic()
        took = now - self._last
        self._longest = max(self._longest, took) if self._beats else took / _FIRST
        self._last = now
        self._beats += 1

    @contextmanager
    def expected(self, what: str, *, grace_s: float | None = None) -> Iterator[None]:
        """Expect beats within the block.

        Parameters
        ----------
        grace_s
            Seconds beside the limit that a block without beats may take, such as one that waits for ranks with as much
            to do as this one had.
        """
        before = self._what, self._last, self._longest, self._grace, self._beats
        self._last, self._longest, self._beats = time.monotonic(), 0.0, 0
        self._grace = _FIRST * self._limit_s if grace_s is None else grace_s
        self._what = what
        try:
            yield
        finally:
            self._what, self._last, self._longest, self._grace, self._beats = before
            self._last = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say that what is done in the block is to wait for the other ranks."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @property
    def _allowed_s(self) -> float:
        if not self._beats:
            return self._limit_s + self._grace
        return max(self._limit_s, _FIRST * self._longest)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._limit_s / 4)):
            what, still = self._what, time.monotonic() - self._last
            if what and still > self._allowed_s:
                self._end(what, still)

    def _end(self, what: str, still: float) -> None:
        frame = sys._current_frames().get(self._main or 0)  # noqa: SLF001 (the documented way to another thread's frame)
        waits = not self._alone and (self._waits or _is_collective(frame))
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "nowhere"
        faulthandler.dump_traceback(all_threads=True)
        doing = "has waited for another rank" if waits else "has stood still"
        self._tell("lost" if waits else "hung", f"{doing} for {still:.0f} s in {what} ({where})")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _is_collective(frame: FrameType | None) -> bool:
    """Whether the thread stands in a collective, or in a backward pass, which ends in one."""
    return frame is not None and any(part in frame.f_code.co_filename for part in _WAITS)
