"""Counts and sizes of dark and bright blobs: microaneurysms, haemorrhages and exudates in a fundus photograph.

On other images the same values measure how spotted they are.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import draw, measure, morphology

from tlbatch.core.typing import Bools, Floats
from tlbatch.model.handcrafted.planes import scaled

_LENGTH = 9
"""Length of a line in pixels: shorter blobs are found, and longer structures in any direction are vessels."""
_DIRECTIONS = 6
_SHRUNK = (1, 2, 4)
"""Factors by which the image is shrunk, for blobs of up to 9, 18 and 36 of its pixels."""
_CONTRASTS = (0.04, 0.08, 0.16)
"""Contrasts, relative to the local background, by which a blob must be darker or brighter."""
_SIZES = (1, 6, 20)
"""Minimum numbers of pixels of small, medium and large blobs."""
_COARSE_SIDE = 64
"""Side on which the background is blurred."""
_BLUR = 3
"""Pixels by which the mask of the disc may be too large."""
_QUANTILES = (0.9, 0.99, 0.999)


class Blobs(NamedTuple):
    """Blobs of one polarity at one image scale, above one contrast."""

    counts: Floats
    """Number of blobs by size class, (3,)."""
    area: float
    """Fraction of the examined area that they cover."""
    quadrants: Floats
    """The same fraction in each quadrant of the image, (4,)."""


def lesions(green: Floats, disc: Bools) -> Floats:
    """Measure counts, areas and contrasts of blobs inside the disc, dark ones before bright ones.

    Parameters
    ----------
    green
        (side, side), 0..1: blood is darkest and exudates are brightest in this channel.
    disc
        (side, side): the area to search.

    Returns
    -------
    float32 array of shape (168,): logarithms of counts, square roots of fractions.
    """
    found: list[npt.ArrayLike] = []
    whole, looked_at = relief_of(green, disc)
    for shrunk in _SHRUNK:
        side = max(16, len(green) // shrunk)
        relief, inside = scaled(whole, side), scaled(looked_at.astype(np.float32), side) > 0.999
        for response in (dark_blobs(relief), dark_blobs(-relief)):  # the second: bright blobs, as exudates
            found.append(_spread(response, inside))
            for contrast in _CONTRASTS:
                blobs = blobs_above(response, inside, contrast)
                found += [np.log1p(blobs.counts) / 3, np.sqrt([blobs.area, *blobs.quadrants])]
    return np.concatenate(found).astype(np.float32)


def dark_blobs(relief: Floats) -> Floats:
    """Measure how much darker each pixel is than lines through it can explain, (side, side).

    The minimum of closings by lines in all directions fills round shapes and keeps long ones: T. Walter et al.,
    "Automatic detection of microaneurysms in color fundus images" (2007), after Spencer et al. (1996).
    """
    filled: Floats = np.min([ndimage.grey_closing(relief, footprint=line) for line in _lines()], axis=0)
    return filled - relief


def blobs_above(response: Floats, inside: Bools, contrast: float) -> Blobs:
    """Label blobs with a response above a contrast, and measure them by size and quadrant."""
    mask = (response > contrast) & inside
    labels = measure.label(mask, connectivity=2)
    areas = np.bincount(labels.ravel())[1:]
    counts, _ = np.histogram(areas, bins=[*_SIZES, np.inf])
    middle, looked_at = len(mask) // 2, int(inside.sum()) or 1
    quadrants = [
        np.count_nonzero(part) for half in (mask[:middle], mask[middle:]) for part in np.array_split(half, 2, 1)
    ]
    return Blobs(counts.astype(np.float32), areas.sum() / looked_at, np.array(quadrants, np.float32) / looked_at)


def relief_of(green: Floats, disc: Bools) -> tuple[Floats, Bools]:
    """Return the brightness relative to the local background, 0 outside the disc, and the disc without its rim."""
    side = len(green)
    coarse = min(side, _COARSE_SIDE)
    weight, light = (
        scaled(ndimage.gaussian_filter(scaled(plane, coarse), coarse / 16, truncate=3), side)
        for plane in (disc.astype(np.float32), green * disc)
    )
    background = light / np.maximum(weight, 1e-3)
    relief = np.where(disc, green / np.maximum(background, 0.05) - 1, 0)
    inside = ndimage.binary_erosion(disc, morphology.disk(_BLUR + side // 64), border_value=1)
    return relief.clip(-1, 1).astype(np.float32), inside


def _spread(response: Floats, inside: Bools) -> Floats:
    """Return square roots of the mean and upper quantiles, (4,)."""
    values = response[inside] if inside.any() else np.zeros(1, np.float32)
    return np.sqrt(np.maximum([values.mean(), *np.quantile(values, _QUANTILES)], 0))


@cache
def _lines() -> tuple[Bools, ...]:
    half = _LENGTH // 2
    found = []
    for angle in np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS:
        down, across = round(half * np.sin(angle)), round(half * np.cos(angle))
        line = np.zeros((_LENGTH, _LENGTH), np.bool_)
        line[draw.line(half - down, half - across, half + down, half + across)] = True
        found.append(line)
    return tuple(found)
