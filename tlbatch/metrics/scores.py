"""Single numbers that training is steered by, by scikit-learn, with the full list of classes always given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, cohen_kappa_score, log_loss

from tlbatch.config.base import Metric

_DRAWS = 200
Ints = npt.NDArray[np.int64]
Labels = Sequence[int] | Ints


def score(metric: Metric, labels: Labels, predictions: Labels, *, num_classes: int) -> float | None:
    """One number for labels and predictions coded 0..num_classes-1.

    Quadratic kappa is Cohen's kappa with weights (i - j)^2 (Cohen 1968), over all classes in their order, whether
    they occur or not.

    Returns
    -------
    The score, or None where it is undefined: no samples, or for kappa all labels and predictions one and the same.
    """
    if len(labels) == 0:
        return None
    if metric == "accuracy":
        return float(accuracy_score(labels, predictions))
    if len(set(labels) | set(predictions)) == 1:
        return None
    return float(cohen_kappa_score(labels, predictions, labels=range(num_classes), weights="quadratic"))


def bootstrap_scores(
    metric: Metric,
    labels: Ints,
    predictions: Sequence[Ints],
    groups: npt.NDArray[np.generic],
    *,
    seed: int,
) -> npt.NDArray[np.float64]:
    """Scores of several predictions of the same samples under a bootstrap over groups (Efron 1979), paired: each draw
    is the same for all.

    A score depends on a few sums over the samples alone, so a draw adds up those of the groups that it drew. Quadratic
    kappa is the concordance correlation of the codes (King and Chinchilli 2001).

    Returns
    -------
    (200, len(predictions)); the standard error of a score, or of a difference, is its deviation over the draws. NaN
    where a score is undefined.
    """
    _, of = np.unique(groups, return_inverse=True)
    number = int(of.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=_DRAWS)

    def sums(values: Ints) -> npt.NDArray[np.float64]:
        return np.asarray(drawn @ np.bincount(of, values, minlength=number), np.float64)

    n, x = sums(np.ones_like(labels)), sums(labels)
    spread = n * sums(labels**2) - x**2
    columns = []
    for y_pred in predictions:
        if metric == "accuracy":
            columns.append(sums(labels == y_pred) / n)
            continue
        y = sums(y_pred)
        apart = spread + n * sums(y_pred**2) - y**2 + (x - y) ** 2
        with np.errstate(invalid="ignore"):
            columns.append(2 * (n * sums(labels * y_pred) - x * y) / apart)
    return np.stack(columns, axis=1)


def mean_log_loss(labels: Labels, probabilities: npt.NDArray[np.floating[Any]]) -> float | None:
    """Mean negative log likelihood of the true class; None for no samples.

    Parameters
    ----------
    probabilities
        (n, num_classes), rows that sum to one.
    """
    if len(labels) == 0:
        return None
    exact = probabilities / probabilities.sum(axis=1, keepdims=True)  # float32 rows are off by 1e-7, which it warns of
    return float(log_loss(labels, exact, labels=range(probabilities.shape[1])))
