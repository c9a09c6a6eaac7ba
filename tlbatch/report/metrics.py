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

Labels = Sequence[int] | npt.NDArray[np.int64]


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
