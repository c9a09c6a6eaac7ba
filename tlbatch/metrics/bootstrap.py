"""Bootstrap over groups: sums over resampled groups, and the confidence intervals of scores computed from them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from tlbatch.core.typing import Floats, Ints
from tlbatch.runs.report import Estimate

REPLICATES = 10_000
_MOST_KINDS = 2_000
_BLOCK = 4_000_000
_BINOMIAL = 13
"""Cost of one binomial random number, in uniform integers."""


@dataclass(frozen=True)
class GroupSums:
    """Groups of images; groups with equal sums are merged into one kind."""

    sums: csr_array
    """Contribution of one group of each kind, (kinds, columns)."""
    counts: Ints
    """Number of groups of each kind, (kinds,)."""

    @property
    def num_groups(self) -> int:
        """Number of groups of all kinds."""
        return int(self.counts.sum())

    def having(self, column: int) -> int:
        """Count the groups that contribute to a column."""
        return int(self.counts[self.sums[:, [column]].toarray()[:, 0] != 0].sum())

    def times(self, effects: csr_array) -> "GroupSums":
        """Return the same groups with their sums multiplied by ``effects``, (columns, new columns)."""
        return GroupSums(csr_array(self.sums @ effects), self.counts)


def numbered(groups: npt.NDArray[np.generic]) -> Ints:
    """Return the groups as integers from 0, (n,)."""
    _, of = np.unique(groups, return_inverse=True)
    return np.asarray(of, np.int64)


def group_sums_of_cells(cells: Ints, groups: Ints) -> tuple[GroupSums, Ints]:
    """Count how often each cell occurs in each kind of group; groups with the same cells are one kind.

    Parameters
    ----------
    cells
        Cell of each image, any integers, (n,).
    groups
        Group of each image, numbered from 0, (n,).

    Returns
    -------
    The kinds, with a column for each cell that occurs, and these cells in increasing order.
    """
    used, of = np.unique(cells, return_inverse=True)
    marks = np.random.default_rng(0).integers(0, 2**64, size=len(used), dtype=np.uint64)
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    sums = np.zeros(num_groups, np.uint64)  # a hash, equal for equal multisets of cells; overflow wraps around
    np.add.at(sums, groups, marks[of])
    _, first, counts = np.unique(sums, return_index=True, return_counts=True)
    table = csr_array((np.ones(len(cells)), (groups, of)), shape=(num_groups, len(used)))
    return GroupSums(csr_array(table[first]), counts.astype(np.int64)), used.astype(np.int64)


def group_sums_of_values(values: Floats | csr_array, groups: Ints) -> GroupSums:
    """Sum values (n, columns) over the images of each group; every group is a kind of its own."""
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    of = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape=(num_groups, len(groups)))
    return GroupSums(csr_array(of @ values), np.ones(num_groups, np.int64))


def resample(kinds: GroupSums, *, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    """Resample the groups with replacement (Efron 1979), 10,000 replicates, and yield the sums of each replicate.

    A replicate draws a multinomial number of groups of each kind. More than 2,000 kinds are combined at random into
    2,000 blocks of groups, which are resampled instead: the variance of a sum is unchanged in expectation.

    Returns
    -------
    Blocks of (some, columns), 10,000 rows in total.
    """
    rng = np.random.default_rng(seed)
    kinds = _blocks(kinds, rng) if len(kinds.counts) > _MOST_KINDS else kinds
    number, total = len(kinds.counts), kinds.num_groups
    few = total < _BINOMIAL * number
    step = max(1, _BLOCK // max(1, number, kinds.sums.shape[1], total if few else 0))
    of = np.repeat(np.arange(number), kinds.counts)
    for start in range(0, REPLICATES, step):
        rows = min(step, REPLICATES - start)
        if few:
            picked = of[rng.integers(0, total, size=(rows, total))] + number * np.arange(rows)[:, None]
            drawn = np.bincount(picked.ravel(), minlength=rows * number).reshape(rows, number)
        else:
            drawn = rng.multinomial(total, kinds.counts / total, size=rows)
        yield np.asarray((kinds.sums.T @ drawn.T.astype(np.float64)).T)


def _blocks(kinds: GroupSums, rng: np.random.Generator) -> GroupSums:
    of = np.repeat(np.arange(len(kinds.counts)), kinds.counts)
    blocks = rng.permutation(len(of)) % _MOST_KINDS
    joined = csr_array((np.ones(len(of)), (blocks, of)), shape=(_MOST_KINDS, len(kinds.counts)))
    return GroupSums(csr_array(joined @ kinds.sums), np.ones(_MOST_KINDS, np.int64))


def estimate(value: float | None, replicates: Floats, *, undefined: str = "") -> Estimate:
    """Return a value with the 2.5th and 97.5th percentiles of its replicates; NaN marks an undefined replicate."""
    if value is None or np.isnan(value):
        return Estimate(value=None, undefined=undefined or "undefined")
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < 0.95 * len(replicates):
        return Estimate(value=value, undefined="no interval: undefined in more than 5 % of the replicates")
    low, high = np.quantile(defined, (0.025, 0.975))
    if np.isclose(low, high, rtol=1e-9, atol=1e-12):
        return Estimate(value=value, undefined="no interval: identical in all replicates")
    return Estimate(value=value, low=float(low), high=float(high))


def proportion(successes: float, total: float, replicates: Floats, *, num_groups: int, undefined: str) -> Estimate:
    """Return a proportion with its bootstrap interval, or else with Wilson's, with as many trials as groups.

    There is no bootstrap interval for a proportion of 0 or 1, which is the same in every replicate, or where too many
    replicates contain no trial.
    """
    if total == 0:
        return Estimate(value=None, undefined=undefined)
    found = estimate(successes / total, replicates)
    if found.low is not None:
        return found
    return wilson(round(successes / total * num_groups), num_groups).model_copy(update={"value": successes / total})


def wilson(successes: int, total: int) -> Estimate:
    """Return a proportion of independent trials with Wilson's interval (1927)."""
    from scipy.stats import binomtest  # noqa: PLC0415 (takes a second to import)

    found = binomtest(successes, total).proportion_ci(method="wilson")
    return Estimate(value=successes / total, low=float(found.low), high=float(found.high))
