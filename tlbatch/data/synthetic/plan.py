"""Plan of a synthetic data set of any kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Picture(Protocol):
    """An image to be drawn, in any process."""

    @property
    def name(self) -> str:
        """Name of the image in the tables, and stem of its file name."""

    def draw(self, seed: int, side: int) -> npt.NDArray[np.uint8]:
        """Draw the image: RGB of shape (side, side, 3)."""


@dataclass(frozen=True)
class Plan:
    """The contents of the folder of a data set."""

    pictures: Sequence[Picture]
    inside: str
    """Name of the subfolder of the images."""
    files: Mapping[str, str]
    """Text of the other files, by name."""
    seed: int
    side: int
