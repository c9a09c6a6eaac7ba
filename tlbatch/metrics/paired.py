"""Two sets of decisions on the same images, paired."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, hstack
from scipy.stats import binomtest, norm

from tlbatch.config.base import Metric
from tlbatch.metrics.bootstrap import estimate, kinds_of_cells, redrawn
from tlbatch.metrics.confusion import Decided, effects, point_scores, table_scores
from tlbatch.runs.report import Comparison, Estimate, Verdict

_LEVEL = 0.05
_FEW = 20
Ints = npt.NDArray[np.int64]


def compare(metric: Metric, first: Decided, other: Decided, *, name: str, seed: int) -> Comparison:
    """The difference of a score with its paired interval over groups, and McNemar's exact test (1947).

    A draw of groups is the same for both, so what makes an image hard for both cancels out: the draw is over cells of
    truth, first and other decision. The difference counts when its interval does not hold zero. Where all draws agree
    on one that is not zero, it counts when the sign test over groups says so, and is undecided otherwise.

    Parameters
    ----------
    other
        On the same images in the same order.
    """
    assert np.array_equal(first.truth, other.truth)
    right, also = first.chosen == first.truth, other.chosen == other.truth
    only_first, only_other = int((right & ~also).sum()), int((also & ~right).sum())
    discordant = only_first + only_other
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    found = estimate(*difference(metric, first, other, seed=seed), undefined="one of the scores is undefined")
    return Comparison(
        other=name,
        metric=metric,
        n=len(first.truth),
        difference=found,
        only_first=only_first,
        only_other=only_other,
        p_value=p_value,
        verdict=_verdict(found, first.groups, right.astype(np.float64) - also),
    )


def _verdict(found: Estimate, groups: Ints, gains: npt.NDArray[np.float64]) -> Verdict:
    """What a difference says, with what the first gains on each image."""
    if found.value is None:
        return "undecided"
    if found.low is not None and found.high is not None:
        decided = found.low > 0 or found.high < 0
    elif found.value == 0:
        decided = False
    else:
        of_groups = np.bincount(groups, gains)
        ahead, behind = int((of_groups > 0).sum()), int((of_groups < 0).sum())
        if ahead + behind == 0 or binomtest(ahead, ahead + behind).pvalue >= _LEVEL:
            return "undecided"
        decided = True
    if not decided:
        return "not different"
    return "better" if found.value > 0 else "worse"


def difference(
    metric: Metric, first: Decided, other: Decided, *, seed: int
) -> tuple[float | None, npt.NDArray[np.float64]]:
    """The score of the first less that of the other, and what the same draws of groups make of it, (draws,)."""
    if not len(first.truth):
        return None, np.empty(0)
    num = first.num_classes
    cells, used = kinds_of_cells((first.truth * num + first.chosen) * num + other.chosen, first.groups)
    truth, one, two = used // num**2, used // num % num, used % num
    both = csr_array(hstack([effects(truth, one, num), effects(truth, two, num)]))
    drawn = np.concatenate(list(redrawn(cells.times(both), seed=seed)))
    half = drawn.shape[1] // 2
    draws = table_scores(drawn[:, :half])[metric] - table_scores(drawn[:, half:])[metric]
    return point_scores(first)[metric] - point_scores(other)[metric], draws


def lower_bound(value: float | None, draws: npt.NDArray[np.float64], level: float) -> float | None:
    """Below which a difference lies with a probability of ``level``, one-sided.

    The percentile of its draws; where fewer than twenty of them lie below it, the lower of that and the normal bound
    ``value - z(level) * sd``. None where the draws say nothing: most are undefined, or all are the same.
    """
    found = estimate(value, draws)
    if found.value is None or found.low is None:
        return None
    defined = draws[~np.isnan(draws)]
    percentile = float(np.quantile(defined, level))
    if level * len(defined) >= _FEW:
        return percentile
    return min(percentile, found.value + float(norm.ppf(level)) * float(defined.std(ddof=1)))
