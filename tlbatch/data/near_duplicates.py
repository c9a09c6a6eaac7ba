"""Near duplicates: a perceptual hash of decoded pixels, and all pairs of nearly equal hashes."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlbatch.core.typing import Ints
from tlbatch.data.decode import Rgb

WORDS = 4
"""64-bit words of a hash."""
SIDE, KEPT = 64, 16
FREQUENCIES = 24
"""Lowest frequencies kept of an image in each direction: those that the hash of a part of it depends on too."""
NO_COPY = 64 * WORDS + 1
"""Distance in bits to the nearest copy where there is none."""
_EDGES = 4_000_000
"""Pairs kept before they are merged into clusters, to bound memory."""
_PAIRS = 2_000_000
"""Pairs compared at once."""
Hashes = npt.NDArray[np.uint64]
Spectra = npt.NDArray[np.float16]


class Pairs(NamedTuple):
    """Rows of two arrays of hashes, and the number of bits in which they differ, (n,) each."""

    one: Ints
    other: Ints
    bits: Ints


def low_frequencies(rgb: Rgb) -> npt.NDArray[np.float32]:
    """Return the lowest 24 x 24 frequencies (DCT-II) of a 64 x 64 grey copy.

    Parameters
    ----------
    rgb
        uint8 array of shape (height, width, 3).
    """
    image = Image.fromarray(rgb)
    image = image.reduce(max(1, min(image.size) // (2 * SIDE))).convert("L")
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    return np.asarray(dctn(grey, norm="ortho")[:FREQUENCIES, :FREQUENCIES])


def hashes_of(frequencies: npt.NDArray[np.floating]) -> Hashes:
    """Return 256-bit pHashes: which of the lowest 16 x 16 frequencies exceed their median.

    Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), with 256 bits instead of 64:
    different fundus photographs may differ in only 2 of 64 bits, but differ in at least 30 of 256, whereas copies that
    were re-encoded, scaled or brightened differ in at most 10 bits in 98 of 100 cases, and in 18 at most.

    Parameters
    ----------
    frequencies
        (..., at least 16, at least 16).

    Returns
    -------
    uint64 array of shape (..., WORDS).
    """
    low = frequencies[..., :KEPT, :KEPT].reshape(*frequencies.shape[:-2], KEPT * KEPT)
    return np.packbits(low > np.median(low, axis=-1, keepdims=True), axis=-1).view("<u8")


def merged(label: Ints, found: Iterable[Pairs]) -> Ints:
    """Return the labels of clusters, (n,), after those that a pair of rows connects are merged."""
    edges: list[tuple[Ints, Ints]] = []
    for pairs in found:
        edges.append((pairs.one, pairs.other))
        if sum(len(some) for some, _ in edges) > _EDGES:
            label, edges = _joined(label, edges), []
    return _joined(label, edges)


def close_pairs(one: Hashes, other: Hashes, max_bits: int) -> Iterator[Pairs]:
    """Yield all pairs of hashes that differ in at most ``max_bits`` bits; a pair may come more than once.

    Two hashes that differ in ``max_bits`` bits agree in at least one of ``max_bits + 1`` segments, so only hashes that
    agree in a segment are compared, and no pair is missed. Bits that are nearly the same in all images are shared among
    the segments, so that no segment agrees in too many pairs. Of an array with itself, only pairs with the lower row
    first come.

    Parameters
    ----------
    one, other
        (n, WORDS) and (m, WORDS).
    """
    is_same = one is other
    bits = [np.unpackbits(hashes.view(np.uint8), axis=1) for hashes in ((one,) if is_same else (one, other))]
    for chosen in _segments(bits[0], max_bits + 1):
        left, right = (_values(some, chosen) for some in (bits[0], bits[-1]))
        for at, to in _agreeing(left, right):
            if is_same:
                keep = at < to
                at, to = at[keep], to[keep]  # noqa: PLW2901
            distance = np.bitwise_count(one[at] ^ other[to]).sum(axis=1, dtype=np.int64)
            close = distance <= max_bits
            yield Pairs(at[close], to[close], distance[close])


def _segments(bits: npt.NDArray[np.uint8], number: int) -> list[Ints]:
    """Divide the columns of bits into segments of equal size that tell images apart about equally well."""
    order = np.argsort(np.abs(bits.mean(axis=0) - 0.5), kind="stable")
    return [order[start::number] for start in range(number)]


def _values(bits: npt.NDArray[np.uint8], columns: Ints) -> npt.NDArray[np.uint64]:
    """Return some bits of each row, at most 64, as one integer."""
    return bits[:, columns[:64]].astype(np.uint64) @ (np.uint64(1) << np.arange(len(columns[:64]), dtype=np.uint64))


def _agreeing(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> Iterator[tuple[Ints, Ints]]:
    """Yield the pairs of rows with equal values, some at a time."""
    if not len(left):
        return
    order = np.argsort(right, kind="stable")
    values = right[order]
    first = np.searchsorted(values, left, side="left")
    counts = np.searchsorted(values, left, side="right") - first
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(_PAIRS, ends[-1] + _PAIRS, _PAIRS), side="left") + 1
    for start, stop in pairwise([0, *np.minimum(cuts, len(left)).tolist()]):
        rows = np.repeat(np.arange(start, stop), counts[start:stop])
        within = np.arange(len(rows)) - np.repeat(
            ends[start:stop] - counts[start:stop] - (ends[start] - counts[start]), counts[start:stop]
        )
        yield rows, order[first[rows] + within]


def _joined(label: Ints, edges: list[tuple[Ints, Ints]]) -> Ints:
    one, other = (np.concatenate([np.arange(0), *(edge[side] for edge in edges)]) for side in (0, 1))
    size = len(label)
    rows, columns = np.concatenate([label[one], np.arange(size)]), np.concatenate([label[other], label])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), (size, size))
    return np.asarray(connected_components(graph, directed=False)[1].astype(np.int64))
