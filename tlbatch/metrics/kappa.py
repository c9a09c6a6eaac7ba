"""Cohen's kappa, weighted by the distance of classes."""

import numpy as np

from tlbatch.core.typing import Floats, Ints


def quadratic_kappa(n: Floats, x: Floats, y: Floats, xx: Floats, yy: Floats, xy: Floats) -> Floats:
    """Compute quadratic kappa from sums over samples with codes x and y, elementwise.

    Cohen's kappa with weights (x - y)^2 (Cohen 1968): one minus the mean squared difference over the one that
    independent x and y with the same distributions would have.

    Parameters
    ----------
    n, x, y, xx, yy, xy
        The number of samples, and the sums of x, y, their squares and their product, each of the same shape.

    Returns
    -------
    Of that shape; NaN where it is undefined, since all codes are equal.
    """
    return weighted_kappa((xx - 2 * xy + yy) / n, (xx + yy - 2 * x * y / n) / n)


def kappa_of_codes(y_true: Ints, y_pred: Ints) -> float:
    """Compute quadratic kappa of true and predicted codes, (n,); NaN where it is undefined."""
    n, x, y = len(y_true), y_true.astype(np.float64), y_pred.astype(np.float64)
    sums = (np.array([float(one)]) for one in (n, x.sum(), y.sum(), x @ x, y @ y, x @ y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(quadratic_kappa(*sums)[0])


def weighted_kappa(observed: Floats, by_chance: Floats) -> Floats:
    """Compute kappa from the observed mean weight and the one by chance, elementwise; NaN where the latter is 0."""
    return 1 - observed / np.where(by_chance > 1e-12, by_chance, np.nan)
