"""Watchdog and heartbeats: a rank without progress, or whose process is frozen, ends the job and is named."""

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
from types import TracebackType
from typing import Literal, Self

from tlbatch.core.errors import StoppedError

log = logging.getLogger(__name__)
Stall = Literal["hung", "lost"]
"""Whether a rank hangs by itself, or waits for a rank that is lost."""
_FIRST = 10
"""Limits that the first step, which starts workers and compiles, may take; later, multiples of the longest step."""
_WAITS = ("torch/distributed/", "torch/autograd/")
"""Code in which a rank waits for others: collectives, and backward passes, which end in one."""
_SIGN = """
trap "" HUP INT TERM USR1 USR2
while while read -r key state _; do [ "$key" = State: ] && break; done < "/proc/$1/status"; do
    case $state in Z | X) break ;; T | t) ;; *) touch "$2" ;; esac
    sleep "$3"
done 2> /dev/null
"""
"""A shell script that touches a file while a process is not frozen, and ends with the process."""
_SIGNS = 5
"""Heartbeats per limit."""


class Heartbeat:
    """Heartbeats of the ranks of a stage: a file per rank that is touched regularly.

    A frozen process (SIGSTOP, a debugger, a lost machine) sends none, whatever it was doing. A busy one does, even
    while it holds the GIL, since a shell process beside it sends them. The reader checks whether the file changes, by
    its own clock; a file that does not exist, because its rank has not started or has ended, means nothing.

    Parameters
    ----------
    folder
        Folder that all ranks share.
    prefix
        Name of this attempt of the stage.
    rank
        Rank of this process, which checks the next one, as in a ring, so that the work does not grow with their number.
    world_size
        Number of ranks.
    """

    def __init__(self, folder: Path, prefix: str, *, rank: int, world_size: int) -> None:
        self.next_rank = (rank + 1) % world_size
        self._file, self._other = (folder / f"{prefix}.rank-{number}" for number in (rank, self.next_rank))
        self._seen: tuple[int, float] | None = None
        self._shell: subprocess.Popen[bytes] | None = None

    def begin(self, *, every_s: float) -> None:
        """Start to send heartbeats."""
        self._file.parent.mkdir(exist_ok=True)
        command = ["sh", "-c", _SIGN, "sign", str(os.getpid()), str(self._file), f"{every_s:.2f}"]
        self._shell = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def end(self, *, well: bool) -> None:
        """Stop sending heartbeats; after a success, also remove the file, so that no rank misses them."""
        if self._shell is not None:
            os.killpg(self._shell.pid, signal.SIGKILL)
            self._shell.wait()
        if well:
            self._file.unlink(missing_ok=True)

    def reset(self) -> None:
        """Restart the silence timer, e.g. after this process itself was suspended."""
        self._seen = None

    def silence_s(self) -> float:
        """Return the seconds since the last heartbeat of the next rank."""
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
    """Watches from a thread whether the main thread makes progress in a loop of steps.

    The time between two steps is limited to the given limit, or ten times the longest step if that is longer. Time in
    which the entire process was suspended does not count.

    Parameters
    ----------
    limit_s
        Limit in seconds.
    report
        Called with the problem when time is up, just before the process ends.
    heartbeat
        Heartbeats of this rank and the next; None if there is no other rank.
    """

    def __init__(self, limit_s: float, report: Callable[[Stall, str], None], *, heartbeat: Heartbeat | None) -> None:
        self._limit_s, self._report, self._heartbeat = limit_s, report, heartbeat
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
        """Report that a step is done."""
        now = time.monotonic()
        took = now - self._last
        self._longest = max(self._longest, took) if self._beats else took / _FIRST
        self._last = now
        self._beats += 1

    @contextmanager
    def expected(self, what: str, *, grace_s: float | None = None) -> Iterator[None]:
        """Expect steps within the block.

        Parameters
        ----------
        grace_s
            Seconds that a block may take before its first step, in addition to the limit, e.g. to wait for ranks with
            as much work as this one.
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
        """Mark the block as waiting for other ranks."""
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
        checked = heartbeat_checked = time.monotonic()
        while not self._ended.wait(pause):
            now = time.monotonic()
            if now - checked > max(self._limit_s / 2, 4 * pause):
                log.warning("this process was suspended for %.0f s", now - checked)
                self._last = max(self._last, now)
                if self._heartbeat:
                    self._heartbeat.reset()
            checked = now
            if self._heartbeat and now - heartbeat_checked > self._limit_s / _SIGNS:
                heartbeat_checked = now
                self._check_heartbeat(self._heartbeat)
            what, still = self._what, now - self._last
            if what and still > self._allowed_s:
                self._end_still(what, still)

    def _check_heartbeat(self, heartbeat: Heartbeat) -> None:
        """End the process if the next rank sends no heartbeats."""
        try:
            silent = heartbeat.silence_s()
        except OSError as error:
            log.warning("heartbeats could not be read: %s", error)
            heartbeat.reset()
            return
        if silent > self._limit_s:
            what = f" in {self._what}" if self._what else ""
            self._end("lost", f"rank {heartbeat.next_rank} sent no heartbeat for {silent:.0f} s{what}")

    def _end_still(self, what: str, still: float) -> None:
        frame = sys._current_frames().get(self._main or 0)  # noqa: SLF001 (the documented way to another thread's frame)
        file = frame.f_code.co_filename if frame else ""
        waits = self._heartbeat is not None and (self._waits or any(part in file for part in _WAITS))
        where = f"{file}:{frame.f_lineno}" if frame else "nowhere"
        doing = "has waited for another rank" if waits else "has made no progress"
        self._end("lost" if waits else "hung", f"{doing} for {still:.0f} s in {what} ({where})")

    def _end(self, kind: Stall, what: str) -> None:
        faulthandler.dump_traceback(all_threads=True)
        self._report(kind, what)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
