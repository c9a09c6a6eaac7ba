"""The end of a job's time: SLURM's signals, and a timer in case its warning never arrives.

Most stages stop at once; those that work in steps set a flag and check it between steps.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import ClassVar

from tlbatch.core.errors import StoppedError

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM)
_AGAIN = ("SIGUSR2", "SIGALRM")
DEADLINE = "TLBATCH_DEADLINE"
"""Environment variable with the time, in Unix seconds, at which SLURM's warning is due."""


def _catch(work: Callable[[int, FrameType | None], None], environment: Mapping[str, str]) -> None:
    """Replace submitit's handlers, which would requeue on rank 0 alone or ignore the signal, and set the timer.

    USR2 may have been blocked before Python started, so that no signal is lost.
    """
    for number in SIGNALS:
        signal.signal(number, work)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if environment.get(DEADLINE, "").isdecimal():
        signal.setitimer(signal.ITIMER_REAL, max(1.0, int(environment[DEADLINE]) - time.time()))


def stop_at_once() -> None:
    """Let the warning before the time limit (USR2) and the request to end (TERM) raise a StoppedError.

    So does one that reached the stage before in this process too late for its last check.
    """

    def stop(name: str) -> None:
        raise StoppedError(f"stopped by {name}", again=name in _AGAIN)

    _catch(lambda number, _: stop(signal.Signals(number).name), os.environ)
    missed, StopFlag.installed = StopFlag.installed, None
    if missed is not None and missed.signal_name:
        stop(missed.signal_name)


class StopFlag:
    """Stores the first signal; a handler that did more than that could hang a collective."""

    installed: "ClassVar[StopFlag | None]" = None

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> None:
        """Catch the signals."""
        StopFlag.installed = self
        _catch(self._remember, os.environ)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal_name = self.signal_name or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal_name is not None

    @property
    def wants_again(self) -> bool:
        """Whether time has run out; a cancelled job must not restart, and a preempted one is requeued by SLURM."""
        return self.signal_name in _AGAIN


def ignore_in_worker(worker: int) -> None:  # noqa: ARG001
    """Ignore signals in a loader's ``worker_init_fn``: SLURM signals every process of a step, workers included."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_held() -> Iterator[None]:
    """Block the signals while child processes start, which inherit this; the parent receives them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # also a child; starting it unblocks SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
