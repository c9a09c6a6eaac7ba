"""Calibration of predicted probabilities, and temperature scaling."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.model_selection import GroupKFold

from tlbatch.core.text import counted
from tlbatch.core.typing import Floats, Ints
from tlbatch.metrics.bootstrap import estimate, group_sums_of_values, resample, wilson
from tlbatch.runs.report import Bin, Calibration, Reliability

_BINS = 15
_FOLDS = 5
_LEAST_GROUPS = 50
_WIDEST = 3.0
_TINY = float(np.finfo(np.float64).eps)


def reliability(probabilities: Floats, truth: Ints, groups: Ints, *, seed: int) -> Reliability:
    """Compute log loss, Brier score and expected calibration error, with bootstrap intervals over groups.

    The Brier score (1950) is the mean squared distance from the one-hot true class, from 0 to 2; the expected
    calibration error (Guo et al. 2017) uses 15 bins of equal width over the highest probability.

    Parameters
    ----------
    probabilities
        (n, num_classes).
    truth
        (n,).
    groups
        Numbered from 0, (n,).
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
    errors = np.maximum(0, errors - errors.mean() + error)  # resampling noise biases the ECE upwards
    bins = []
    for number in np.unique(at).tolist():
        inside = at == number
        num, mean = int(inside.sum()), float(highest[inside].mean())
        low, high, accuracy = number / _BINS, (number + 1) / _BINS, wilson(int(right[inside].sum()), num)
        bins.append(Bin(low=low, high=high, n=num, confidence=mean, accuracy=accuracy))
    return Reliability(
        log_loss=estimate(float(log_loss(truth, exact, labels=every)), sums[:, 1] / total),
        brier=estimate(float(brier_score_loss(truth, exact, labels=every, scale_by_half=False)), sums[:, 2] / total),
        ece=estimate(error, errors),
        bins=tuple(bins),
    )


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Scale probabilities: the softmax of their logarithms divided by the temperature; their order is unchanged."""
    logs = np.log(_normalised(probabilities).clip(_TINY, 1))
    return np.asarray(softmax(logs / temperature, axis=1))


def fit_temperature(probabilities: Floats, truth: Ints) -> float:
    """Find the temperature with the lowest log loss (Guo et al. 2017)."""
    logs = np.log(_normalised(probabilities).clip(_TINY, 1))

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(truth)), truth]))

    return float(np.exp(minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded").x))


def evaluate_temperature(
    probabilities: Floats, truth: Ints, groups: Ints, *, images: str
) -> tuple[float | None, bool, str]:
    """Fit a temperature, and decide by cross-validation whether it improves the log loss.

    Parameters
    ----------
    probabilities, truth, groups
        Of held-out or out-of-fold images, never of test images.
    images
        Name of these images in the returned explanation.

    Returns
    -------
    The temperature, None for too few groups; whether it improves the log loss; and the explanation.
    """
    num_groups = len(np.unique(groups))
    if num_groups < _LEAST_GROUPS:
        return None, False, f"{counted(num_groups, 'group')} of {images}, fewer than the {_LEAST_GROUPS} required"
    plain = fitted = 0.0
    every = np.arange(probabilities.shape[1])
    for fit, held_out in GroupKFold(_FOLDS).split(probabilities, truth, groups):
        found = fit_temperature(probabilities[fit], truth[fit])
        one, other = _normalised(probabilities[held_out]), tempered(probabilities[held_out], found)
        plain += float(log_loss(truth[held_out], one, labels=every, normalize=False))
        fitted += float(log_loss(truth[held_out], other, labels=every, normalize=False))
    number, kept = len(truth), fitted < plain
    why = (
        f"cross-validated log loss on {number} {images} "
        f"{'decreases' if kept else 'does not decrease'} ({plain / number:.4f} without, {fitted / number:.4f} with it)"
    )
    return fit_temperature(probabilities, truth), kept, why


def calibrate(
    probabilities: Floats, truth: Ints, groups: Ints, fitted: tuple[float | None, bool, str], *, seed: int
) -> Calibration | None:
    """Assess the test images before and after the temperature of `evaluate_temperature`; None without test images."""
    if not len(truth):
        return None
    temperature, kept, why = fitted
    after = None if temperature is None else reliability(tempered(probabilities, temperature), truth, groups, seed=seed)
    before = reliability(probabilities, truth, groups, seed=seed)
    return Calibration(temperature=temperature, kept=kept, why=why, before=before, after=after)


def _normalised(probabilities: Floats) -> npt.NDArray[np.float64]:
    exact = np.asarray(probabilities, np.float64)
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))  # float32 rows sum to 1 only within 1e-7
