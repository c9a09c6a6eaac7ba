"""The stop flag: SLURM's signals set it on every rank, the loop asks for it at a step boundary."""

import signal
from types import FrameType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class StopFlag:
    """Remembers the first signal; a handler that does more than that can hang a collective."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> None:
        """Catch SLURM's warning before the time limit (USR2) and its request to end (TERM)."""
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
