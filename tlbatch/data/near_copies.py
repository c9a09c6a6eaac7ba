"""Copies that are mirrored, turned or cropped: found by the perceptual hashes of what an image would look like."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tlbatch.core.typing import Ints
from tlbatch.data.near_duplicates import (
    FREQUENCIES,
    KEPT,
    NO_COPY,
    SIDE,
    Hashes,
    Pairs,
    Spectra,
    close_pairs,
    hashes_of,
    merged,
)

Reals = npt.NDArray[np.float32]
Window = tuple[float, ...]
"""Margins left out on the left, right, top and bottom, four fractions of width and height."""
LARGEST_MARGIN = 0.12
MOST_CROPPED = 3000
"""Images up to which crops with any margins are looked for; in larger sets, those with equal margins on all sides."""
_GRID = (0.0, 0.05, 0.1)
_EQUAL = tuple(0.0125 * step for step in range(1, 9))
"""Margins of the crops that are looked for in large sets."""
_COARSE_BITS = 48
"""Most bits in which a crop differs from the nearest window of the grid; 46 in 200 crops of photographs."""
_NEAREST = 4
"""Windows of other images that are compared more closely, for each image."""
_STEPS = ((0.025, 44), (0.0125, 34), (0.00625, KEPT * KEPT))
"""Changes of the margins, each half of the one before, and the most bits after them with which it is worth going on."""


class Kind(IntEnum):
    """How an image is a copy of another."""

    NEAR = 0
    """Re-encoded, scaled or changed a little."""
    TURNED = 1
    """Mirrored, or turned by a quarter, half or three quarters."""
    CROPPED = 2


def turned_copies(spectra: Spectra, hashes: Hashes, max_bits: int) -> Iterator[Pairs]:
    """Yield the pairs of images that are alike after one is mirrored or turned; a pair may come more than once.

    A mirror image changes the sign of the odd frequencies (DCT-II), and a transposed image has the transposed spectrum.

    Parameters
    ----------
    spectra
        (n, at least 16, at least 16), see `tlbatch.data.near_duplicates.low_frequencies`.
    hashes
        Of the images as they are, (n, WORDS).
    """
    low = spectra[:, :KEPT, :KEPT].astype(np.float32)
    signs = np.where(np.arange(KEPT) % 2, -1, 1).astype(np.float32)
    for transposed, by_rows, by_columns in product((False, True), (False, True), (False, True)):
        if not (transposed or by_rows or by_columns) or (transposed and by_rows and not by_columns):
            continue  # the image itself; a quarter turn to the left, whose inverse is one to the right
        turned = low.transpose(0, 2, 1) if transposed else low
        turned = turned * signs[:, None] if by_rows else turned
        turned = turned * signs if by_columns else turned
        yield from _between(hashes, hashes_of(turned), max_bits)


def _between(hashes: Hashes, changed: Hashes, max_bits: int) -> Iterator[Pairs]:
    """Yield the pairs of an image and another one after a change."""
    for pairs in close_pairs(hashes, changed, max_bits):
        apart = pairs.one != pairs.other
        yield Pairs(*(column[apart] for column in pairs))


def cropped_copies(spectra: Spectra, hashes: Hashes, max_bits: int) -> Iterator[Pairs]:
    """Yield the pairs of images of which one is a part of the other, with margins of at most a tenth left out.

    In sets of up to `MOST_CROPPED` images all margins are looked for: windows on a grid first, the nearest of which are
    then adjusted. In larger sets, the margins are the same on all sides.

    Parameters
    ----------
    spectra, hashes
        As for `turned_copies`, with 24 x 24 frequencies.
    """
    if len(spectra) > MOST_CROPPED:
        for margin in _EQUAL:
            (parts,) = _hashes_of_windows(spectra, [(margin,) * 4])
            yield from _between(hashes, parts, max_bits)
        return
    one, other, windows = _nearest_windows(spectra, hashes)
    for part, whole, window in zip(one.tolist(), other.tolist(), windows, strict=True):
        bits = _adjusted(spectra[whole], hashes[part], window)
        if bits <= max_bits:
            yield Pairs(np.array([part]), np.array([whole]), np.array([bits]))


def _nearest_windows(spectra: Spectra, hashes: Hashes) -> tuple[Ints, Ints, list[Window]]:
    """Return, for each image, the other images with a window on the grid that looks like it, and these windows."""
    grid = [window for window in product(_GRID, repeat=4) if any(window)]
    signs = _as_signs(hashes)
    num = len(hashes)
    nearest = np.full((num, num), np.iinfo(np.int16).max, np.int16)
    which = np.zeros((num, num), np.uint8)
    for number, parts in enumerate(_hashes_of_windows(spectra, grid)):
        bits = ((KEPT * KEPT - signs @ _as_signs(parts).T) / 2).astype(np.int16)
        closer = bits < nearest
        nearest[closer], which[closer] = bits[closer], number
    np.fill_diagonal(nearest, np.iinfo(np.int16).max)
    best = np.argsort(nearest, axis=1, kind="stable")[:, :_NEAREST]
    one = np.repeat(np.arange(num), best.shape[1])
    other = best.ravel()
    close = nearest[one, other] <= _COARSE_BITS
    one, other = one[close], other[close]
    return one, other, [grid[number] for number in which[one, other].tolist()]


def _adjusted(spectrum: npt.NDArray[np.float16], wanted: Hashes, window: Window) -> int:
    """Return in how many bits a hash differs from that of the window nearest to a given one."""
    bits = KEPT * KEPT
    for step, most_bits in _STEPS:
        around = (-step, 0.0, step)
        sides = [sorted({min(max(margin + change, 0.0), LARGEST_MARGIN) for change in around}) for margin in window]
        windows = list(product(*sides))
        found = np.array([hashes[0] for hashes in _hashes_of_windows(spectrum[None], windows)])
        apart = np.bitwise_count(found ^ wanted).sum(axis=1, dtype=np.int64)
        bits, window = int(apart.min()), windows[int(apart.argmin())]
        if bits > most_bits:
            break
    return bits


def _hashes_of_windows(spectra: Spectra, windows: Sequence[Window]) -> Iterator[Hashes]:
    """Yield the hashes of a window of each image, (n, WORDS), one window after the other."""
    across = {pair: _window_matrix(*pair) for pair in {window[:2] for window in windows}}
    down = {pair: _window_matrix(*pair) for pair in {window[2:] for window in windows}}
    whole = spectra.astype(np.float32)
    rows = {pair: matrix @ whole for pair, matrix in down.items()}
    for window in windows:
        yield hashes_of(rows[window[2:]] @ across[window[:2]].T)


def _window_matrix(before: float, after: float) -> Reals:
    """Return the matrix from the frequencies of a line to those of a part of it, (16, 24)."""
    places = np.arange(SIDE) + 0.5
    return (_cosines(places, KEPT) @ _cosines(before * SIDE + (1 - before - after) * places, FREQUENCIES).T).astype(
        np.float32
    )


def _cosines(places: npt.NDArray[np.floating], number: int) -> npt.NDArray[np.floating]:
    """Return the orthonormal DCT-II basis at some places of a line, (number, places)."""
    basis = np.cos(np.pi / SIDE * np.arange(number)[:, None] * places) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis)


def _as_signs(hashes: Hashes) -> Reals:
    """Return the bits as -1 and 1, (n, 256), whose scalar products tell how many differ."""
    return 2 * np.unpackbits(hashes.view(np.uint8), axis=1).astype(np.float32) - 1


class Copies(NamedTuple):
    """Images that are copies of each other, (n,) each."""

    cluster: Ints
    """Smallest row number in the cluster of each image."""
    bits: Ints
    """Bits in which its hash differs from that of its nearest copy, -1 where there is none."""
    kind: Ints
    """`Kind` of its copies, the first of them that it has."""


def find_copies(hashes: Hashes, spectra: Spectra, groups: Ints, max_bits: int) -> tuple[Copies, int]:
    """Cluster near, mirrored, turned and cropped copies (single linkage).

    Images of one group that look mirrored or turned, such as the eyes of a patient, are no copies.

    Parameters
    ----------
    hashes, spectra
        (n, WORDS) and (n, 24, 24), see `tlbatch.data.near_duplicates`.
    groups
        Number of the group of each image, (n,).

    Returns
    -------
    The clusters, and the number of images that look mirrored or turned beside another of their group.
    """
    num = len(hashes)
    if not num:
        nothing = np.empty(0, np.int64)
        return Copies(nothing, nothing, nothing), 0
    distinct, first, inverse, counts = np.unique(
        hashes, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    spectra, groups, inverse = spectra[first], groups[first], inverse.ravel()
    bits = np.where(counts > 1, 0, NO_COPY)
    kind = np.zeros(len(distinct), np.int64)
    mirrored = np.zeros(len(distinct), np.bool_)

    def found() -> Iterator[Pairs]:
        for pairs in close_pairs(distinct, distinct, max_bits):
            yield noted(pairs, Kind.NEAR)
        for pairs in turned_copies(spectra, distinct, max_bits):
            within = groups[pairs.one] == groups[pairs.other]
            mirrored[pairs.one[within]] = mirrored[pairs.other[within]] = True
            yield noted(Pairs(*(column[~within] for column in pairs)), Kind.TURNED)
        for pairs in cropped_copies(spectra, distinct, max_bits):
            yield noted(pairs, Kind.CROPPED)

    def noted(pairs: Pairs, how: Kind) -> Pairs:
        for rows in (pairs.one, pairs.other):
            kind[rows[bits[rows] == NO_COPY]] = how
            np.minimum.at(bits, rows, pairs.bits)
        return pairs

    label = merged(np.arange(len(distinct)), found())
    smallest = np.full(len(distinct), num)
    np.minimum.at(smallest, label, first)
    bits[bits == NO_COPY] = -1
    clusters = Copies(*(column[inverse].astype(np.int64) for column in (smallest[label], bits, kind)))
    return clusters, int(mirrored[inverse].sum())
