"""Records of a registry: its champions, the decisions on challengers, and its nights."""

from collections.abc import Mapping
from typing import Literal

from tlbatch.config.base import Metric
from tlbatch.runs.records import Record
from tlbatch.runs.report import Comparison, Estimate

Rule = Literal["first", "gain", "more data", "by hand", "none"]
Event = Literal["promoted", "kept", "nothing new", "failed", "given up", "rolled back"]


class Guarded(Record):
    """A score with a limit on how far it may drop."""

    name: str
    champion: float | None
    challenger: float | None
    bound: float
    """Largest allowed drop."""
    holds: bool


class RuleResult(Record):
    """Result of the promotion rule for a run and the champion."""

    rule: Rule
    reasons: tuple[str, ...]
    comparison: Comparison | None = None
    """Comparison of the run with the champion on tonight's test images."""
    level: float = 0.0
    """Significance level of this challenge: probability of promoting a model that is no better."""
    lower: float | None = None
    """Lower confidence bound of the gain at that level."""
    slack: float = 0.0
    """How far the lower bound may lie below zero if there are more training data."""
    guards: tuple[Guarded, ...] = ()
    lost: float = 0.0
    """Losses accepted by promotions for more data, including this one, less the lower bounds of later gains."""


class Decision(RuleResult):
    """``promotion.json`` of a run: whether it replaces the champion, and why."""

    task: str
    run: str
    time: str
    champion: int | None
    """Number of the champion that it was compared with."""
    outcome: Literal["promoted", "kept"]
    look: int = 0
    """How many times this champion has been challenged, including this time."""
    num_excluded: int = 0
    """Test images excluded because a model was trained on them or on images of their group."""
    num_train: int


class Champion(Record):
    """``champion.json``, and ``champions/<number>.json`` for every champion so far."""

    number: int
    task: str
    run: str
    time: str
    rule: Rule
    previous: int | None
    """Number of the previous champion."""
    metric: Metric
    score: Estimate
    """Score on the test images of its own night."""
    num_train: int
    lost: float
    files: dict[str, str]
    """SHA-256 of all its files by path, from weights to predictions."""

    @property
    def name(self) -> str:
        """Name of its folders in the registry."""
        return f"{self.number:04d}-{self.run}"


class Night(Record):
    """A line of ``history.jsonl``."""

    time: str
    event: Event
    run: str | None = None
    champion: int | None = None
    """Number of the champion after the night."""
    against: int | None = None
    """Number of the champion that was challenged."""
    reasons: tuple[str, ...] = ()
    num_images: int | None = None
    num_new: int | None = None
    seconds: Mapping[str, float] = {}
    """Seconds of each stage."""
    is_marked: bool = False
    """Whether the new images have drifted."""
    index: str | None = None
    """Folder of the index of the night's images."""
    seen: str | None = None
    """Digest of the source and the job, with which the next night detects changes."""
    asked: str | None = None
    """Digest of the job alone."""


class Pending(Record):
    """``night.json``: the unfinished night."""

    run: str
    seen: str
    asked: str
    """See `Night`."""
    began: str
