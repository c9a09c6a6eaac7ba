"""What strategy = auto chose, and what it tried."""

from typing import Literal

from tlbatch.config.base import Metric
from tlbatch.runs.records import Record


class Trial(Record):
    """What a candidate of strategy = auto scored on training images that it was not trained on."""

    name: str
    after: tuple[str, ...]
    """Modules that the head stands on."""
    cut: str
    """Cut of the last phase."""
    fit: str
    """How the head is fitted."""
    score: float | None
    standard_error: float
    """Of the score, by a bootstrap over groups."""
    num_images: int
    """Images that it was judged on."""
    behind: float | None
    """The score of the best of its list less its own."""
    behind_error: float
    """Standard error of that, by the same draws for both."""
    seconds: float


class Strategy(Record):
    """``strategy.json``: what strategy = auto has chosen, and why."""

    chosen: str
    """Name of the trial."""
    why: str
    scenario: Literal["small and like", "small and unlike", "large and like", "large and unlike"]
    """Size of the training set, and whether its images are like those that the backbone was trained on."""
    scenario_why: str
    metric: Metric
    num_train: int
    profile: tuple[Trial, ...]
    """Probes at every stage of the backbone, from its input to its top."""
    short_list: tuple[Trial, ...]
    """The candidates, the cheapest first."""
    left_out: tuple[str, ...] = ()
    """Those that were not tried, and why."""
    settings: dict[str, object]
    """The sections of the job that were decided."""
