"""The choices of strategy auto, and the candidates that it tried."""

from typing import Literal

from tlbatch.config.base import Metric
from tlbatch.runs.records import Record


class Trial(Record):
    """The cross-validated score of a candidate of strategy auto on the training images."""

    name: str
    after: tuple[str, ...]
    """Modules whose outputs are the input of the head."""
    cut: str
    """Cut of the last phase."""
    fit: str
    """How the head is fitted."""
    score: float | None
    standard_error: float
    """Standard error of the score, from a bootstrap over groups."""
    num_images: int
    """Number of images that it was scored on."""
    behind: float | None
    """The best score of its list minus its own."""
    behind_error: float
    """Standard error of that difference, from the same bootstrap replicates for both."""
    seconds: float


class Strategy(Record):
    """``strategy.json``: the choices of strategy auto, and their reasons."""

    chosen: str
    """Name of the chosen trial."""
    why: str
    scenario: Literal["small and like", "small and unlike", "large and like", "large and unlike"]
    """Size of the training set, and whether its images are like those that the backbone was pre-trained on."""
    scenario_why: str
    metric: Metric
    num_train: int
    profile: tuple[Trial, ...]
    """Probes at every stage of the backbone, from input to top."""
    short_list: tuple[Trial, ...]
    """The candidates, the cheapest first."""
    left_out: tuple[str, ...] = ()
    """Candidates that were not tried, and why."""
    settings: dict[str, object]
    """The sections of the job that were chosen."""
