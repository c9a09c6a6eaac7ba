"""A view of an image: the square that the backbone sees, a pure function of (seed, epoch, sample)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tlbatch.data.decode import Rgb, decode, decode_plain, plain_size, reduction, resized

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
_NO_DRAWS = np.random.Generator(np.random.Philox(0))


@dataclass(frozen=True)
class View:
    """How an image becomes a square."""

    size: int
    augment: Literal["none", "flip", "d4"] = "none"
    crop_scale: float = 1.0
    seed: int = 0
    epoch: int = 0

    def read(self, data: bytes, sample: int, *, plain: bool) -> tuple[Rgb, int]:
        """Decode an image just large enough, crop and scale it, and say how it is to be turned.

        Parameters
        ----------
        data
            The bytes of an image file.
        sample
            Number of the image; with seed and epoch it keys all randomness.
        plain
            Whether it is an upright RGB or grey JPEG.

        Returns
        -------
        uint8 array of shape (size, size, 3), and the number of a symmetry of the square (see `turned`): turning is
        left to the device.

        Raises
        ------
        UnreadableImageError
            When the data are not the image they were.
        """
        generator = self._generator(sample)
        if plain:
            width, height = plain_size(data)
            box = self._box(width, height, generator)
            factor = reduction(min(box[2] - box[0], box[3] - box[1]), self.size)
            rgb = decode_plain(data, (width, height), factor=factor)
        else:
            rgb = decode(data)
            height, width = rgb.shape[:2]
            box = self._box(width, height, generator)
        return self._cropped(rgb, box, (width, height)), self._turn(generator)

    def _generator(self, sample: int) -> np.random.Generator:
        if self.crop_scale == 1 and self.augment == "none":
            return _NO_DRAWS  # making one takes a while
        key = np.array([self.seed, self.epoch], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, sample, 1]))

    def _box(self, width: int, height: int, generator: np.random.Generator) -> Box:
        if self.crop_scale == 1:
            return _centre(width, height)
        return _random_box(width, height, self.crop_scale, generator)

    def _cropped(self, rgb: Rgb, box: Box, size: tuple[int, int]) -> Rgb:
        across, down = rgb.shape[1] / size[0], rgb.shape[0] / size[1]  # the image may have been decoded smaller
        left, right = _snapped(box[0] * across, box[2] * across, rgb.shape[1])
        top, bottom = _snapped(box[1] * down, box[3] * down, rgb.shape[0])
        if (bottom - top, right - left) == (self.size, self.size):
            return rgb[top:bottom, left:right]
        return resized(rgb[top:bottom, left:right], (self.size, self.size))

    def _turn(self, generator: np.random.Generator) -> int:
        if self.augment == "none":
            return 0
        mirrored = int(generator.random() < 0.5)
        return mirrored + 2 * int(generator.integers(4)) if self.augment == "d4" else mirrored


def _snapped(start: float, stop: float, length: int) -> tuple[int, int]:
    first = min(max(0, round(start)), length - 1)
    return first, max(first + 1, min(length, round(stop)))


def _centre(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, least: float, generator: np.random.Generator) -> Box:
    """A crop of a random share of the area and an aspect between 3:4 and 4:3, as Inception drew them."""
    area = width * height * generator.uniform(least, 1)
    aspect = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
    left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
    return float(left), float(top), float(left + w), float(top + h)
