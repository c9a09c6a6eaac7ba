"""``drift.json``: comparison of a night's new images with the earlier ones."""

from typing import Literal

from tlbatch.runs.records import Record

Aspect = Literal["classes", "images", "features"]


class Difference(Record):
    """A column with one of the largest differences."""

    name: str
    """A class or an image statistic."""
    before: float
    """Mean over the earlier images; for a class, its fraction."""
    now: float
    """Mean over the new images."""


class Shift(Record):
    """Distance between new and earlier images in one aspect, and its distribution without a shift."""

    what: Aspect
    num_new: int = 0
    """Number of compared new images, after groups of unequal sizes were thinned."""
    num_before: int = 0
    num_lacking: int = 0
    """Images of both sets that were excluded because they cannot be read or are not cached."""
    distance: float | None = None
    """Squared distance between the means, each column in units of its variance."""
    mean: float | None = None
    """Mean distance over the permutations of groups."""
    deviation: float | None = None
    """Standard deviation of the distance over the permutations."""
    z: float | None = None
    """Distance minus that mean, in standard deviations."""
    p_value: float | None = None
    """Fraction of the permutations, including the observed one, that are at least as far."""
    is_above: bool = False
    """Whether z is above the threshold and the p-value at most 0.003."""
    differences: tuple[Difference, ...] = ()
    """Largest differences, sorted; none for features, which have no names."""
    undefined: str = ""
    """Why there is no test; empty: there is one."""


class Drift(Record):
    """Drift report of one night."""

    num_new: int
    """Images with new content."""
    num_before: int
    """Number of different contents before."""
    num_relabelled: int
    """Images whose content had another label before."""
    threshold: float
    """z above which a shift is marked."""
    shifts: tuple[Shift, ...] = ()
    is_marked: bool = False
    """Whether a shift is above the threshold."""
    num_judged: int = 0
    """New images whose labels were compared with the champion's predictions."""
    num_disagreeing: int = 0
    """Of these, images for which it predicts another class."""
    share_expected: float | None = None
    """Expected fraction of disagreement if labels were drawn from the champion's probabilities."""
    z_disagreeing: float | None = None
    """Excess of disagreement in standard deviations; an overconfident champion raises it every night."""
    unmeasured: tuple[str, ...] = ()
    """What could not be measured, and why."""
