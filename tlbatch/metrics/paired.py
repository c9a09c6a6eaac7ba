"""Paired comparison of two classifiers on the same images."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, hstack
from scipy.stats import binomtest, norm

from tlbatch.config.base import Metric
from tlbatch.core.typing import Ints
from tlbatch.metrics.bootstrap import estimate, group_sums_of_cells, resample
from tlbatch.metrics.confusion import Classified, effects, point_scores, table_scores
from tlbatch.runs.report import Comparison, Estimate, Verdict

_LEVEL = 0.05
_FEW = 20


def compare(metric: Metric, first: Classified, other: Classified, *, name: str, seed: int) -> Comparison:
    """Estimate the difference of a score with its paired bootstrap interval, and run McNemar's exact test (1947).

    Both are scored on the same resampled groups, so variation in image difficulty that they share cancels out:
    resampled are the cells of true class, first and other prediction. The difference is significant when its interval
    excludes zero. Where all replicates equal the same non-zero difference, the sign test over groups decides, and the
    verdict is undecided if it is not significant.

    Parameters
    ----------
    other
        Of the same images in the same order.
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
    """Return the verdict on a difference; ``gains`` is what the first run gains on each image, (n,)."""
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
    """Return the score of the first minus that of the other, and its bootstrap replicates, (replicates,)."""
    if not len(first.y_true):
        return None, np.empty(0)
    num = first.num_classes
    cells, used = group_sums_of_cells(first.cells * num + other.y_pred, first.groups)
    one, two = used // num, used // num**2 * num + used % num
    both = csr_array(hstack([effects(one, num), effects(two, num)]))
    drawn = np.concatenate(list(resample(cells.times(both), seed=seed)))
    half = drawn.shape[1] // 2
    replicates = table_scores(drawn[:, :half])[metric] - table_scores(drawn[:, half:])[metric]
    return point_scores(first)[metric] - point_scores(other)[metric], replicates


def lower_bound(value: float | None, replicates: npt.NDArray[np.float64], level: float) -> float | None:
    """Return the one-sided lower confidence bound of a difference at ``level``.

    This is the percentile of its replicates; where fewer than twenty of them lie below it, the lower of the percentile
    and the normal bound ``value + z(level) * sd``, z being the normal quantile. None where too
    many replicates are undefined, or all are identical.
    """
    found = estimate(value, replicates)
    if found.value is None or found.low is None:
        return None
    defined = replicates[~np.isnan(replicates)]
    percentile = float(np.quantile(defined, level))
    if level * len(defined) >= _FEW:
        return percentile
    return min(percentile, found.value + float(norm.ppf(level)) * float(defined.std(ddof=1)))
