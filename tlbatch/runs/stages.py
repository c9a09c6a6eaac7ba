"""The stages of a run: one table of what is known about each."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tlbatch.config.job import Job

StageName = Literal["shard", "choose", "cache", "train", "predict", "reduce", "promote"]


@dataclass(frozen=True)
class Stage:
    """What submission, accounting and status need to know of a stage."""

    name: StageName
    uses_all_ranks: bool = False
    """Runs on all ranks, with the GPUs the job asks for; otherwise in one task without a GPU."""
    is_shared: bool = False
    """Most of its work is the same for several runs on one set: one job does it for all of them, one after another."""
    comes_before_all: bool = False
    """Every one of several runs must have finished it before the first of them continues."""
    scratch: str = ""
    """Folder of a run that is removed last, after the marker is written: the stage is unfinished while it exists."""


TABLE: tuple[Stage, ...] = (
    Stage("shard", is_shared=True, comes_before_all=True),
    Stage("choose", uses_all_ranks=True, comes_before_all=True, scratch="trials"),
    Stage("cache", uses_all_ranks=True, is_shared=True, comes_before_all=True),
    Stage("train", uses_all_ranks=True, scratch="snapshots"),
    Stage("predict", uses_all_ranks=True),
    Stage("reduce"),
    Stage("promote"),
)
STAGES: tuple[StageName, ...] = tuple(stage.name for stage in TABLE if stage.name != "promote")
"""The stages of every run; promote follows them where a registry is asked for."""
RANKED_STAGES = frozenset(stage.name for stage in TABLE if stage.uses_all_ranks)
SHARED_STAGES = frozenset(stage.name for stage in TABLE if stage.is_shared)


def stages_of(job: Job) -> tuple[StageName, ...]:
    """Return the stages of a job in their order; not every job has something to choose."""
    return tuple(stage for stage in STAGES if stage != "choose" or job.chooses)


def groups_of(stages: Sequence[StageName], num_tasks: int) -> list[tuple[StageName, ...]]:
    """Divide consecutive stages by the number of their tasks: each group can share its processes."""
    if num_tasks == 1:
        return [tuple(stages)]
    return [tuple(group) for _, group in itertools.groupby(stages, key=RANKED_STAGES.__contains__)]
