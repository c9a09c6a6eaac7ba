"""Thresholds that turn a regression output into grades, fitted to maximise quadratic kappa."""

import numpy as np
import numpy.typing as npt

from tlbatch.core.typing import Floats, Ints
from tlbatch.metrics.kappa import kappa_of_codes

_FOLDS = 5
_LEAST = 20


def rounding(num_classes: int) -> Floats:
    """Return the thresholds that round to the nearest grade, (num_classes - 1,)."""
    return np.arange(num_classes - 1, dtype=np.float64) + 0.5


def fit_thresholds(
    values: Floats,
    grades: Ints,
    groups: npt.NDArray[np.generic],
    *,
    num_classes: int,
    search: bool = True,
) -> Floats:
    """Fit thresholds for quadratic kappa: plain rounding, unless others score higher in cross-validation over groups.

    The alternatives are rounding after matching the mean and standard deviation of the values to those of the grades,
    and freely optimised thresholds.

    Parameters
    ----------
    values
        Outputs, (n,).
    grades
        0 to num_classes - 1, (n,).
    groups
        Group of each value, (n,): views of one image, eyes of one patient.
    search
        Also try freely optimised thresholds, which takes about a second.

    Returns
    -------
    (num_classes - 1,), in increasing order.
    """
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415 (scikit-learn takes seconds to import)

    plain = rounding(num_classes)
    if len(np.unique(groups)) < _LEAST:
        return plain
    gained = {}
    folds = list(GroupKFold(_FOLDS, shuffle=True, random_state=0).split(values, groups=groups))
    for fit in (_rounded, _matched, _searched)[: 3 if search else 2]:
        apart = np.empty(len(values), np.int64)
        for fitted, held_out in folds:
            apart[held_out] = np.digitize(values[held_out], fit(values[fitted], grades[fitted], plain))
        gained[fit] = _kappa(grades, apart)
    best = max(gained, key=lambda fit: gained[fit])  # on ties the first, which is the simplest
    return best(values, grades, plain)


def _rounded(_values: Floats, _grades: Ints, plain: Floats) -> Floats:
    return plain


def _matched(values: Floats, grades: Ints, plain: Floats) -> Floats:
    """Return the thresholds equal to rounding values matched to the mean and standard deviation of the grades."""
    stretch = float(grades.std() / max(float(values.std()), 1e-6))
    if stretch == 0:
        return plain
    return np.asarray((plain - grades.mean()) / stretch + values.mean())


def _searched(values: Floats, grades: Ints, plain: Floats) -> Floats:
    """Optimise the thresholds from two starts, rounding and the quantiles of the grades, and return the better."""
    from scipy.optimize import minimize  # noqa: PLC0415 (takes a second to import)

    num_classes = len(plain) + 1
    shares = np.bincount(grades, minlength=num_classes).cumsum()[:-1] / len(grades)
    found = [
        minimize(
            lambda thresholds: -_kappa(grades, np.digitize(values, np.sort(thresholds))),
            begin,
            method="Nelder-Mead",
            options={"initial_simplex": np.vstack([begin, begin + 0.25 * np.eye(len(begin))])},
        )
        for begin in (plain, np.quantile(values, shares))
    ]
    return np.asarray(np.sort(min(found, key=lambda one: float(one.fun)).x))


def _kappa(grades: Ints, y_pred: Ints) -> float:
    return float(np.nan_to_num(kappa_of_codes(grades, y_pred)))
