import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tlbatch.core.errors import StoppedError, UserError
from tlbatch.runs.signals import DEADLINE, SIGNALS, StopFlag, stop_at_once


@contextmanager
def handlers_restored() -> Iterator[None]:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        StopFlag.installed = None
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stage_stops_at_once_and_training_only_remembers(number: signal.Signals) -> None:
    with handlers_restored():
        stop_at_once()
        with pytest.raises(UserError, match=f"stopped by {number.name}; progress was saved"):
            os.kill(os.getpid(), number)
        flag = StopFlag()
        flag.install()
        assert not flag
        os.kill(os.getpid(), number)
        assert flag
        assert flag.signal_name == number.name
        assert flag.wants_again == (number != signal.SIGTERM)


def test_a_warning_that_is_lost_is_made_up_for_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE, str(int(time.time()) - 5))
    with handlers_restored():
        flag = StopFlag()
        flag.install()
        assert not flag
        time.sleep(1.1)
        assert flag.wants_again


def test_a_signal_after_the_last_check_of_a_stage_stops_the_next_one_in_this_process_once() -> None:
    with handlers_restored():
        StopFlag().install()
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(StoppedError, match="stopped by SIGUSR2") as stop:
            stop_at_once()
        assert stop.value.again
        stop_at_once()
