"""Whether probabilities mean what they say, and one temperature that makes them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.model_selection import GroupKFold

from tlbatch.metrics.bootstrap import estimate, group_sums_of_values, resample, wilson
from tlbatch.runs.report import Bin, Calibration, Reliability

_BINS = 15
_FOLDS = 5
_LEAST_GROUPS = 50
_WIDEST = 3.0
_TINY = float(np.finfo(np.float64).eps)
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


def reliability(probabilities: Floats, truth: Ints, groups: Ints, *, seed: int) -> Reliability:
    """Log loss, Brier score and expected calibration error, with intervals over groups.

    The Brier score (1950) is the mean squared distance from the true class, from 0 to 2; the expected calibration error
    (Guo et al. 2017) has 15 bins of equal width of the highest probability.

    Parameters
    ----------
    probabilities
        (n, num_classes).
    truth
        (n,).
    groups
        From 0, (n,).
    """
    exact = _normalised(probabilities)
    highest = exact.max(axis=1)
    right = exact.argmax(axis=1) == truth
    distances = (exact**2).sum(axis=1) + 1 - 2 * exact[np.arange(len(truth)), truth]
    losses = -np.log(exact[np.arange(len(truth)), truth].clip(_TINY, 1))
    at = np.minimum((highest * _BINS).astype(np.int64), _BINS - 1)
    values = np.column_stack([np.ones(len(truth)), losses, distances, highest - right])
    columns = np.column_stack([np.tile(np.arange(3, dtype=np.int32), (len(truth), 1)), 3 + at.astype(np.int32)])
    begins = np.arange(0, values.size + 1, values.shape[1])
    sparse = csr_array((values.ravel(), columns.ravel(), begins), shape=(len(truth), 3 + _BINS))
    kinds = group_sums_of_values(sparse, groups)
    sums = np.concatenate(list(resample(kinds, seed=seed)))
    total, every = sums[:, 0], np.arange(exact.shape[1])
    error = float(np.abs(np.bincount(at, highest - right)).sum() / len(truth))
    errors = np.abs(sums[:, 3:]).sum(axis=1) / total
    errors = np.maximum(0, errors - errors.mean() + error)  # a draw adds noise to every bin, which adds up
    bins = []
    for number in range(_BINS):
        inside = at == number
        if inside.any():
            num, hits = int(inside.sum()), int(right[inside].sum())
            edges = (number / _BINS, (number + 1) / _BINS)
            mean = float(highest[inside].mean())
            bins.append(Bin(low=edges[0], high=edges[1], n=num, confidence=mean, accuracy=wilson(hits, num)))
    return Reliability(
        log_loss=estimate(float(log_loss(truth, exact, labels=every)), sums[:, 1] / total),
        brier=estimate(float(brier_score_loss(truth, exact, labels=every, scale_by_half=False)), sums[:, 2] / total),
        ece=estimate(error, errors),
        bins=tuple(bins),
    )


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities at another temperature: the softmax of their logarithms divided by it; ranks stay as they are."""
    logs = np.log(_normalised(probabilities).clip(_TINY, 1))
    return np.asarray(softmax(logs / temperature, axis=1))


def fit_temperature(probabilities: Floats, truth: Ints) -> float:
    """The temperature with the least log loss (Guo et al. 2017)."""
    logs = np.log(_normalised(probabilities).clip(_TINY, 1))

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(truth)), truth]))

    return float(np.exp(minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded").x))


def evaluate_temperature(
    probabilities: Floats, truth: Ints, groups: Ints, *, images: str
) -> tuple[float | None, bool, str]:
    """A temperature, whether it gains on images it was not fitted on, and why so.

    Parameters
    ----------
    probabilities, truth, groups
        Of images that the model was not trained on, and that are no test images.
    images
        What these are called.
    """
    num_groups = len(np.unique(groups))
    if num_groups < _LEAST_GROUPS:
        return None, False, f"{num_groups} groups of {images}, fewer than the {_LEAST_GROUPS} that it takes"
    plain = fitted = 0.0
    every = np.arange(probabilities.shape[1])
    for fit, judged in GroupKFold(_FOLDS).split(probabilities, truth, groups):
        found = fit_temperature(probabilities[fit], truth[fit])
        one, other = _normalised(probabilities[judged]), tempered(probabilities[judged], found)
        plain += float(log_loss(truth[judged], one, labels=every, normalize=False))
        fitted += float(log_loss(truth[judged], other, labels=every, normalize=False))
    number, kept = len(truth), fitted < plain
    why = (
        f"on {number} {images}, each judged by a fit to the other folds, the log loss "
        f"{'falls' if kept else 'does not fall'}: {plain / number:.4f} without, {fitted / number:.4f} with"
    )
    return fit_temperature(probabilities, truth), kept, why


def calibrate(
    probabilities: Floats, truth: Ints, groups: Ints, fitted: tuple[float | None, bool, str], *, seed: int
) -> Calibration | None:
    """The test images before and after the temperature that `evaluate_temperature` found; None without test images."""
    if not len(truth):
        return None
    temperature, kept, why = fitted
    after = None
    if temperature is not None:
        after = reliability(tempered(probabilities, temperature), truth, groups, seed=seed)
    before = reliability(probabilities, truth, groups, seed=seed)
    return Calibration(temperature=temperature, kept=kept, why=why, before=before, after=after)


def _normalised(probabilities: Floats) -> npt.NDArray[np.float64]:
    exact = np.asarray(probabilities, np.float64)
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))  # rows of float32 are off by 1e-7
