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
    """Compare near duplicates whose labels contradict each other with the first of their cluster, at full size.

    Parameters
    ----------
    label
        Number of the label of each image, (n,).

    Returns
    -------
    The clusters with `alike` set where all images of one are equal.
    """
    looked = several_labels(clusters.near, label) & ~clusters.large
    unlike = ~looked
    first: tuple[int, Rgb | None] = (-1, None)
    for number in np.flatnonzero(looked)[np.argsort(clusters.near[looked], kind="stable")].tolist():
        rgb, cluster = _pixels(images[number], source), int(clusters.near[number])
        if first[0] != cluster:
            first = cluster, rgb
        reference = first[1]
        unlike[number] = rgb is None or reference is None or difference(rgb, reference) > MOST_DIFFERENT
    return replace(clusters, alike=np.bincount(clusters.near, weights=unlike, minlength=1)[clusters.near] == 0)


def _pixels(image: Labelled, source: Source) -> Rgb | None:
    try:
        return decode(source.read(image))
    except (OSError, UnreadableImageError):
        return None
