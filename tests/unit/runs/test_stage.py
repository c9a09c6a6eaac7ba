"""What a stage that is told to end leaves for the batch script around it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.cli import EXIT_AGAIN, EXIT_USER_ERROR
from tlbatch.runs.stage import AGAIN

pytestmark = pytest.mark.chain

STAGE = """
import os, signal, sys, time
from pathlib import Path
from tlbatch.runs.stage import leave, run_guarded
number, when, folder = getattr(signal, sys.argv[1]), sys.argv[2], Path(sys.argv[3])
if when == "before":  # as it is while Python begins
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    os.kill(os.getpid(), number)
def work(_):
    os.kill(os.getpid(), number)
    time.sleep(10)
leave(run_guarded("train", work, folder))
"""


@pytest.mark.parametrize("when", ["before", "within"])
@pytest.mark.parametrize("name", ["SIGUSR2", "SIGALRM", "SIGTERM"])
@pytest.mark.parametrize("around", ["a batch script", ""])
def test_a_stage_whose_time_runs_out_asks_for_another_life_and_one_that_is_cancelled_does_not(
    tmp_path: Path, tiny_job: Path, when: str, name: str, around: str
) -> None:
    paths = make_run(
        resolve(load_job([tiny_job], [f"data.images={tmp_path}", f"workspace={tmp_path / 'w'}", "run=r"]))
    ).paths
    mark = paths.marker("train").with_name("train.again.7.0")
    own = {name: value for name, value in os.environ.items() if name != AGAIN}
    done = subprocess.run(
        [sys.executable, "-c", STAGE, name, when, paths.folder],
        env=own | ({AGAIN: str(mark)} if around else {}), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    wanted = EXIT_USER_ERROR if name == "SIGTERM" else 0 if around else EXIT_AGAIN
    assert done.returncode == wanted, done.stderr
    assert mark.exists() == (bool(around) and name != "SIGTERM")
    assert f"stopped by {name}; progress was saved" in done.stdout + done.stderr
    assert paths.failure("train", 0).exists()
