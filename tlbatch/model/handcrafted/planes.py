"""Inputs of handcrafted features: an image in several colour spaces and sizes, each computed once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage import color, exposure

from tlbatch.core.typing import Bools, Floats

LEAST_SIDE = 32
_SHAPE_SIDE = 128
"""Largest side for shape, texture and colour descriptors; lesions are searched at full size."""
_DARK = 6.0
"""Grey level above the noise of black margins."""
_CLIP_LIMIT = 2 / 256


@dataclass(frozen=True)
class Planes:
    """One square image, uint8 (side, side, 3)."""

    rgb: npt.NDArray[np.uint8]

    @cached_property
    def green(self) -> Floats:
        """The green channel without single noisy pixels, (side, side), 0..1."""
        return np.asarray(ndimage.median_filter(self.rgb[..., 1], 3).astype(np.float32) / 255)

    @cached_property
    def disc(self) -> Bools:
        """Pixels brighter than a tenth of the mean of the image, as B. Graham (2015) found the disc of the retina."""
        brightest = ndimage.uniform_filter(self.rgb.max(axis=2).astype(np.float32), 5)
        return np.asarray(brightest > max(_DARK, float(brightest.mean()) / 10))

    @cached_property
    def small(self) -> Floats:
        """The image, (s, s, 3), 0..1, with s at most 128."""
        side = min(len(self.rgb), _SHAPE_SIDE)
        return np.stack([scaled(self.rgb[..., at].astype(np.float32) / 255, side) for at in range(3)], axis=2)

    @cached_property
    def grey(self) -> Floats:
        """Lightness of CIE Lab, (s, s), 0..1."""
        return self.lab[..., 0]

    @cached_property
    def lab(self) -> Floats:
        """CIE Lab, (s, s, 3): L 0..1, a and b about -1..1."""
        return np.asarray((color.rgb2lab(self.small) / 100).astype(np.float32))

    @cached_property
    def hsv(self) -> Floats:
        """Hue, saturation, value, (s, s, 3), 0..1."""
        return np.asarray(color.rgb2hsv(self.small))

    @cached_property
    def equal(self) -> Floats:
        """Green with equalised local contrast (CLAHE, Zuiderveld 1994), (s, s), 0..1."""
        green = scaled(self.green, len(self.small))
        return np.asarray(exposure.equalize_adapthist(green, clip_limit=_CLIP_LIMIT))


def planes_of(image: npt.NDArray[np.uint8]) -> Planes:
    """Return the planes of an image uint8 (side, side, 3); a tiny one is enlarged first."""
    if len(image) < LEAST_SIDE:
        image = np.asarray(Image.fromarray(image).resize((LEAST_SIDE, LEAST_SIDE), Image.Resampling.BILINEAR))
    return Planes(image)


def scaled(plane: Floats, side: int) -> Floats:
    """Resize a plane to (side, side): by area averaging if smaller, bilinearly if larger."""
    if plane.shape == (side, side):
        return plane
    way = Image.Resampling.BOX if side < len(plane) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((side, side), way))
