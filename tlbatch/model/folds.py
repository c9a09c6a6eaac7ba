"""Folds of the training images by group, for cross-validation."""

import numpy as np
import numpy.typing as npt

from tlbatch.core.errors import UserError
from tlbatch.core.typing import Ints

_FOLDS = 5
_LARGE = 3000
"""Number of vectors above which penalties are compared on a single fold."""


def folds_to_score(labels: Ints, groups: npt.NDArray[np.generic], seed: int) -> list[tuple[Ints, Ints]]:
    """Return the folds on which penalties or rates are compared: all, or just one if there are many vectors."""
    folds = folds_of(labels, groups, seed)
    return folds[:1] if len(labels) > _LARGE else folds


def folds_of(labels: Ints, groups: npt.NDArray[np.generic], seed: int) -> list[tuple[Ints, Ints]]:
    """Return the indices to fit on and to score in each of at most five folds by group, stratified by class.

    A fold that would be fitted on a single class is left out. Raises UserError if there are too few groups for two
    folds.
    """
    from sklearn.model_selection import (  # noqa: PLC0415 (scikit-learn takes seconds to import)
        GroupKFold,
        StratifiedGroupKFold,
    )

    num_groups = len(np.unique(groups))
    number = min(_FOLDS, num_groups, int(np.bincount(labels)[np.unique(labels)].min()))
    if num_groups < 2:
        raise UserError(
            "all training images are in one group, so a head cannot be cross-validated; add groups, or train by epochs"
        )
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed) if number > 1 else GroupKFold(2)
    folds = splitter.split(np.empty((len(labels), 1)), labels, groups)
    fair = [(into, out) for into, out in folds if len(np.unique(labels[into])) > 1]
    if not fair:
        raise UserError(
            "all training images of a class are in one group, so a head cannot be cross-validated; add groups, or "
            "train by epochs"
        )
    return fair
