"""Stages killed at random moments: a small run of `kills.py`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.campaign

KILLS = Path(__file__).with_name("kills.py")


def test_killed_stages_give_the_outputs_of_undisturbed_ones() -> None:
    done = subprocess.run(
        [sys.executable, KILLS, "--number", "16"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ways = re.search(r"^\| all \| 16 \| (\d+) \| (\d+) \|", done.stdout, re.MULTILINE)
    assert ways, done.stdout
    assert min(map(int, ways.groups())) >= 6, "both ways to kill are tried"
    assert "all outputs equal" in done.stdout
