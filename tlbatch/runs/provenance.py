"""The commit of tlbatch that a run was made with."""

import subprocess
import sys
from pathlib import Path


def image_commit() -> str | None:
    """Return the commit of tlbatch that this container image was built from, if it is known."""
    file = Path(sys.prefix) / "revision"
    return (file.read_text(encoding="ascii").strip() or None) if file.is_file() else None


def checkout_commit() -> str | None:
    """Return the commit of tlbatch's own checkout, with ``+`` if it has local changes."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
