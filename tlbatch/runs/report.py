"""``report.json``: all contents of a report, from which its page and its row of the leaderboard are made."""

from typing import Literal, get_args

from tlbatch.config.base import Metric, SplitName
from tlbatch.runs.manifest import Audit, Ceiling
from tlbatch.runs.records import Best, Record
from tlbatch.runs.strategy import Strategy

REPORT_VERSION: Literal[1] = 1
ScoreName = Literal[
    "quadratic_kappa", "linear_kappa", "kappa", "accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "mcc",
    "grade_error",
]  # fmt: skip
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
Verdict = Literal["better", "worse", "not different", "undecided"]
Ensemble = Literal["mean", "log-mean", "rank"]


class Estimate(Record):
    """A value with its 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str = ""
    """Why there is no value, or no interval."""


class Curve(Record):
    """Points of a curve."""

    x: tuple[float, ...]
    y: tuple[float, ...]


class Ranked(Record):
    """How well a probability ranks positive images above negative ones."""

    auc: Estimate
    average_precision: float | None
    roc: Curve
    """False positive rate, true positive rate; empty if there are many classes."""
    pr: Curve
    """Recall, precision."""


class ClassScores(Ranked):
    """One class against all others."""

    name: str
    support: int
    predicted: int
    precision: Estimate
    recall: Estimate
    f1: Estimate


class OperatingPoint(Record):
    """The scores of a question at one threshold."""

    aim: str
    """How the threshold was chosen, e.g. "sensitivity 0.9 on validation"."""
    threshold: float | None
    """Smallest probability that counts as positive; None: follows from the predicted class, or could not be found."""
    counts: tuple[int, int, int, int]
    """True and false positives, false and true negatives."""
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate


class Question(Ranked):
    """A yes-or-no question about some of the classes."""

    name: str
    positive: tuple[str, ...]
    """Positive classes."""
    num_positive: int
    points: tuple[OperatingPoint, ...]


class Bin(Record):
    """A bin of predictions with similar confidence."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean probability of the predicted class."""
    accuracy: Estimate


class Reliability(Record):
    """Calibration scores and the reliability diagram."""

    log_loss: Estimate
    brier: Estimate
    ece: Estimate
    bins: tuple[Bin, ...]


class Calibration(Record):
    """Calibration on test before and after temperature scaling, which is not fitted on test images."""

    temperature: float | None
    """None: there was nothing to fit it on."""
    kept: bool
    """Whether it improved held-out images, and is therefore applied in predictions.csv."""
    why: str
    before: Reliability
    after: Reliability | None


class Thresholds(Record):
    """Thresholds between grades: plain rounding, and fitted on images that the model was not trained on."""

    fitted: tuple[float, ...]
    kept: bool
    """Whether the fitted thresholds are used, which is only if they improve the metric."""
    rounding: dict[SplitName, Estimate]
    """The metric with plain rounding."""
    tuned: dict[SplitName, Estimate]
    """The metric with the fitted thresholds."""


class Deployed(Record):
    """Scores for another class prior."""

    prior: tuple[float, ...]
    """Probability of each class."""
    scores: dict[ScoreName, Estimate]


class Subgroup(Record):
    """Scores of the test images with one value in a column."""

    column: str
    value: str
    n: int
    num_groups: int
    scores: dict[ScoreName, Estimate]


class Comparison(Record):
    """Paired comparison of two runs on the same test images."""

    other: str
    metric: Metric
    n: int
    difference: Estimate
    """Score of the first minus that of the other."""
    only_first: int
    """Number of images that only the first classifies correctly."""
    only_other: int
    p_value: float
    """McNemar's exact test on those images."""
    verdict: Verdict
    """From the interval of the difference, or if all bootstrap replicates agree, from a sign test over groups."""


class Placed(Record):
    """The rank of the run on an external leaderboard."""

    board: str
    n: int
    score: float | None
    text: str
    warnings: tuple[str, ...]


class Cost(Record):
    """Computing cost of the run."""

    seconds: dict[str, float]
    """Duration of each stage."""
    gpu_hours: float
    images_per_s: float | None
    """Throughput of prediction, all ranks together."""
    hosts: tuple[str, ...]


class OddPhrases(Record):
    """Number of images whose phrases cannot be learned or generated exactly, by cause."""

    num_empty: int
    """Without a tag, left out of all splits."""
    num_contradicting: int
    """Left out because of two phrases, or of a duplicate or near duplicate with another phrase."""
    num_too_long: dict[SplitName, int]
    """With more tags than can be generated."""
    num_several: dict[SplitName, int]
    """With several tags of an attribute that the job names."""
    num_unseen: dict[SplitName, int]
    """With a tag outside the vocabulary, since too few training images have it, or none."""
    unseen: dict[str, int]
    """Such tags of the test split, and the number of its images with each."""


class TagScores(Record):
    """Scores of images with several tags."""

    n: int
    num_writable: int
    """Size of the vocabulary of tags."""
    odd: OddPhrases
    exact_match: Estimate
    edit_distance: Estimate
    """Number of tags to insert, delete or replace, averaged over images."""
    bleu: Estimate
    macro_f1: Estimate
    """Mean over the tags that occur in true phrases."""
    f1: dict[str, Estimate]
    """By tag."""
    mean_attribute: Estimate
    """Mean over the attributes that occur in true phrases."""
    attributes: dict[str, Estimate]
    """Accuracy of each attribute that the job names; no tag counts as a value."""
    num_with: dict[str, int]
    """Number of images with a true tag of the attribute."""


class Scored(Record):
    """All scores of a set of predictions."""

    metric: Metric
    score: float | None
    n: int
    num_groups: int
    num_errors: int
    scores: dict[ScoreName, Estimate]
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    """A row for each true class, a column for each predicted one."""
    questions: tuple[Question, ...]
    tags: TagScores | None = None
    """Scores of images with several tags, which have no classes."""
    calibration: Calibration | None
    thresholds: Thresholds | None
    deployed: Deployed | None
    subgroups: tuple[Subgroup, ...]
    external: tuple[Placed, ...]


class Report(Scored):
    """``report.json`` of a run or an ensemble."""

    version: Literal[1]
    """Version of this record."""
    run: str
    job: str
    members: tuple[str, ...]
    """Runs of the ensemble; empty: a single run."""
    ensemble: Ensemble | None
    synthetic: bool
    ceilings: tuple[Ceiling, ...]
    strategy: Strategy | None
    counts: dict[SplitName, tuple[int, ...]]
    num_images: dict[SplitName, int]
    num_rejected: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    audit: Audit
    resize: int
    steps: tuple[str, ...]
    checkpoint: Best | None
    backbone: str
    weights: str
    seeds: dict[str, int | str]
    test_digest: str
    digests: dict[str, str | None]
    versions: dict[str, str]
    commit: str | None
    cost: Cost
