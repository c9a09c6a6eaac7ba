"""The ends of a job's time: SLURM's signals, and a deadline in case they are lost.

Most stages stop at once; what runs in steps sets a flag and asks for it between two of them.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from tlbatch.core.errors import StoppedError

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM)
_AGAIN = ("SIGUSR2", "SIGALRM")
DEADLINE = "TLBATCH_DEADLINE"
"""Variable with the time, in seconds since 1970, at which SLURM's warning is due."""


def _catch(work: Callable[[int, FrameType | None], None], environment: Mapping[str, str]) -> None:
    """Replace submitit's handlers, which would requeue on rank 0 alone, or ignore the signal; arm the deadline.

    USR2 may be blocked since before Python began, so that none was lost on the way.
    """
    for number in SIGNALS:
        signal.signal(number, work)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if environment.get(DEADLINE, "").isdecimal():
        signal.setitimer(signal.ITIMER_REAL, max(1.0, int(environment[DEADLINE]) - time.time()))


def stop_at_once() -> None:
    """Let the warning before the time limit (USR2) and the request to end (TERM) raise a StoppedError."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        name = signal.Signals(number).name
        raise StoppedError(f"stopped by {name}", again=name in _AGAIN)

    _catch(stop, os.environ)


class StopFlag:
    """Remembers the first signal; a handler that does more than that can hang a collective."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> None:
        """Catch the signals."""
        _catch(self._remember, os.environ)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal_name = self.signal_name or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal_name is not None

    @property
    def wants_again(self) -> bool:
        """Whether time has run out; who cancels a job does not want it back, and who preempts it starts it again."""
        return self.signal_name in _AGAIN


def ignore_in_worker(worker: int) -> None:  # noqa: ARG001
    """``worker_init_fn`` of a loader: SLURM signals every process of a step, workers included."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals back while children start: they are born with them blocked, this process gets them after."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # a child too; to start it unblocks SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
