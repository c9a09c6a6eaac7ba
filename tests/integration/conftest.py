"""The SLURM cluster of a test session."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from slurm_cluster import SlurmCluster, left_out, missing_programs, slurm_cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Return a real two-node SLURM, or skip with the missing programs."""
    missing = missing_programs()
    why = f"not on PATH: {', '.join(missing)}" if missing else "not root" if os.geteuid() else ""
    if why:
        left_out("no real SLURM can be started", why)
    folder = Path(tempfile.mkdtemp(prefix="tlbatch-slurm-", dir="/tmp"))  # munged's socket needs a short, open path
    try:
        with slurm_cluster(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)
