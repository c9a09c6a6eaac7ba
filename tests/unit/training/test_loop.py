import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tlbatch.data.dataset import SampleBatch
from tlbatch.distributed.process_group import RankContext
from tlbatch.runs.paths import RunPaths
from tlbatch.training.loop import RankConsensus
from tlbatch.training.state import StopRequestedError

BATCH = SampleBatch(*[torch.zeros(1, dtype=torch.int64)] * 4, {})


class Epoch:
    """An epoch of steps that do nothing, with a look out before each; it stands for the accelerator too."""

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self.ranks = RankContext.single_process("train", RunPaths(folder))
        self.looked: list[int] = []
        self.state: Any = SimpleNamespace(step=0, loss=torch.zeros(()))

    def run(self, num_steps: int, *, step_s: float) -> None:
        context: Any = SimpleNamespace(ranks=self.ranks, world=self.ranks.world, snapshots=None, accelerator=self)
        consensus = RankConsensus(context, self.state)
        for _ in range(num_steps):
            consensus.sync()
            consensus.add(BATCH, torch.zeros(()))
            time.sleep(step_s)
            self.state.step += 1

    def reduce(self, flags: torch.Tensor, _: str) -> torch.Tensor:
        self.looked.append(self.state.step)
        return flags


@pytest.fixture
def epoch(tmp_path: Path) -> Epoch:
    return Epoch(tmp_path)


def test_ranks_agree_about_once_a_second_however_long_their_steps_are(epoch: Epoch) -> None:
    epoch.run(60, step_s=0.05)
    assert epoch.looked[:4] == [0, 1, 3, 7]
    assert max(np.diff(epoch.looked)) <= 20
    epoch.looked.clear()
    epoch.state.step = 0
    epoch.run(3, step_s=1.1)
    assert epoch.looked == [0, 1, 2]


def test_short_steps_are_hardly_interrupted(epoch: Epoch) -> None:
    epoch.run(5000, step_s=0)
    assert len(epoch.looked) < 20


def test_a_signal_is_seen_at_the_next_look(epoch: Epoch) -> None:
    epoch.ranks.stop.signal_name = "SIGUSR2"
    with pytest.raises(StopRequestedError, match="SIGUSR2") as stop:
        epoch.run(3, step_s=0)
    assert stop.value.again
    assert epoch.looked == [0]
