"""``drift.json``: what the new images of a night are like, compared with those that were there before."""

from typing import Literal

from tlbatch.runs.records import Record

Aspect = Literal["classes", "images", "features"]


class Difference(Record):
    """One of the columns that differ most."""

    name: str
    """A class, or a statistic of the images."""
    before: float
    """Mean over the images before; of a class its share."""
    now: float
    """Mean over the new images."""


class Shift(Record):
    """How far the new images are from those before in one respect, and how far they would be without a shift."""

    what: Aspect
    num_new: int = 0
    """Images that were compared, with some left out where groups are of unlike sizes."""
    num_before: int = 0
    num_lacking: int = 0
    """Images of both that could not be: they cannot be read, or their activations are not cached."""
    distance: float | None = None
    """Squared distance of the means, in units of the variance of every column."""
    mean: float | None = None
    """Of the distance when groups are drawn at random."""
    deviation: float | None = None
    """Standard deviation of the same."""
    z: float | None = None
    """Distance less the mean, in standard deviations."""
    p_value: float | None = None
    """Share of the draws, with the night itself as one of them, that are at least as far."""
    is_above: bool = False
    """Whether z is above the threshold, and the night further than all but a few draws."""
    differences: tuple[Difference, ...] = ()
    """What differs most, the greatest first; none of features, which have no names."""
    undefined: str = ""
    """Why it is not judged."""


class Drift(Record):
    """The report of one night."""

    num_new: int
    """Images whose content was not there before."""
    num_before: int
    """Different contents that were there before."""
    num_relabelled: int
    """Images whose content was there before with another label."""
    threshold: float
    """z above which a shift is marked."""
    shifts: tuple[Shift, ...] = ()
    is_marked: bool = False
    """Whether a shift is above the threshold."""
    num_judged: int = 0
    """New images whose labels were compared with what the champion says."""
    num_disagreeing: int = 0
    """Those of which it says another class."""
    share_expected: float | None = None
    """Share that would disagree if the labels were drawn from the champion's own probabilities."""
    z_disagreeing: float | None = None
    """How many standard deviations more disagree than that; a champion too sure of itself raises it every night."""
    unmeasured: tuple[str, ...] = ()
    """What could not be measured, and why."""
