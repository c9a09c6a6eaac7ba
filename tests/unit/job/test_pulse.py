"""Each in a process of its own, which the pulse ends."""

import subprocess
import sys
import textwrap

import pytest

BEGIN = """
import sys, time
from tlbatch.job.pulse import Pulse

def tell(kind, what):
    print(kind, what)

pulse = Pulse(0.2, tell, alone={alone})
with pulse:
"""


def run(work: str, *, alone: bool = False) -> subprocess.CompletedProcess[str]:
    script = BEGIN.format(alone=alone) + textwrap.indent(textwrap.dedent(work), "    ") + "\nprint('to its end')\n"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)


def test_a_loop_that_stands_still_ends_the_process_and_says_where() -> None:
    done = run("""
        with pulse.expected("training"):
            pulse.beat()
            pulse.beat()
            time.sleep(20)
    """)
    assert done.returncode == 1
    assert done.stdout.startswith("hung has stood still for 0 s in training (<string>:")
    assert "Thread 0x" in done.stderr
    assert "to its end" not in done.stdout


def test_waiting_for_another_rank_is_told_from_standing_still() -> None:
    work = """
        with pulse.expected("training", grace_s=0), pulse.waiting():
            time.sleep(20)
    """
    assert run(work).stdout.startswith("lost has waited for another rank for 0 s in training")
    assert run(work, alone=True).stdout.startswith("hung has stood still")


@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(1.5)",
        """
        with pulse.expected("training"):
            for _ in range(20):
                pulse.beat()
                time.sleep(0.1)
        """,
        """
        with pulse.expected("training"):
            time.sleep(1.5)  # the first step begins workers
            pulse.beat()
            time.sleep(0.5)
            pulse.beat()  # steps are long here
            time.sleep(1.5)
        """,
        """
        with pulse.expected("training"):
            pulse.beat()
            with pulse.expected("the other ranks' shares", grace_s=2):
                time.sleep(1.5)
            pulse.beat()
        time.sleep(1)
        """,
    ],
    ids=["outside of a loop", "with beats", "with long steps", "in longer work"],
)
def test_what_gets_on_is_left_alone(work: str) -> None:
    done = run(work)
    assert (done.returncode, done.stdout) == (0, "to its end\n"), done.stderr
