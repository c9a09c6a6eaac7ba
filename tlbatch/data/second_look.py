"""A second look at near duplicates with different labels: whether they are equal at full size, in colour."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from tlbatch.core.typing import Ints
from tlbatch.data.clusters import Clusters, several_labels
from tlbatch.data.decode import Rgb, decode, resized
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.sources.base import Labelled, Source

BLUR_PX = 2
"""Standard deviation of the Gaussian that evens out the noise of JPEG."""
MOST_DIFFERENT = 20
"""Grey levels of 255. Of 80 photographs encoded anew at quality 60, or scaled to 256 pixels, the most different had
19.9; a mark of 3 pixels radius and 30 grey levels has 23."""
_SHAPE = 0.02
_MOST_SEEN = 16
"""Different images of a cluster that are kept in memory to compare others with."""


def difference(one: Rgb, other: Rgb) -> float:
    """Return the largest difference of two images in any pixel and colour, after blurring, in grey levels of 255.

    They are compared at the size of the smaller one; infinite if their shapes differ by more than 2 %.

    Parameters
    ----------
    one, other
        uint8 arrays of shape (height, width, 3).
    """
    large, small = (one, other) if one.size >= other.size else (other, one)
    aspects = [rgb.shape[0] / rgb.shape[1] for rgb in (large, small)]
    if abs(aspects[0] / aspects[1] - 1) > _SHAPE:
        return float("inf")
    if large.shape != small.shape:
        large = resized(large, small.shape[:2])
    apart = large.astype(np.float32) - small
    return float(np.abs(ndimage.gaussian_filter(apart, (BLUR_PX, BLUR_PX, 0), mode="nearest", truncate=3)).max())


def look_again(clusters: Clusters, images: Sequence[Labelled], label: Ints, source: Source) -> Clusters:
    """Compare near duplicates whose labels contradict each other, at full size.

    Parameters
    ----------
    label
        Number of the label of each image, (n,).

    Returns
    -------
    The clusters with the images that are equal in `same`.
    """
    same = clusters.same.copy()
    looked = np.flatnonzero(several_labels(clusters.near, label) & ~clusters.large)
    for members in np.split(looked[np.argsort(clusters.near[looked], kind="stable")], _starts(clusters.near[looked])):
        seen: dict[int, Rgb] = {}
        for number in members.tolist():
            rgb = _pixels(images[number], source)
            if rgb is None:
                continue
            twin = next((one for one, other in seen.items() if difference(rgb, other) <= MOST_DIFFERENT), None)
            if twin is not None:
                same[number] = twin
            elif len(seen) < _MOST_SEEN:
                seen[number] = rgb
    return replace(clusters, same=same)


def _starts(clusters: Ints) -> Ints:
    """Return where each cluster but the first begins once they are sorted."""
    return np.flatnonzero(np.diff(np.sort(clusters))) + 1


def _pixels(image: Labelled, source: Source) -> Rgb | None:
    try:
        return decode(source.read(image))
    except (OSError, UnreadableImageError):
        return None
