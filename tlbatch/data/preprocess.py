"""Pre-processing steps for fundus photographs, as published retinopathy systems use them before training."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage import color, exposure

from tlbatch.config.data import StepName
from tlbatch.core.typing import Bools
from tlbatch.data.decode import Rgb, resized, shrink
from tlbatch.data.image_files import UnreadableImageError

_SEARCH_SIDE: Final = 192
"""The disc is located in a reduced copy, whose short side is between this and twice this."""
_MIN_RISE: Final = 6
"""Grey levels above the background: more than noise, less than a dim disc."""
_MIN_DIAMETER: Final = 0.1
_CLIP_LIMIT: Final = 2 / 256


class _Disc(NamedTuple):
    """A circle in pixels: pixel 0 spans 0 to 1."""

    row: float
    column: float
    radius: float


def apply_steps(rgb: Rgb, steps: Sequence[StepName], *, size: int = 0) -> Rgb:
    """Apply the steps in order, and scale the image so that its short side has ``size`` pixels.

    `fundus_crop` works on the image at full size, and its square is scaled up or down, so all discs have one radius.
    The other steps work on the scaled image, which is faster and independent of the camera's resolution. With
    ``size = 0`` nothing is scaled.
    """
    for step in steps:
        is_crop = step == "fundus_crop"
        rgb = _STEPS[step](rgb if is_crop or not size else shrink(rgb, size))
        if is_crop and size:
            rgb = resized(rgb, (size, size))
    return rgb


def fundus_crop(rgb: Rgb) -> Rgb:
    """Crop to the square around the retinal disc, so that the disc has the same radius in all images of a size.

    A circle is fitted to the rim of the pixels brighter than a tenth of the disc's mean, the threshold of B. Graham,
    "Kaggle Diabetic Retinopathy Detection competition report" (2015). Where the frame cuts off the disc, the square is
    padded with black. If the photograph has no dark margin, or its bright part is not round, the disc is assumed to
    fill the frame: the result is the centre square, as wide as the short side.

    Returns
    -------
    uint8 array of shape (side, side, 3), the side being the diameter in pixels.

    Raises
    ------
    UnreadableImageError
        When no region brighter than the background is at least a tenth of the short side wide.
    """
    row, column, radius = _find_disc(rgb)
    side = round(2 * radius)
    top, left = round(row - radius), round(column - radius)
    square = np.zeros((side, side, 3), np.uint8)
    part = rgb[max(top, 0) : top + side, max(left, 0) : left + side]
    below, right = max(-top, 0), max(-left, 0)
    square[below : below + part.shape[0], right : right + part.shape[1]] = part
    return square


def local_average(rgb: Rgb) -> Rgb:
    """Subtract the local average colour, which evens out exposure and pigment; shape and dtype are kept.

    The result is 4 (image - blurred image) + 128 with a Gaussian of sigma = radius / 30, and 128 beyond 0.9 radius,
    where the blur includes the margin: B. Graham (2015), as above. The radius is half the short side: crop to the disc
    first. As in his method, a disc cut off by the frame gets a bright and a dark band along the cut.
    """
    height, width = rgb.shape[:2]
    radius = min(height, width) / 2
    image = rgb.astype(np.float32)
    # Beyond 3 sigma lie 0.3 % of the weight and a quarter of the computing time.
    blurred = ndimage.gaussian_filter(image, (radius / 30, radius / 30, 0), mode="nearest", truncate=3)
    even: Rgb = (4 * (image - blurred) + 128).round().clip(0, 255).astype(np.uint8)
    rows, columns = np.ogrid[:height, :width]
    even[np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) > 0.9 * radius] = 128
    return even


def clahe(rgb: Rgb) -> Rgb:
    """Equalise the histogram of the CIE lightness in 8 x 8 tiles, with limited contrast; shape, dtype and hue are kept.

    K. Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV (1994). A bin is clipped at
    twice its uniform share, as with OpenCV's ``clipLimit=2.0``, the usual choice for fundus photographs. The lightness
    range of the image is kept, so a flat image stays flat.
    """
    lab = color.rgb2lab(rgb.astype(np.float32) / 255)
    low, high = lab[..., 0].min(), lab[..., 0].max()
    # equalize_adapthist stretches its input to the range 0 to 1.
    lab[..., 0] = low + (high - low) * exposure.equalize_adapthist(lab[..., 0] / 100, clip_limit=_CLIP_LIMIT)
    # Darkened pixels keep their colour unless Z, which is (L + 16) / 116 - b / 200, would fall below 0.
    lab[..., 2] = np.minimum(lab[..., 2], 199 / 116 * (lab[..., 0] + 16))
    return np.asarray((255 * color.lab2rgb(lab)).round().astype(np.uint8))


_STEPS: Final[dict[StepName, Callable[[Rgb], Rgb]]] = {
    "fundus_crop": fundus_crop,
    "local_average": local_average,
    "clahe": clahe,
}


def _find_disc(rgb: Rgb) -> _Disc:
    short = min(rgb.shape[:2])
    factor = max(1, short // _SEARCH_SIDE)
    red, green, blue = np.moveaxis(np.asarray(Image.fromarray(rgb).reduce(factor)), 2, 0)
    mask = _bright_part(np.maximum(np.maximum(red, green), blue))
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    middle = _Disc(rows.mean() + 0.5, columns.mean() + 0.5, min(rows.size, columns.size) / 2)
    row, column, radius = _fitted(mask) or middle
    if 2 * radius * factor < _MIN_DIAMETER * short:
        raise UnreadableImageError("no fundus disc found")
    return _Disc(row * factor, column * factor, radius * factor)


def _bright_part(grey: npt.NDArray[np.uint8]) -> Bools:
    """Return a mask of the largest connected region that is brighter than the background."""
    background = np.median(grey[grey <= np.percentile(grey, 1) + _MIN_RISE])
    brighter = grey[grey > background + _MIN_RISE]
    if not brighter.size:
        raise UnreadableImageError("no fundus disc found")
    parts, _ = ndimage.label(grey > background + max(_MIN_RISE, (brighter.mean() - background) / 10))
    mask: Bools = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return mask


def _fitted(mask: Bools) -> _Disc | None:
    """Fit a circle to the part of the mask's rim inside the frame; None if it is not a circle.

    Least squares after I. Kasa, "A circle fitting procedure and its error analysis" (1976), repeated without
    outliers, such as text, notches and shadows.
    """
    ys, xs = np.hstack([_ends(mask), _ends(mask.T)[::-1]])
    if ys.size < 0.1 * 2 * (np.count_nonzero(mask.any(0)) + np.count_nonzero(mask.any(1))):
        return None
    near = np.ones(ys.size, np.bool_)
    for _ in range(8):
        terms = np.stack([2 * ys, 2 * xs, np.ones_like(ys)], axis=1)[near]
        row, column, rest = np.linalg.lstsq(terms, (ys**2 + xs**2)[near])[0]
        radius = np.sqrt(rest + row**2 + column**2)
        off = np.abs(np.hypot(ys - row, xs - column) - radius)
        near = off <= max(0.5, 2 * np.median(off))
    quadrants = np.unique(2 * (ys[near] > row) + (xs[near] > column)).size
    is_circle = np.mean(off < 0.03 * radius) > 0.6 and quadrants >= 3 and 2 * radius < 1.05 * np.hypot(*mask.shape)
    return _Disc(row, column, radius) if is_circle else None


def _ends(mask: Bools) -> npt.NDArray[np.float64]:
    """Return where the rows of the mask begin and end, as (row, column) x points, without those at the frame."""
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    points = np.stack([np.tile(rows + 0.5, 2), np.hstack([first, last])])
    inside: npt.NDArray[np.float64] = points[:, (points[1] > 0) & (points[1] < mask.shape[1])]
    return inside
