"""Each in a process of its own, which the watchdog ends."""

import contextlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.chain

BEGIN = """
import sys, time
from pathlib import Path
from tlbatch.distributed.watchdog import Heartbeat, Watchdog

def tell(kind, what):
    print(kind, what)

watchdog = Watchdog(0.2, tell, heartbeat={heartbeat})
with watchdog:
"""


def run(work: str, *, heartbeat: str = "None") -> subprocess.CompletedProcess[str]:
    script = (
        BEGIN.format(heartbeat=heartbeat) + textwrap.indent(textwrap.dedent(work), "    ") + "\nprint('to its end')\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)


def test_a_loop_that_stands_still_ends_the_process_and_says_where() -> None:
    done = run("""
        with watchdog.expected("training"):
            watchdog.step_done()
            watchdog.step_done()
            time.sleep(20)
    """)
    assert done.returncode == 1
    assert done.stdout.startswith("hung has made no progress for 0 s in training (<string>:")
    assert "Thread 0x" in done.stderr
    assert "to its end" not in done.stdout


def test_waiting_for_another_rank_is_told_from_standing_still(tmp_path: Path) -> None:
    work = """
        with watchdog.expected("training", grace_s=0), watchdog.waiting():
            time.sleep(20)
    """
    heartbeat = f"Heartbeat(Path({str(tmp_path)!r}), 'train', rank=0, world_size=2)"
    assert run(work, heartbeat=heartbeat).stdout.startswith("lost has waited for another rank for 0 s in training")
    assert run(work).stdout.startswith("hung has made no progress")


@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(1.5)",
        """
        with watchdog.expected("training"):
            for _ in range(20):
                watchdog.step_done()
                time.sleep(0.1)
        """,
        """
        with watchdog.expected("training"):
            time.sleep(1.5)  # the first step begins workers
            watchdog.step_done()
            time.sleep(0.5)
            watchdog.step_done()  # steps are long here
            time.sleep(1.5)
        """,
        """
        with watchdog.expected("training"):
            watchdog.step_done()
            with watchdog.expected("the other ranks' shares", grace_s=2):
                time.sleep(1.5)
            watchdog.step_done()
        time.sleep(1)
        """,
    ],
    ids=["outside of a loop", "with beats", "with long steps", "in longer work"],
)
def test_what_gets_on_is_left_alone(work: str) -> None:
    done = run(work)
    assert (done.returncode, done.stdout) == (0, "to its end\n"), done.stderr


LIFE = """
import hashlib, sys, time
from pathlib import Path
from tlbatch.distributed.watchdog import Heartbeat, Watchdog

def tell(kind, what):
    print(kind, what, flush=True)

folder, rank, work = sys.argv[1:]
with Watchdog(1.0, tell, heartbeat=Heartbeat(Path(folder), "train", rank=int(rank), world_size=2)):
    print("begun", flush=True)
    exec(work)
print("to its end", flush=True)
"""


@contextlib.contextmanager
def two_ranks(folder: Path, *, second: str) -> Iterator[list[subprocess.Popen[str]]]:
    """One that sleeps for four seconds, and another beside it."""
    ranks = [
        subprocess.Popen([sys.executable, "-c", LIFE, str(folder), rank, work], stdout=subprocess.PIPE, text=True)
        for rank, work in (("0", "time.sleep(4)"), ("1", second))
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "begun\n"
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_a_rank_whose_process_is_stopped_is_missed_by_the_others_whatever_they_are_at(tmp_path: Path) -> None:
    with two_ranks(tmp_path, second="time.sleep(30)") as (one, two):
        time.sleep(0.5)
        two.send_signal(signal.SIGSTOP)
        said, _ = one.communicate(timeout=20)
        assert said.startswith("lost rank 1 sent no heartbeat for 1 s")
        assert one.returncode == 1


def test_a_rank_that_holds_pythons_lock_is_not_missed(tmp_path: Path) -> None:
    holds = "import ctypes; ctypes.PyDLL(None).sleep(8)"
    with two_ranks(tmp_path, second=holds) as (one, two):
        said, _ = one.communicate(timeout=20)
        assert (one.returncode, said) == (0, "to its end\n")
        assert two.poll() is None, "it was to be busy for longer"


@pytest.mark.parametrize("second", ["pass", "raise StoppedError('warned', again=True)"], ids=["done", "warned"])
def test_a_rank_that_has_ended_is_not_missed(tmp_path: Path, second: str) -> None:
    with two_ranks(tmp_path, second=f"from tlbatch.core.errors import StoppedError; {second}") as (one, two):
        two.wait(timeout=20)
        said, _ = one.communicate(timeout=20)
        assert (one.returncode, said) == (0, "to its end\n")
        assert not list(tmp_path.iterdir())


def test_a_process_that_was_suspended_as_a_whole_goes_on_afterwards() -> None:
    work = "with watchdog.expected('training'):\n        watchdog.step_done(); print('at work', flush=True)\n"
    work += "        for _ in range(30): time.sleep(0.1); watchdog.step_done()"
    script = BEGIN.format(heartbeat="None").replace("0.2", "1.0") + f"    {work}\nprint('to its end')\n"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "to its end\n")
