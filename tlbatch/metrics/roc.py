"""ROC and precision-recall analysis: areas under the curve, curves, and thresholds for binary questions."""

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from tlbatch.core.typing import Bools, Floats, Ints
from tlbatch.metrics.bootstrap import group_sums_of_cells, proportion, resample
from tlbatch.runs.report import Curve, Estimate, OperatingPoint, Ranked

_POINTS = 101
_ROUNDING = 1e-12
_NEVER = float(np.nextafter(1, 2))
"""A threshold above every probability."""


def area(positive: Bools, scores: Floats, groups: Ints) -> Estimate:
    """Compute the area under the ROC curve, with the clustered variance of Obuchowski (1997) on the logit scale.

    Parameters
    ----------
    positive
        True where the image is positive, (n,).
    scores
        Higher for positive, (n,).
    groups
        Numbered from 0, (n,).
    """
    if positive.all() or not positive.any():
        return Estimate(value=None, undefined="positive and negative images required" if len(positive) else "no images")
    value = float(roc_auc_score(positive, scores))
    if value in (0, 1):
        return Estimate(value=value, undefined="no interval: complete separation")
    num_yes, num_no = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(scores)
    beaten = np.empty(len(scores))
    beaten[positive] = (ranks[positive] - rankdata(scores[positive])) / num_no  # fraction of negatives below
    beaten[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / num_yes  # fraction of positives above
    yes, no = (np.bincount(groups[some], beaten[some] - value, groups.max() + 1) for some in (positive, ~positive))
    of_yes, of_no, of_all = (
        np.count_nonzero(np.bincount(groups[some])) for some in (positive, ~positive, positive | True)
    )
    if min(of_yes, of_no) < 2:
        return Estimate(value=value, undefined="no interval: positive or negative images in one group only")
    variance = (
        of_yes / (of_yes - 1) * (yes**2).sum() / num_yes**2
        + of_no / (of_no - 1) * (no**2).sum() / num_no**2
        + 2 * of_all / (of_all - 1) * (yes * no).sum() / (num_yes * num_no)
    )
    if variance <= _ROUNDING:
        return Estimate(value=value, undefined="no interval: no variance between groups")
    reach = norm.ppf(0.975) * np.sqrt(variance) / (value * (1 - value))
    return Estimate(value=value, low=float(expit(logit(value) - reach)), high=float(expit(logit(value) + reach)))


def threshold_for(positive: Bools, scores: Floats, *, sensitivity: float = 0, specificity: float = 0) -> float | None:
    """Find the highest threshold with a given sensitivity, or the lowest with a given specificity.

    Scores at or above the threshold count as positive. None unless positive and negative images are present.
    """
    if positive.all() or not positive.any():
        return None
    found, reached, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    if sensitivity:
        best = np.flatnonzero(reached >= sensitivity)[0]
    else:
        best = np.flatnonzero(found <= 1 - specificity + _ROUNDING)[-1]
    return float(min(thresholds[best], _NEVER))


def at_threshold(
    positive: Bools, answers: Bools, groups: Ints, *, aim: str, threshold: float | None, seed: int
) -> OperatingPoint:
    """Compute sensitivity, specificity and predictive values, with bootstrap intervals over groups."""
    cells, used = group_sums_of_cells(2 * positive.astype(np.int64) + answers, groups)
    drawn = np.zeros((1, 4)) if not len(positive) else np.concatenate(list(resample(cells, seed=seed)))
    table, replicates, having = np.zeros(4, np.int64), np.zeros((len(drawn), 4)), np.zeros(4, np.int64)
    for column, cell in enumerate(used):
        table[cell] = int((cells.sums[:, [column]].toarray()[:, 0] * cells.counts).sum())
        replicates[:, cell], having[cell] = drawn[:, column], cells.having(column)
    no_no, no_yes, yes_no, yes_yes = range(4)

    def share(right: int, wrong: int, why: str) -> Estimate:
        with np.errstate(invalid="ignore"):
            drawn_share = replicates[:, right] / (replicates[:, right] + replicates[:, wrong])
        total, groups_behind = int(table[right] + table[wrong]), int(having[right] + having[wrong])
        return proportion(int(table[right]), total, drawn_share, num_groups=groups_behind, undefined=why)

    return OperatingPoint(
        aim=aim,
        threshold=threshold,
        counts=(int(table[yes_yes]), int(table[no_yes]), int(table[yes_no]), int(table[no_no])),
        sensitivity=share(yes_yes, yes_no, "no positive images"),
        specificity=share(no_no, no_yes, "no negative images"),
        ppv=share(yes_yes, no_yes, "no positive predictions"),
        npv=share(no_no, yes_no, "no negative predictions"),
    )


def rank(truth: Bools, scores: Floats, groups: Ints, *, curves: bool = True) -> Ranked:
    """Compute the areas and, if asked for, curves of at most 101 points."""
    both = bool(truth.any() and not truth.all())
    roc = pr = Curve(x=(), y=())
    if both and curves:
        x, y, _ = roc_curve(truth, scores)
        precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
        roc, pr = _thinned(x, y), _thinned(recall[::-1], precision[::-1])
    average_precision = float(average_precision_score(truth, scores)) if both else None
    return Ranked(auc=area(truth, scores, groups), average_precision=average_precision, roc=roc, pr=pr)


def _thinned(x: Floats, y: Floats) -> Curve:
    """Thin a curve to points about equally spaced along it."""
    if len(x) > _POINTS:
        along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        some = np.unique(np.searchsorted(along, np.linspace(0, along[-1], _POINTS)).clip(0, len(x) - 1))
        x, y = x[some], y[some]
    return Curve(x=tuple(np.round(x, 5).tolist()), y=tuple(np.round(y, 5).tolist()))
