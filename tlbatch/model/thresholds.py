"""Thresholds between the grades of a regression, fitted for quadratic kappa on validation."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import KFold

_FOLDS = 5
_LEAST = 20
Floats = npt.NDArray[np.float64]


def fit_thresholds(values: Floats, grades: npt.NDArray[np.int64], *, num_classes: int) -> Floats:
    """Thresholds that gain over rounding where they are judged on samples they were not fitted on, else k + 1/2.

    Parameters
    ----------
    values
        Outputs, (n,).
    grades
        0 to num_classes - 1, (n,).

    Returns
    -------
    (num_classes - 1,), increasing.
    """
    rounding: Floats = np.arange(num_classes - 1, dtype=np.float64) + 0.5
    if len(values) < _LEAST:
        return rounding
    apart = np.empty(len(values), np.int64)
    for fitted, judged in KFold(_FOLDS, shuffle=True, random_state=0).split(values):
        apart[judged] = np.digitize(values[judged], _fitted(values[fitted], grades[fitted], rounding))
    gain = _kappa(grades, apart, num_classes) - _kappa(grades, np.digitize(values, rounding), num_classes)
    return _fitted(values, grades, rounding) if gain > 0 else rounding


def _fitted(values: Floats, grades: npt.NDArray[np.int64], start: Floats) -> Floats:
    """The best found from two starts: rounding, and as many of each grade as there are."""
    num_classes = len(start) + 1
    shares = np.bincount(grades, minlength=num_classes).cumsum()[:-1] / len(grades)
    found = [
        minimize(
            lambda thresholds: -_kappa(grades, np.digitize(values, np.sort(thresholds)), num_classes),
            begin,
            method="Nelder-Mead",
            options={"initial_simplex": np.vstack([begin, begin + 0.25 * np.eye(len(begin))])},
        )
        for begin in (start, np.quantile(values, shares))
    ]
    fitted: Floats = np.sort(min(found, key=lambda one: float(one.fun)).x)
    return fitted


def _kappa(grades: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], num_classes: int) -> float:
    return float(np.nan_to_num(cohen_kappa_score(grades, chosen, labels=range(num_classes), weights="quadratic")))
