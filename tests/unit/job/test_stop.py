import os
import signal

import pytest

from tlbatch.job.errors import UserError
from tlbatch.job.stop import SIGNALS, StopFlag, stop_at_once


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stage_stops_at_once_and_training_only_remembers(number: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    try:
        stop_at_once()
        with pytest.raises(UserError, match=f"stopped by {number.name} "):
            os.kill(os.getpid(), number)
        flag = StopFlag()
        flag.install()
        assert not flag
        os.kill(os.getpid(), number)
        assert flag
        assert flag.signal_name == number.name
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
