"""What a head is fitted on in one step, and the fitted head; scikit-learn, which fits it, is imported only to do so."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from tlbatch.core.typing import Floats, Ints

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Vectors:
    """Vectors that a head is fitted on, with their labels and groups."""

    features: Floats
    """(n, d)."""
    labels: Ints
    """(n,)."""
    groups: npt.NDArray[np.generic]
    """Groups that are never split between the two sides of a fold, (n,)."""
    num_classes: int
    ordered: bool = False
    """Whether a ridge is fitted to the grade, instead of one column per class."""

    def chosen(self, some: Ints) -> "Vectors":
        """Return a subset of the vectors."""
        return replace(self, features=self.features[some], labels=self.labels[some], groups=self.groups[some])

    @property
    def columns(self) -> Floats:
        """Targets of a ridge, (n, columns): the grade, or one column per class."""
        return self.labels[:, None].astype(np.float64) if self.ordered else np.eye(self.num_classes)[self.labels]


@dataclass(frozen=True)
class FittedHead:
    """A head, and out-of-fold outputs of heads that were fitted in the same way."""

    head: nn.Sequential
    outputs: npt.NDArray[np.float32]
    """(m, num_outputs)."""
    scored: Ints
    """Indices of the vectors of these outputs, (m,)."""
    scores: dict[str, float]
    """Mean out-of-fold loss by learning rate or penalty; for kernels by penalty and gamma."""


def best_of(scores: Mapping[Setting, float]) -> Setting:
    """Return the setting with the least loss; NaN counts as the worst."""
    return min(scores, key=lambda one: np.nan_to_num(scores[one], nan=np.inf))
