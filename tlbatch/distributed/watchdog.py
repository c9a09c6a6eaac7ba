"""A rank that stands still, or whose process is stopped, ends the job, and it is said which and where it stood."""

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

from tlbatch.core.errors import StoppedError

log = logging.getLogger(__name__)
Stall = Literal["hung", "lost"]
"""By itself, or in waiting for another rank."""
_FIRST = 10
"""Times the limit that the first step may take, which starts workers and compiles, and times the longest step later."""
_WAITS = ("torch/distributed/", "torch/autograd/")
_SIGN = """
trap "" HUP INT TERM USR1 USR2
while while read -r key state _; do [ "$key" = State: ] && break; done < "/proc/$1/status"; do
    case $state in Z | X) break ;; T | t) ;; *) touch "$2" ;; esac
    sleep "$3"
done 2> /dev/null
"""
"""A shell that touches a file while a process is not stopped, and ends with it."""
_SIGNS = 5
"""Signs of life in the limit."""


class Heartbeat:
    """Signs of life that the ranks of a stage give each other: a file a rank, touched again and again.

    A process that was stopped (SIGSTOP, a debugger, a machine that is gone) gives none, whatever it was at; one that is
    busy does, even where it holds Python's lock, since a shell beside it gives them. What is looked at is whether a
    file changes, by the clock of the one who looks; a file that has not been there yet, or is gone since its rank has
    ended, says nothing.

    Parameters
    ----------
    folder
        That all see.
    prefix
        Names this start of the stage.
    rank
        Of this process; it looks at the next one, as in a ring, so that the work does not grow with their number.
    world_size
        Their number.
    """

    def __init__(self, folder: Path, prefix: str, *, rank: int, world_size: int) -> None:
        self.next_rank = (rank + 1) % world_size
        self._file, self._other = (folder / f"{prefix}.rank-{number}" for number in (rank, self.next_rank))
        self._seen: tuple[int, float] | None = None
        self._shell: subprocess.Popen[bytes] | None = None

    def begin(self, *, every_s: float) -> None:
        """Give them from here on."""
        self._file.parent.mkdir(exist_ok=True)
        command = ["sh", "-c", _SIGN, "sign", str(os.getpid()), str(self._file), f"{every_s:.2f}"]
        self._shell = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def end(self, *, well: bool) -> None:
        """Give no more; where all went well, the others need not wonder."""
        if self._shell is not None:
            os.killpg(self._shell.pid, signal.SIGKILL)
            self._shell.wait()
        if well:
            self._file.unlink(missing_ok=True)

    def reset(self) -> None:
        """Begin to count anew, where this process, or the file system, stood still itself."""
        self._seen = None

    def silence_s(self) -> float:
        """Seconds since the last sign of the next rank."""
        now = time.monotonic()
        try:
            with self._other.open("rb") as opened:  # on NFS only opening it asks the server
                stamp = os.fstat(opened.fileno()).st_mtime_ns
        except FileNotFoundError:
            self._seen = None
            return 0.0
        if self._seen is None or self._seen[0] != stamp:
            self._seen = stamp, now
        return now - self._seen[1]


class Watchdog:
    """Watches from a thread whether the main one still gets on with a loop that beats.

    Between two beats may pass the limit, or ten times what the longest step took. Time in which the whole process was
    suspended does not count.

    Parameters
    ----------
    limit_s
        Seconds.
    tell
        Is given what is wrong when the time is over, just before the process ends.
    signs
        Of life, of this rank and the others; None where there is no other rank to wait for.
    """

    def __init__(self, limit_s: float, tell: Callable[[Stall, str], None], *, heartbeat: Heartbeat | None) -> None:
        self._limit_s, self._tell, self._heartbeat = limit_s, tell, heartbeat
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._what = ""
        self._waits = False
        self._last = self._longest = self._grace = 0.0
        self._beats = 0

    def __enter__(self) -> Self:
        if self._heartbeat:
            self._heartbeat.begin(every_s=self._limit_s / _SIGNS)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident:
            self._thread.join()
        if self._heartbeat:
            self._heartbeat.end(well=error is None or isinstance(error, StoppedError))

    def step_done(self) -> None:
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
        pause = min(1.0, self._limit_s / 4)
        looked = signed = time.monotonic()
        while not self._ended.wait(pause):
            now = time.monotonic()
            if now - looked > max(self._limit_s / 2, 4 * pause):
                log.warning("this process was suspended for %.0f s", now - looked)
                self._last = max(self._last, now)
                if self._heartbeat:
                    self._heartbeat.reset()
            looked = now
            if self._heartbeat and now - signed > self._limit_s / _SIGNS:
                signed = now
                self._look(self._heartbeat)
            what, still = self._what, now - self._last
            if what and still > self._allowed_s:
                self._end_still(what, still)

    def _look(self, heartbeat: Heartbeat) -> None:
        """Whether the next rank lives."""
        try:
            silent = heartbeat.silence_s()
        except OSError as error:
            log.warning("signs of life could not be read: %s", error)
            heartbeat.reset()
            return
        if silent > self._limit_s:
            what = f" in {self._what}" if self._what else ""
            self._end("lost", f"rank {heartbeat.next_rank} gave no sign of life for {silent:.0f} s{what}")

    def _end_still(self, what: str, still: float) -> None:
        frame = sys._current_frames().get(self._main or 0)  # noqa: SLF001 (the documented way to another thread's frame)
        waits = self._heartbeat is not None and (self._waits or _is_collective(frame))
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "nowhere"
        doing = "has waited for another rank" if waits else "has stood still"
        self._end("lost" if waits else "hung", f"{doing} for {still:.0f} s in {what} ({where})")

    def _end(self, kind: Stall, what: str) -> None:
        faulthandler.dump_traceback(all_threads=True)
        self._tell(kind, what)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _is_collective(frame: FrameType | None) -> bool:
    """Whether the thread stands in a collective, or in a backward pass, which ends in one."""
    return frame is not None and any(part in frame.f_code.co_filename for part in _WAITS)
