"""Dark and bright blobs, counted and measured: microaneurysms, haemorrhages and exudates in a fundus photograph.

On other images the same numbers say how spotted they are.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import draw, measure, morphology

from tlbatch.model.handcrafted.planes import Floats, Mask, scaled

_LENGTH = 9
"""Pixels of a line: blobs shorter than it are found, and what is longer in any direction is a vessel."""
_DIRECTIONS = 6
_SHRUNK = (1, 2, 4)
"""How often the image is made smaller, for blobs of up to 9, 18 and 36 pixels of it."""
_CONTRASTS = (0.04, 0.08, 0.16)
"""Of the local background, by which a blob must be darker or brighter."""
_SIZES = (1, 6, 20)
"""Fewest pixels of a small, a middling and a large blob."""
_COARSE_SIDE = 64
"""On which the background is blurred."""
_BLUR = 3
"""Pixels by which the mask of the disc may reach too far."""
_QUANTILES = (0.9, 0.99, 0.999)


class Blobs(NamedTuple):
    """What was found of one polarity and one size of blob, above one contrast."""

    counts: Floats
    """Blobs of each class of size, (3,)."""
    area: float
    """Their share of the area that is looked at."""
    quadrants: Floats
    """The same in each quarter of the image, (4,)."""


def lesions(green: Floats, disc: Mask) -> Floats:
    """Counts, areas and contrasts of blobs inside the disc, dark ones before bright ones.

    Parameters
    ----------
    green
        (side, side), 0..1: blood is darkest and exudates are brightest in this channel.
    disc
        (side, side): where to look.

    Returns
    -------
    float32 array of shape (168,): logarithms of counts, roots of shares.
    """
    found: list[npt.ArrayLike] = []
    whole, looked_at = relief_of(green, disc)
    for shrunk in _SHRUNK:
        side = max(16, len(green) // shrunk)
        relief, inside = scaled(whole, side), scaled(looked_at.astype(np.float32), side) > 0.999
        for response in (dark_blobs(relief), bright_blobs(relief)):
            found.append(_spread(response, inside))
            for contrast in _CONTRASTS:
                blobs = blobs_above(response, inside, contrast)
                found += [np.log1p(blobs.counts) / 3, np.sqrt([blobs.area, *blobs.quadrants])]
    return np.concatenate(found).astype(np.float32)


def dark_blobs(relief: Floats) -> Floats:
    """How much each pixel is darker than all lines through it can explain, (side, side).

    The least of the closings by lines in all directions fills what is round and keeps what is long: T. Walter et al.,
    "Automatic detection of microaneurysms in color fundus images" (2007), after Spencer et al. (1996).
    """
    filled: Floats = np.min([ndimage.grey_closing(relief, footprint=line) for line in _lines()], axis=0)
    return filled - relief


def bright_blobs(relief: Floats) -> Floats:
    """The same of bright ones: exudates."""
    return dark_blobs(-relief)


def blobs_above(response: Floats, inside: Mask, contrast: float) -> Blobs:
    """Label what responds more than a contrast, and count it by size and quarter."""
    mask = (response > contrast) & inside
    labels = measure.label(mask, connectivity=2)
    areas = np.bincount(labels.ravel())[1:]
    counts, _ = np.histogram(areas, bins=[*_SIZES, np.inf])
    middle, looked_at = len(mask) // 2, int(inside.sum()) or 1
    quadrants = [
        np.count_nonzero(part) for half in (mask[:middle], mask[middle:]) for part in np.array_split(half, 2, 1)
    ]
    return Blobs(counts.astype(np.float32), areas.sum() / looked_at, np.array(quadrants, np.float32) / looked_at)


def relief_of(green: Floats, disc: Mask) -> tuple[Floats, Mask]:
    """Brightness relative to the local background, 0 outside of the disc; and the disc without its rim."""
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


def _spread(response: Floats, inside: Mask) -> Floats:
    """Roots of mean and upper quantiles, (4,)."""
    values = response[inside] if inside.any() else np.zeros(1, np.float32)
    return np.sqrt(np.maximum([values.mean(), *np.quantile(values, _QUANTILES)], 0))


@cache
def _lines() -> tuple[npt.NDArray[np.bool_], ...]:
    half = _LENGTH // 2
    found = []
    for angle in np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS:
        down, across = round(half * np.sin(angle)), round(half * np.cos(angle))
        line = np.zeros((_LENGTH, _LENGTH), np.bool_)
        line[draw.line(half - down, half - across, half + down, half + across)] = True
        found.append(line)
    return tuple(found)
