"""SLURM's signals: most stages stop at once; training sets a flag and asks for it at a step boundary."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from tlbatch.job.errors import StoppedError

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


WAY_OUT = "(time limit, pre-emption or scancel); submit again, with a larger slurm.timeout_min if it was the time limit"


def stop_at_once() -> None:
    """Let SLURM's warning before the time limit (USR2) and its request to end (TERM) raise a StoppedError.

    submitit's own handlers, which would put the job into the queue again or ignore the signal, are replaced.
    """

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise StoppedError(f"stopped by {signal.Signals(number).name} {WAY_OUT}")

    for number in SIGNALS:
        signal.signal(number, stop)


class StopFlag:
    """Remembers the first signal; a handler that does more than that can hang a collective."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> None:
        """Catch the signals."""
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal_name = self.signal_name or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal_name is not None


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
