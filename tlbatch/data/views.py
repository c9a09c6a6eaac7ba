"""A view of an image: the square that the backbone sees, a pure function of (seed, epoch, sample)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from tlbatch.data.decode import Rgb

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class View:
    """How an image becomes a square."""

    size: int
    augment: Literal["none", "flip", "d4"] = "none"
    crop_scale: float = 1.0
    seed: int = 0
    epoch: int = 0

    def apply(self, rgb: Rgb, sample: int) -> Rgb:
        """Crop, scale and turn one image.

        Parameters
        ----------
        rgb
            uint8 array of shape (height, width, 3).
        sample
            Number of the image; with seed and epoch it keys all randomness.

        Returns
        -------
        uint8 array of shape (size, size, 3).
        """
        generator = np.random.Generator(
            np.random.Philox(key=np.array([self.seed, self.epoch], dtype=np.uint64), counter=[0, 0, sample, 1])
        )
        height, width = rgb.shape[:2]
        box = _centre(width, height) if self.crop_scale == 1 else _random_box(width, height, self.crop_scale, generator)
        square = Image.fromarray(rgb).resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return _turned(np.asarray(square), self.augment, generator)


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


def _turned(rgb: Rgb, augment: Literal["none", "flip", "d4"], generator: np.random.Generator) -> Rgb:
    if augment == "none":
        return rgb
    if generator.random() < 0.5:
        rgb = rgb[:, ::-1]
    return np.rot90(rgb, k=int(generator.integers(4))) if augment == "d4" else rgb
