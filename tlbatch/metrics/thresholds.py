"""Thresholds between the grades of a regression, fitted for quadratic kappa on validation."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import GroupKFold

_FOLDS = 5
_LEAST = 20
Floats = npt.NDArray[np.float64]


def rounding(num_classes: int) -> Floats:
    """Thresholds that give the nearest grade, (num_classes - 1,)."""
    return np.arange(num_classes - 1, dtype=np.float64) + 0.5


def fit_thresholds(
    values: Floats,
    grades: npt.NDArray[np.int64],
    groups: npt.NDArray[np.generic],
    *,
    num_classes: int,
    search: bool = True,
) -> Floats:
    """Thresholds for quadratic kappa: rounding, unless others gain on groups they were not fitted on.

    The others are rounding after the values were given the mean and deviation of the grades, and free thresholds.

    Parameters
    ----------
    values
        Outputs, (n,).
    grades
        0 to num_classes - 1, (n,).
    groups
        What belongs together, (n,): the views of an image, the eyes of a patient.
    search
        Try free thresholds too, which takes a second.

    Returns
    -------
    (num_classes - 1,), increasing.
    """
    plain = rounding(num_classes)
    if len(np.unique(groups)) < _LEAST:
        return plain
    gained = {}
    folds = list(GroupKFold(_FOLDS, shuffle=True, random_state=0).split(values, groups=groups))
    for fit in (_rounded, _matched, _searched)[: 3 if search else 2]:
        apart = np.empty(len(values), np.int64)
        for fitted, judged in folds:
            apart[judged] = np.digitize(values[judged], fit(values[fitted], grades[fitted], plain))
        gained[fit] = _kappa(grades, apart, num_classes)
    best = max(gained, key=lambda fit: gained[fit])  # the first, and simplest, of equals
    return best(values, grades, plain)


def _rounded(_values: Floats, _grades: npt.NDArray[np.int64], plain: Floats) -> Floats:
    return plain


def _matched(values: Floats, grades: npt.NDArray[np.int64], plain: Floats) -> Floats:
    """Where values fall on rounding once they have the mean and deviation of the grades."""
    stretch = float(grades.std() / max(float(values.std()), 1e-6))
    if stretch == 0:
        return plain
    matched: Floats = (plain - grades.mean()) / stretch + values.mean()
    return matched


def _searched(values: Floats, grades: npt.NDArray[np.int64], plain: Floats) -> Floats:
    """The best found from two starts: rounding, and as many of each grade as there are."""
    num_classes = len(plain) + 1
    shares = np.bincount(grades, minlength=num_classes).cumsum()[:-1] / len(grades)
    found = [
        minimize(
            lambda thresholds: -_kappa(grades, np.digitize(values, np.sort(thresholds)), num_classes),
            begin,
            method="Nelder-Mead",
            options={"initial_simplex": np.vstack([begin, begin + 0.25 * np.eye(len(begin))])},
        )
        for begin in (plain, np.quantile(values, shares))
    ]
    fitted: Floats = np.sort(min(found, key=lambda one: float(one.fun)).x)
    return fitted


def _kappa(grades: npt.NDArray[np.int64], y_pred: npt.NDArray[np.int64], num_classes: int) -> float:
    return float(np.nan_to_num(cohen_kappa_score(grades, y_pred, labels=range(num_classes), weights="quadratic")))
