"""Stages that are killed at random moments: a part of what `kills.py` does."""

import re
import subprocess
import sys
from pathlib import Path

KILLS = Path(__file__).with_name("kills.py")


def test_runs_whose_stages_are_killed_leave_what_undisturbed_ones_leave() -> None:
    done = subprocess.run(
        [sys.executable, KILLS, "--number", "16"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ways = re.search(r"^\| all \| 16 \| (\d+) \| (\d+) \|", done.stdout, re.MULTILINE)
    assert ways, done.stdout
    assert min(map(int, ways.groups())) >= 6, "both ways to kill are tried"
    assert "all outputs equal" in done.stdout
