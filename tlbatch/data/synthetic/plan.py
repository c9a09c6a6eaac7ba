"""Plan of a synthetic data set of any kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Plan:
    """The contents of the folder of a data set."""

    pictures: Mapping[str, Callable[[], npt.NDArray[np.uint8]]]
    """Functions that draw an image, uint8 (side, side, 3), in any process, by the stem of its file name."""
    inside: str
    """Name of the subfolder of the images."""
    files: Mapping[str, str]
    """Text of the other files, by name."""
