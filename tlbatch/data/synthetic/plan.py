"""What there is to write of a synthetic data set, whatever its images show."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

MIN_SIDE: Final = 64
"""Height and width in pixels below which nothing can be read in an image."""


class Picture(Protocol):
    """One image that is still to be drawn, in any process."""

    @property
    def name(self) -> str:
        """Name of the image in the tables, and of its file without the suffix."""

    def draw(self, seed: int, side: int) -> npt.NDArray[np.uint8]:
        """RGB of shape (side, side, 3)."""


@dataclass(frozen=True)
class Plan:
    """All that a folder is to hold."""

    pictures: Sequence[Picture]
    inside: str
    """Name of the folder of the images."""
    files: Mapping[str, str]
    """Text of the other files by name."""
    seed: int
    side: int


def require(holds: bool, name: str, wanted: str, value: float) -> None:  # noqa: FBT001
    """Refuse an argument that is out of range.

    Raises
    ------
    ValueError
        With the name of the argument, what it must be, and what it is.
    """
    if not holds:
        raise ValueError(f"{name} must be {wanted} (got {value})")


def table(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """Lines of values that hold neither commas nor quotes."""
    return "".join(f"{','.join(map(str, row))}\n" for row in (header, *rows))
