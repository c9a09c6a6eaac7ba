"""Plan of a synthetic data set of any kind."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

MIN_SIDE: Final = 64
"""Smallest height and width in pixels at which an image is recognisable."""


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


def require(holds: bool, name: str, wanted: str, value: float) -> None:  # noqa: FBT001
    """Raise if an argument is out of range.

    Raises
    ------
    ValueError
        With the name of the argument, its valid range, and its value.
    """
    if not holds:
        raise ValueError(f"{name} must be {wanted} (got {value})")


def table(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """Format a CSV table whose values contain neither commas nor quotes."""
    return "".join(f"{','.join(map(str, row))}\n" for row in (header, *rows))
