"""Descriptors of shape, texture, edges and colour: vectors of fixed length with columns of similar scale."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from skimage import feature, filters

from tlbatch.core.typing import Floats, Ints
from tlbatch.model.handcrafted.planes import scaled

Value = TypeVar("Value", bound=np.generic)
_DIRECTIONS = 9
_LEVELS = 32
_DISTANCES = (1, 2, 4)
_ANGLES = tuple(np.arange(4) * np.pi / 4)
_SIGMAS = (1.0, 2.0, 3.0)
"""Half widths of vessels, in pixels."""


def gradients(grey: Floats) -> Floats:
    """Compute histograms of oriented gradients (Dalal and Triggs 2005), 9 directions, on 8 x 8 and 4 x 4 cells, (720,).

    Each cell is averaged over the blocks of 2 x 2 cells that normalise it: P. Felzenszwalb et al. (2010) found that
    this loses nothing, and it takes a quarter of the values.
    """
    parts = []
    for cells, most in ((8, 128), (4, 32)):
        plane = scaled(grey, min(most, len(grey) // 8 * 8))
        width = len(plane) // cells
        blocks = feature.hog(plane, _DIRECTIONS, (width, width), (2, 2), "L2-Hys", feature_vector=False)
        total = np.zeros((cells, cells, _DIRECTIONS))
        counts = np.zeros((cells, cells, 1))
        for down, across in np.ndindex(2, 2):
            place = slice(down, down + cells - 1), slice(across, across + cells - 1)
            total[place] += blocks[:, :, down, across]
            counts[place] += 1
        parts.append((total / counts).ravel())
    return np.concatenate(parts).astype(np.float32)


def patterns(grey: Floats) -> Floats:
    """Compute square roots of histograms of uniform LBP (Ojala et al. 2002) at three radii, by region, (310,)."""
    parts = []
    plane = (grey * 255).round().astype(np.uint8)
    for points, radius, grid in ((8, 1, 4), (8, 2, 2), (16, 3, 2)):
        codes = feature.local_binary_pattern(plane, points, radius, "uniform").astype(np.int64)
        for number in (1, grid):
            parts += [_shares(part, points + 2) for part in regions(codes, number)]
    return np.concatenate(parts).astype(np.float32)


def cooccurrences(plane: Floats) -> Floats:
    """Compute co-occurrence properties of grey levels (Haralick et al. 1973), mean and range over angles, (36,)."""
    levels = np.minimum(plane * _LEVELS, _LEVELS - 1).astype(np.uint8)
    matrices = feature.graycomatrix(levels, _DISTANCES, _ANGLES, _LEVELS, symmetric=True, normed=True)
    names = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
    found = np.stack([feature.graycoprops(matrices, name) for name in names])
    found[:2] = np.log1p(found[:2]) / 4
    found[5] /= 2 * np.log(_LEVELS)
    return np.concatenate([found.mean(axis=2).ravel(), np.ptp(found, axis=2).ravel()]).astype(np.float32)


def edges(grey: Floats, equal: Floats) -> Floats:
    """Compute edge strength (Sobel), edge density (Canny) and vessel strength (Sato et al. 1998) by region, (95,)."""
    slopes, lines, vessels = filters.sobel(grey), feature.canny(grey, 1.5), vesselness(equal)
    parts: list[npt.ArrayLike] = []
    for plane in (slopes, vessels):
        for number in (1, 4):
            parts += [[part.mean() * 3, part.std() * 3] for part in regions(plane, number)]
        parts.append(np.quantile(plane, (0.5, 0.75, 0.9, 0.95, 0.99)))
    parts += [[np.sqrt(part.mean())] for number in (1, 4) for part in regions(lines, number)]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def vesselness(plane: Floats) -> Floats:
    """Measure dark ridges at each pixel: the larger eigenvalue of the Hessian, times the square of its scale."""
    found = np.zeros_like(plane)
    for sigma in _SIGMAS:
        hessian = feature.hessian_matrix(plane, sigma, use_gaussian_derivatives=False)
        found = np.maximum(found, sigma**2 * feature.hessian_matrix_eigvals(hessian)[0])
    return found


def colours(rgb: Floats, hsv: Floats, lab: Floats) -> Floats:
    """Compute roots of histograms, and moments by region, of R, G, B, H, S, V, L, a and b, (279,).

    The moments are mean, standard deviation and cube root of the third central moment.
    """
    shifted = (lab - (0, -1, -1)) / (1, 2, 2)
    channels = np.concatenate([rgb, hsv, shifted], axis=2)
    bins = np.minimum(channels * 16, 15).astype(np.int64)
    parts = [_shares(bins[..., at], 16) for at in range(9)]
    for number in (1, 2):
        parts += [_moments(part) for part in regions(np.concatenate([rgb, hsv, lab], axis=2), number)]
    return np.concatenate(parts).astype(np.float32)


def layout(lab: Floats) -> Floats:
    """Compute mean L on 12 x 12, and mean a and b on 6 x 6 regions, (216,)."""
    parts = [scaled(lab[..., at], side).ravel() for at, side in ((0, 12), (1, 6), (2, 6))]
    return np.concatenate(parts).astype(np.float32)


def regions(plane: npt.NDArray[Value], number: int) -> list[npt.NDArray[Value]]:
    """Split a plane into the cells of a grid of number x number."""
    return [part for row in np.array_split(plane, number) for part in np.array_split(row, number, axis=1)]


def _shares(codes: Ints, number: int) -> Floats:
    return np.sqrt(np.bincount(codes.ravel(), minlength=number) / codes.size)


def _moments(part: Floats) -> Floats:
    values = np.ascontiguousarray(part.reshape(-1, part.shape[-1]).T)
    mean = values.mean(axis=1)
    off = values - mean[:, None]
    squares = off * off
    return np.concatenate([mean, np.sqrt(squares.mean(axis=1)), np.cbrt((squares * off).mean(axis=1))])
