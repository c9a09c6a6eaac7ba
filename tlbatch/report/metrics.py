"""Scores, by scikit-learn, with the full list of classes always given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)

from tlbatch.job.section import Metric

_DRAWS = 200
Labels = Sequence[int] | npt.NDArray[np.int64]


def score(
    metric: Metric,
    labels: Labels,
    predictions: Labels,
    *,
    num_classes: int,
    weights: npt.NDArray[np.int64] | None = None,
) -> float | None:
    """One number for labels and predictions coded 0..num_classes-1.

    Quadratic kappa is Cohen's kappa with weights (i - j)^2 (Cohen 1968), over all classes in their order, whether
    they occur or not.

    Parameters
    ----------
    weights
        How often each sample counts, (n,); empty: once.

    Returns
    -------
    The score, or None where it is undefined: no samples, or for kappa all labels and predictions one and the same.
    """
    if len(labels) == 0:
        return None
    if metric == "accuracy":
        return float(accuracy_score(labels, predictions, sample_weight=weights))
    if len(set(labels) | set(predictions)) == 1:
        return None
    return float(
        cohen_kappa_score(labels, predictions, labels=range(num_classes), weights="quadratic", sample_weight=weights)
    )


def redrawn_scores(
    metric: Metric,
    labels: npt.NDArray[np.int64],
    predictions: Sequence[npt.NDArray[np.int64]],
    groups: npt.NDArray[np.generic],
    *,
    num_classes: int,
    seed: int,
) -> npt.NDArray[np.float64]:
    """Scores of several predictions of the same samples under a bootstrap over groups (Efron 1979), paired: each draw
    is the same for all.

    Returns
    -------
    (200, len(predictions)); the standard error of a score, or of a difference, is its deviation over the draws. NaN
    where a score is undefined.
    """
    _, of = np.unique(groups, return_inverse=True)
    number = int(of.max()) + 1
    generator = np.random.default_rng(seed)
    found = np.full((_DRAWS, len(predictions)), np.nan)
    for row in found:
        weights = generator.multinomial(number, np.full(number, 1 / number))[of]
        for column, chosen in enumerate(predictions):
            value = score(metric, labels, chosen, num_classes=num_classes, weights=weights)
            row[column] = np.nan if value is None else value
    return found


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


def confusion(labels: Labels, predictions: Labels, *, num_classes: int) -> list[list[int]]:
    """Counts, a row for each true class and a column for each predicted one."""
    matrix: list[list[int]] = confusion_matrix(labels, predictions, labels=range(num_classes)).tolist()
    return matrix


def per_class(labels: Labels, predictions: Labels, classes: Sequence[str]) -> list[dict[str, object]]:
    """Precision, recall, F1 and support of every class; None where a ratio has nothing below the line."""
    columns = precision_recall_fscore_support(labels, predictions, labels=range(len(classes)), zero_division=np.nan)
    return [
        {
            "class": name,
            "precision": _number(precision),
            "recall": _number(recall),
            "f1": _number(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
