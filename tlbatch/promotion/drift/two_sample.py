"""Two-sample test between new and earlier images, and detection of label issues with a trained network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.sparse import csr_array

from tlbatch.core.typing import Bools, Floats, Ints
from tlbatch.metrics.bootstrap import numbered
from tlbatch.promotion.drift.records import Aspect, Difference, Shift

_DRAWS = 1_000
_BLOCK = 4_000_000
_MOST_COMPONENTS = 64
_GROUPS_EACH = 8
"""Groups per principal component: with as many components as images, all images are equally far apart."""
_FEWEST_NEW, _FEWEST_BEFORE = 5, 10
_SUREST = 0.003
"""Largest p-value of a marked shift: with three tests, at most 1 % of nights without a shift are marked."""
_MOST_DIFFERENCES = 3


@dataclass(frozen=True)
class Sample:
    """Images as vectors, with their groups."""

    values: Floats
    """(n, columns); NaN for images without values."""
    groups: npt.NDArray[np.generic]
    """(n,)."""

    def where(self, some: Bools | Ints) -> "Sample":
        """Return a subset of the images."""
        return Sample(self.values[some], self.groups[some])


def shift(new: Sample, before: Sample, *, what: Aspect, names: Sequence[str], threshold: float, seed: int) -> Shift:
    """Test the squared distance between the mean vectors of two sets by permutation of groups.

    The statistic is the maximum mean discrepancy with a linear kernel, with its permutation test (Gretton et al. 2012,
    A kernel two-sample test, JMLR 13). Columns are standardised over both sets together, which is the same for every
    permutation: the test is therefore exact, and columns that were constant before count too. Columns without names are
    reduced to their first principal components, at most 64 and one for every eight groups, and standardised again.

    Images of a group stay together. Means over many images vary less than those over few, so each group keeps at most
    the median number of images per group, taken from the set where it is smaller. A shift is above the threshold when
    its z is, and at most 3 of 1,000 permutations are as far: with few columns the distance has a long tail, and z alone
    would mark too many.

    Parameters
    ----------
    names
        Names of the columns, (columns,); empty if they have none.
    """
    found = [one.where(np.asarray(np.isfinite(one.values).all(axis=1))) for one in (new, before)]
    num_lacking = sum(map(len, (new.groups, before.groups))) - sum(len(one.groups) for one in found)
    medians = (np.median(np.bincount(numbered(one.groups))) for one in found if len(one.groups))
    most, rng = max(1, int(min(medians, default=1))), np.random.default_rng([seed, 0])
    new, before = (_capped(one, most, rng) for one in found)
    num_groups = len(np.unique(new.groups)), len(np.unique(before.groups))
    compared = Shift(
        what=what,
        num_new=len(new.groups),
        num_before=len(before.groups),
        num_lacking=num_lacking,
        differences=_differences(new, before, names),
    )
    if num_groups[0] < _FEWEST_NEW or num_groups[1] < _FEWEST_BEFORE:
        few = f"too few groups: {num_groups[0]} new (min {_FEWEST_NEW}), {num_groups[1]} before (min {_FEWEST_BEFORE})"
        return compared.model_copy(update={"undefined": few})
    values = _standardised(np.concatenate([new.values, before.values]))
    if not names:
        values = _components(values, min(_MOST_COMPONENTS, sum(num_groups) // _GROUPS_EACH))
    groups = np.concatenate([numbered(new.groups), numbered(before.groups) + num_groups[0]])
    distances = _distances(values, groups, num_groups[0], np.random.default_rng([seed, 1]))
    return compared.model_copy(update=_tested(distances, threshold))


def _tested(distances: npt.NDArray[np.float64], threshold: float) -> dict[str, object]:
    """Return the fields of a shift from its distance, the first, and those of all permutations."""
    distance = float(distances[0])
    mean, deviation = float(distances[1:].mean()), float(distances[1:].std())
    z = (distance - mean) / deviation if deviation > 1e-9 * mean else 0.0
    p_value = float(np.mean(distances >= distance * (1 - 1e-9)))
    return {
        "distance": distance,
        "mean": mean,
        "deviation": deviation,
        "z": z,
        "p_value": p_value,
        "is_above": z > threshold and p_value <= _SUREST,
    }


@dataclass(frozen=True)
class LabelIssues:
    """Labels that a trained network contradicts."""

    places: Ints
    """Positions of the images, sorted by decreasing margin of the predicted class over the label."""
    num_judged: int
    """Images with predictions."""
    expected: float
    """Expected number of disagreements if labels were drawn from its probabilities."""
    z: float | None
    """Excess of disagreements in standard deviations; none if all probabilities are 0 or 1."""


def label_issues(labels: Ints, probabilities: Floats) -> LabelIssues:
    """Find images whose most probable class is not their label.

    Parameters
    ----------
    labels
        Numbers of classes, (n,).
    probabilities
        (n, num_classes); NaN for an image that could not be read, which is skipped.
    """
    read = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    predicted, own = probabilities[read].astype(np.float64), labels[read]
    highest = predicted.max(axis=1, initial=0)
    margins = highest - predicted[np.arange(len(read)), own]
    order = np.argsort(-margins, kind="stable")
    contradicted = order[margins[order] > 0]
    expected, deviation = float((1 - highest).sum()), float(np.sqrt((highest * (1 - highest)).clip(0).sum()))
    z = (len(contradicted) - expected) / deviation if deviation > 0 else None
    return LabelIssues(read[contradicted].astype(np.int64), len(read), expected, z)


def _capped(one: Sample, most: int, rng: np.random.Generator) -> Sample:
    """Keep at most so many images of each group, at random."""
    order = rng.permutation(len(one.groups))
    of = numbered(one.groups)[order]
    together = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[together], of[together])  # first position of each group
    return one.where(np.sort(order[together[np.arange(len(of)) - starts < most]]))


def _standardised(values: Floats) -> Floats:
    """Scale columns to mean 0 and variance 1; constant columns become 0."""
    centred = values - values.mean(axis=0)
    deviations = centred.std(axis=0)
    varies = deviations > 1e-6 * np.abs(values).max(axis=0, initial=0)
    factors = np.where(varies, 1 / np.where(varies, deviations, 1), 0).astype(values.dtype)
    return np.asarray(centred * factors)


def _components(values: Floats, number: int) -> Floats:
    """Return the first principal components of centred columns, scaled to variance 1, (n, number or fewer)."""
    rows, columns = values.shape
    narrow = values.T @ values if columns <= rows else values @ values.T
    size = len(narrow)
    found, vectors = eigh(narrow, subset_by_index=(max(0, size - max(1, number)), size - 1))
    kept = found > 1e-5 * max(found.max(), 1e-30)
    scores = values @ vectors[:, kept] / np.sqrt(found[kept]) if columns <= rows else vectors[:, kept]
    return np.asarray(scores * np.sqrt(rows))


def _distances(values: Floats, groups: Ints, num_new: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the squared distance of the means for the true groups, then for 1,000 permutations, (1,001,)."""
    number = int(groups.max()) + 1
    of = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape=(number, len(groups)))
    sums = np.column_stack([of @ values, np.bincount(groups)])  # the last column counts
    first = np.zeros((1, number))
    first[0, :num_new] = 1
    found = [_apart(first @ sums, sums.sum(axis=0))]
    step = max(1, _BLOCK // number)
    for start in range(0, _DRAWS, step):
        rows = min(step, _DRAWS - start)
        picked = np.argpartition(rng.random((rows, number)), num_new - 1, axis=1)[:, :num_new]
        drawn = np.zeros((rows, number))
        np.put_along_axis(drawn, picked, 1, axis=1)
        found.append(_apart(drawn @ sums, sums.sum(axis=0)))
    return np.concatenate(found)


def _apart(sums: Floats, total: Floats) -> npt.NDArray[np.float64]:
    means = sums[:, :-1] / sums[:, -1:]
    others = (total[:-1] - sums[:, :-1]) / (total[-1] - sums[:, -1:])
    return np.asarray(((means - others) ** 2).sum(axis=1), np.float64)


def _differences(new: Sample, before: Sample, names: Sequence[str]) -> tuple[Difference, ...]:
    """Return the columns whose means differ most, in standard deviations."""
    if not names or not len(new.values) or not len(before.values):
        return ()
    now, then = new.values.mean(axis=0), before.values.mean(axis=0)
    deviations = np.concatenate([new.values, before.values]).std(axis=0)
    apart = np.divide(np.abs(now - then), deviations, out=np.zeros(len(names)), where=deviations > 0)
    worst = np.argsort(-apart, kind="stable")[:_MOST_DIFFERENCES]
    return tuple(
        Difference(name=names[at], before=float(then[at]), now=float(now[at])) for at in worst if apart[at] > 0
    )
