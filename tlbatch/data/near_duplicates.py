"""Near duplicates: a perceptual hash of decoded pixels, and clusters of nearly equal hashes."""

from collections.abc import Iterator
from itertools import pairwise

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
_SIDE, _KEPT = 64, 16
_BITS = 64 * WORDS
_EDGES = 4_000_000
"""Pairs kept before they are merged into clusters, to bound memory."""
_PAIRS = 2_000_000
"""Pairs compared at once."""
Hashes = npt.NDArray[np.uint64]


def near_hash(rgb: Rgb) -> Hashes:
    """Return the 256-bit pHash: which of the lowest 16 x 16 frequencies of a 64 x 64 grey copy exceed their median.

    Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), with 256 bits instead of 64:
    different fundus photographs may differ in only 2 of 64 bits, but differ in at least 30 of 256, whereas copies that
    were re-encoded, scaled or brightened differ in at most 10 bits in 98 of 100 cases, and in 18 at most.

    Parameters
    ----------
    rgb
        uint8 array of shape (height, width, 3).

    Returns
    -------
    uint64 array of shape (WORDS,).
    """
    image = Image.fromarray(rgb)
    image = image.reduce(max(1, min(image.size) // (2 * _SIDE))).convert("L")
    grey = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    low = dctn(grey, norm="ortho")[:_KEPT, :_KEPT].ravel()
    return np.packbits(low > np.median(low)).view("<u8")


def near_clusters(hashes: Hashes, max_bits: int) -> tuple[Ints, Ints]:
    """Cluster images whose hashes differ in at most ``max_bits`` bits (single linkage).

    Two hashes that differ in ``max_bits`` bits agree in at least one of ``max_bits + 1`` segments, so only hashes that
    agree in a segment are compared, and no pair is missed.

    Parameters
    ----------
    hashes
        (n, WORDS).

    Returns
    -------
    Smallest row number in the cluster of each row, and the distance in bits to its nearest neighbour, -1 where it is
    alone: two int64 arrays of shape (n,).
    """
    if not len(hashes):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    distinct, first, inverse, counts = np.unique(
        hashes, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    inverse = inverse.ravel()
    nearest = np.where(counts > 1, 0, _BITS + 1)
    label = np.arange(len(distinct))
    edges: list[tuple[Ints, Ints]] = []
    for one, other in _candidates(distinct, max_bits + 1):
        distance = np.bitwise_count(distinct[one] ^ distinct[other]).sum(axis=1, dtype=np.int64)
        close = distance <= max_bits
        one, other, distance = one[close], other[close], distance[close]  # noqa: PLW2901
        np.minimum.at(nearest, one, distance)
        np.minimum.at(nearest, other, distance)
        edges.append((one, other))
        if sum(len(some) for some, _ in edges) > _EDGES:
            label, edges = _joined(label, edges), []
    label = _joined(label, edges)
    smallest = np.full(len(distinct), len(hashes))
    np.minimum.at(smallest, label, first)
    nearest[nearest > _BITS] = -1
    return smallest[label][inverse].astype(np.int64), nearest[inverse].astype(np.int64)


def _joined(label: Ints, edges: list[tuple[Ints, Ints]]) -> Ints:
    one, other = (np.concatenate([np.arange(0), *(edge[side] for edge in edges)]) for side in (0, 1))
    size = len(label)
    rows, columns = np.concatenate([label[one], np.arange(size)]), np.concatenate([label[other], label])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), (size, size))
    return np.asarray(connected_components(graph, directed=False)[1].astype(np.int64))


def _candidates(hashes: Hashes, num_stretches: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield pairs that agree in a segment of bits; a pair may come more than once."""
    cuts = np.linspace(0, _BITS, num_stretches + 1).astype(int)
    for start, stop in pairwise(cuts.tolist()):
        value = _stretch(hashes, start, stop)
        order = np.argsort(value, kind="stable")
        value = value[order]
        last = np.searchsorted(value, value, side="right")
        at = np.flatnonzero(last - np.arange(len(value)) > 1)
        step = 1
        while len(at):  # pair each with the one ``step`` places after it, while they agree
            for some in np.array_split(at, -(-len(at) // _PAIRS)):
                yield order[some], order[some + step]
            step += 1
            at = at[at + step < last[at]]


def _stretch(hashes: Hashes, start: int, stop: int) -> Hashes:
    """Return bits ``start`` to ``stop``, at most 64, as one integer per hash."""
    word, shift = divmod(start, 64)
    value = hashes[:, word] >> np.uint64(shift)
    if shift + stop - start > 64:
        value = value | hashes[:, word + 1] << np.uint64(64 - shift)
    if stop - start < 64:
        value = value & np.uint64((1 << (stop - start)) - 1)
    return value
