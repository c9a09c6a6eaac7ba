"""Two sets of decisions on the same images, paired."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, hstack
from scipy.stats import binomtest, norm

from tlbatch.config.base import Metric
from tlbatch.metrics.bootstrap import estimate, group_sums_of_cells, resample
from tlbatch.metrics.confusion import Classified, effects, point_scores, table_scores
from tlbatch.runs.report import Comparison, Estimate, Verdict

_LEVEL = 0.05
_FEW = 20
Ints = npt.NDArray[np.int64]


def compare(metric: Metric, first: Classified, other: Classified, *, name: str, seed: int) -> Comparison:
    """The difference of a score with its paired interval over groups, and McNemar's exact test (1947).

    A draw of groups is the same for both, so what makes an image hard for both cancels out: the draw is over cells of
    truth, first and other decision. The difference counts when its interval does not hold zero. Where all draws agree
    on one that is not zero, it counts when the sign test over groups says so, and is undecided otherwise.

    Parameters
    ----------
    other
        On the same images in the same order.
    """
    assert np.array_equal(first.y_true, other.y_true)
    right, also = first.y_pred == first.y_true, other.y_pred == other.y_true
    only_first, only_other = int((right & ~also).sum()), int((also & ~right).sum())
    discordant = only_first + only_other
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    found = estimate(*difference(metric, first, other, seed=seed), undefined="one of the scores is undefined")
    return Comparison(
        other=name,
        metric=metric,
        n=len(first.y_true),
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
    metric: Metric, first: Classified, other: Classified, *, seed: int
) -> tuple[float | None, npt.NDArray[np.float64]]:
    """The score of the first less that of the other, and what the same draws of groups make of it, (draws,)."""
    if not len(first.y_true):
        return None, np.empty(0)
    num = first.num_classes
    cells, used = group_sums_of_cells((first.y_true * num + first.y_pred) * num + other.y_pred, first.groups)
    y_true, one, two = used // num**2, used // num % num, used % num
    both = csr_array(hstack([effects(y_true, one, num), effects(y_true, two, num)]))
    drawn = np.concatenate(list(resample(cells.times(both), seed=seed)))
    half = drawn.shape[1] // 2
    replicates = table_scores(drawn[:, :half])[metric] - table_scores(drawn[:, half:])[metric]
    return point_scores(first)[metric] - point_scores(other)[metric], replicates


def lower_bound(value: float | None, replicates: npt.NDArray[np.float64], level: float) -> float | None:
    """Below which a difference lies with a probability of ``level``, one-sided.

    The percentile of its draws; where fewer than twenty of them lie below it, the lower of that and the normal bound
    ``value - z(level) * sd``. None where the draws say nothing: most are undefined, or all are the same.
    """
    found = estimate(value, replicates)
    if found.value is None or found.low is None:
        return None
    defined = replicates[~np.isnan(replicates)]
    percentile = float(np.quantile(defined, level))
    if level * len(defined) >= _FEW:
        return percentile
    return min(percentile, found.value + float(norm.ppf(level)) * float(defined.std(ddof=1)))
