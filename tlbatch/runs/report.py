"""``report.json``: everything a report says of a run, from which its page and its row of the leaderboard are made."""

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
    """A number with its 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str = ""
    """Why there is no value, or no interval."""


class Curve(Record):
    """Points of a line."""

    x: tuple[float, ...]
    y: tuple[float, ...]


class Ranked(Record):
    """How well a probability ranks the images of yes above those of no."""

    auc: Estimate
    average_precision: float | None
    roc: Curve
    """False positive rate, true positive rate; no points where there are many classes."""
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
    """A question answered at one threshold."""

    aim: str
    """How the threshold was chosen, e.g. "sensitivity 0.9 on validation"."""
    threshold: float | None
    """Smallest probability that counts as yes; none: as the classes were decided, or not to be found."""
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
    """Classes that mean yes."""
    num_positive: int
    points: tuple[OperatingPoint, ...]


class Bin(Record):
    """Predictions of about equal confidence."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean probability of the chosen class."""
    accuracy: Estimate


class Reliability(Record):
    """Whether probabilities mean what they say."""

    log_loss: Estimate
    brier: Estimate
    ece: Estimate
    bins: tuple[Bin, ...]


class Calibration(Record):
    """Probabilities on test before and after temperature scaling, which is fitted on images that are no test images."""

    temperature: float | None
    """None: there was nothing to fit it on."""
    kept: bool
    """Whether it gained on images that it was not fitted on, and is in predictions.csv."""
    why: str
    before: Reliability
    after: Reliability | None


class Thresholds(Record):
    """Cuts between grades: plain rounding, and fitted on images the model was not trained on."""

    fitted: tuple[float, ...]
    kept: bool
    """Whether they differ from rounding: they are kept only where they gained."""
    rounding: dict[SplitName, Estimate]
    """The metric with plain rounding."""
    tuned: dict[SplitName, Estimate]
    """The metric with the fitted cuts."""


class Deployed(Record):
    """Scores for another mix of classes."""

    prior: tuple[float, ...]
    """Share of each class."""
    scores: dict[ScoreName, Estimate]


class Subgroup(Record):
    """The test images with one value in a column."""

    column: str
    value: str
    n: int
    num_groups: int
    scores: dict[ScoreName, Estimate]


class Comparison(Record):
    """Two runs on the same test images, paired."""

    other: str
    metric: Metric
    n: int
    difference: Estimate
    """Of the first less the other."""
    only_first: int
    """Images that only the first has right."""
    only_other: int
    p_value: float
    """McNemar's exact test on those."""
    verdict: Verdict
    """By the interval of the difference; where all draws agree, by the sign test over groups."""


class Placed(Record):
    """Where the run would stand on somebody else's leaderboard."""

    board: str
    n: int
    score: float | None
    text: str
    warnings: tuple[str, ...]


class Cost(Record):
    """What the run took."""

    seconds: dict[str, float]
    """Of each stage."""
    gpu_hours: float
    images_per_s: float | None
    """In prediction, all ranks together."""
    hosts: tuple[str, ...]


class OddPhrases(Record):
    """Phrases that cannot be learned, or not be written, as they are; images of each kind."""

    num_empty: int
    """Without a tag, left out of all splits."""
    num_contradicting: int
    """Left out with two phrases of one image, or with an equal or nearly equal image of another phrase."""
    num_too_long: dict[SplitName, int]
    """With more tags than can be written."""
    num_several: dict[SplitName, int]
    """With several tags of an attribute that the job names."""
    num_unseen: dict[SplitName, int]
    """With a tag that cannot be written: too few training images have it, or none."""
    unseen: dict[str, int]
    """Such tags of the test split, and its images with each."""


class TagScores(Record):
    """Images with several tags."""

    n: int
    num_writable: int
    """Tags that phrases are written with."""
    odd: OddPhrases
    exact_match: Estimate
    edit_distance: Estimate
    """Tags to insert, delete or replace, a mean over images."""
    bleu: Estimate
    macro_f1: Estimate
    """Mean over the tags that a true phrase has."""
    f1: dict[str, Estimate]
    """By tag."""
    mean_attribute: Estimate
    """Mean over the attributes that a true phrase has."""
    attributes: dict[str, Estimate]
    """Accuracy of the tags of each attribute that the job names, none included."""
    num_with: dict[str, int]
    """Images of which a true tag is of the attribute."""


class Scored(Record):
    """What is said of predictions, wherever they come from."""

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
    """Of images with several tags, which have no classes."""
    calibration: Calibration | None
    thresholds: Thresholds | None
    deployed: Deployed | None
    subgroups: tuple[Subgroup, ...]
    external: tuple[Placed, ...]


class Report(Scored):
    """``report.json`` of a run or an ensemble."""

    version: Literal[1]
    """Of this record."""
    run: str
    job: str
    members: tuple[str, ...]
    """Runs that were put together; empty: it is one run."""
    ensemble: Ensemble | None
    synthetic: bool
    ceilings: tuple[Ceiling, ...]
    strategy: Strategy | None
    counts: dict[SplitName, tuple[int, ...]]
    num_images: dict[SplitName, int]
    num_rejected: int
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
