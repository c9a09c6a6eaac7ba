"""The scores that training uses for selection, computed over the full list of classes."""

from collections.abc import Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from tlbatch.config.base import Metric
from tlbatch.core.typing import Floats, Ints
from tlbatch.metrics.bootstrap import numbered
from tlbatch.metrics.kappa import kappa_of_codes, quadratic_kappa

_DRAWS = 200
Labels = Sequence[int] | Ints


def score(metric: Metric, labels: Labels, predictions: Labels) -> float | None:
    """Compute a score of labels and predictions, codes from 0.

    Quadratic kappa is Cohen's kappa with weights (i - j)^2 (Cohen 1968), over all classes in order, including those
    that do not occur.

    Returns
    -------
    The score, or None where it is undefined: no samples, or, for kappa, all labels and predictions equal.
    """
    if len(labels) == 0:
        return None
    y_true, y_pred = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    match metric:
        case "accuracy":
            return float((y_true == y_pred).mean())
        case "quadratic_kappa":
            found = kappa_of_codes(y_true, y_pred)
            return None if np.isnan(found) else found
        case _:
            assert_never(metric)


def bootstrap_scores(
    metric: Metric, labels: Ints, predictions: Sequence[Ints], groups: npt.NDArray[np.generic], *, seed: int
) -> Floats:
    """Bootstrap the scores of several predictions of the same samples over groups (Efron 1979).

    The bootstrap is paired: all predictions are scored on the same replicates. A score depends only on a few sums over
    the samples, so a replicate adds up the sums of its groups.

    Returns
    -------
    (200, len(predictions)); the standard error of a score, or of a difference, is its standard deviation over the
    replicates. NaN where a score is undefined.
    """
    of = numbered(groups)
    number = int(of.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=_DRAWS)

    def sums(values: Ints) -> Floats:
        return np.asarray(drawn @ np.bincount(of, values, minlength=number), np.float64)

    n = sums(np.ones_like(labels))
    columns: list[Floats] = []
    for y_pred in predictions:
        match metric:
            case "accuracy":
                columns.append(sums(labels == y_pred) / n)
            case "quadratic_kappa":
                moments = (labels, y_pred, labels**2, y_pred**2, labels * y_pred)
                with np.errstate(invalid="ignore"):
                    columns.append(quadratic_kappa(n, *map(sums, moments)))
            case _:
                assert_never(metric)
    return np.stack(columns, axis=1)


def mean_log_loss(labels: Labels, probabilities: npt.NDArray[np.floating[Any]]) -> float | None:
    """Compute the mean negative log likelihood of the true class; None for no samples.

    Parameters
    ----------
    probabilities
        (n, num_classes), rows sum to one.
    """
    if len(labels) == 0:
        return None
    from sklearn.metrics import log_loss  # noqa: PLC0415 (scikit-learn takes seconds to import)

    exact = probabilities / probabilities.sum(axis=1, keepdims=True)  # float32 rows make log_loss warn
    return float(log_loss(labels, exact, labels=range(probabilities.shape[1])))
