"""A part of the campaign of faults: those that hit a training."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from faults import Campaign, hold, write_images
from slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def campaign(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Campaign]:
    folder = Path(tempfile.mkdtemp(prefix="tlbatch-faults-"))
    monkeypatch.setattr(faults, "WEIGHTS", (0, 0, 1, 0, 0))
    write_images(folder / "images")
    try:
        yield Campaign(slurm, folder, random.Random(0))
    finally:
        shutil.rmtree(folder)


def test_trainings_that_are_interrupted_lose_nothing(campaign: Campaign) -> None:
    hold(campaign, kinds=["USR2", "scancel", "pre-emption", "a rank stands still", "node down"], each=5)
    assert campaign.wrong == []
    assert sum(count for (kind, _), count in campaign.happened.items() if kind in faults.KINDS) == 5
    assert campaign.happened["USR2", "train"] == 1
