"""The cloth of a synthetic garment: its colours and its pattern."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from tlbatch.core.typing import Ints
from tlbatch.data.synthetic.paint import Colour, Grid, Plane, Range

Threads = npt.NDArray[np.complexfloating]
Distances = npt.NDArray[np.floating]
_SHADES: Final[Mapping[str, tuple[Colour, Colour]]] = {
    "black": ((0.05, 0.05, 0.06), (0.15, 0.14, 0.17)),
    "white": ((0.95, 0.95, 0.95), (0.86, 0.84, 0.79)),
    "red": ((0.82, 0.13, 0.12), (0.52, 0.05, 0.10)),
    "pink": ((0.97, 0.72, 0.78), (0.91, 0.42, 0.62)),
    "yellow": ((0.96, 0.88, 0.42), (0.86, 0.67, 0.10)),
    "green": ((0.45, 0.68, 0.42), (0.06, 0.29, 0.17)),
    "blue": ((0.46, 0.63, 0.86), (0.09, 0.15, 0.44)),
    "brown": ((0.58, 0.40, 0.26), (0.28, 0.17, 0.10)),
}
"""The two extremes of the shades with each name."""
_CONTRAST: Final = 0.55
_PERIODS: Final[Mapping[str, Range]] = {
    "plain": (0.2, 0.2),
    "striped": (0.13, 0.22),
    "dotted": (0.14, 0.22),
    "checked": (0.17, 0.27),
    "floral": (0.26, 0.36),
}
"""Range of the repeat length of each pattern, in field units."""
_CELLS: Final = 16
_NOTHING: Final[Plane] = np.zeros(1, dtype=np.float32)


@dataclass(frozen=True)
class Fabric:
    """A cloth of unlimited extent."""

    pattern: str
    ground: Plane
    inks: Plane
    """Colours of the pattern, (2, 3)."""
    period: float
    turn: complex
    share: float
    """From 0 to 1: how much of the cloth the pattern covers, within the range of its kind."""
    loose: Plane
    """Random variation of the flowers, (cells, cells, 4), from 0 to 1."""


def fabric(rng: Generator, colour: str, pattern: str) -> Fabric:
    """Draw a cloth of one colour and pattern; all else is independent of these two."""
    shade, darker = rng.uniform(0, 1, 2)
    order = rng.permutation(len(_SHADES))
    sizes, share, upright, skew = rng.uniform(0, 1, 4)
    loose = rng.random((_CELLS, _CELLS, 4), dtype=np.float32)
    light, dark = (np.array(end, dtype=np.float32) for end in _SHADES[colour])
    ground = light + np.float32(shade) * (dark - light)
    low, high = _PERIODS[pattern]
    turn = complex(np.exp(0.16j * (skew - 0.5))) * (1 if upright < 0.5 else 1j)
    return Fabric(pattern, ground, _inks(ground, order, darker), low + sizes * (high - low), turn, share, loose)


def _inks(ground: Plane, order: Ints, darker: float) -> Plane:
    """Choose two colours that contrast with the ground; white and black are likelier than others."""
    ends = np.array(list(_SHADES.values()), dtype=np.float32)
    shades = ends[:, 0] + np.float32(darker) * (ends[:, 1] - ends[:, 0])
    ranked = np.concatenate([shades[[1, 0]] if darker < 0.5 else shades[[0, 1]], shades[order]])
    if darker > 0.3:
        ranked = np.roll(ranked, -2, axis=0)
    far = np.linalg.norm(ranked - ground, axis=1) > _CONTRAST
    return np.asarray(ranked[far][:2])


def turned_threads(frame: Grid, turn: complex) -> Threads:
    """Return the coordinates of each pixel on a rotated cloth."""
    return (frame.grid(frame.side) * complex(turn)).astype(np.complex64)


def lay_cloth(planes: Plane, mask: Plane, cloth: Fabric, threads: Threads, shade: Plane) -> None:
    """Cover three planes with cloth, in place, with opacity ``mask``.

    Parameters
    ----------
    threads
        Coordinates of each pixel on the cloth, in field units, (side, side).
    shade
        Brightness of the cloth under the light, (side, side).
    """
    flat = planes.reshape(3, -1)
    where = np.flatnonzero(mask)  # the cloth covers only a part of the image
    colours = woven(cloth, threads.ravel()[where], pixel=2 / len(mask)) * shade.ravel()[where]
    flat[:, where] += (colours - flat[:, where]) * mask.ravel()[where]


def woven(cloth: Fabric, threads: Threads, *, pixel: float) -> Plane:
    """Return the colours of a cloth at coordinates in field units: shape (3, ...) for coordinates of shape (...).

    Parameters
    ----------
    pixel
        Size of a pixel in field units, over which edges are softened.
    """
    ground = cloth.ground.reshape(3, *(1,) * threads.ndim)
    if cloth.pattern == "plain":
        return np.broadcast_to(ground, (3, *threads.shape))
    first, second = _PRINTS[cloth.pattern](cloth, threads * complex(cloth.turn / cloth.period), pixel / cloth.period)
    ink, more = (colour.reshape(ground.shape) for colour in cloth.inks)
    planes: Plane = ground + (ink - ground) * first
    planes += (more - planes) * second
    return planes


def _edge(distance: Distances, soft: float) -> Plane:
    """Return ink where the distance, in repeats, is positive."""
    return np.asarray(np.clip(0.5 + distance / (2 * soft), 0, 1).astype(np.float32, copy=False))


def _bar(across: Distances, width: float, soft: float) -> Plane:
    return _edge(width / 2 - np.abs(across - np.round(across)), soft)


def _stripes(cloth: Fabric, cells: Threads, soft: float) -> tuple[Plane, Plane]:
    thin = _bar(cells.real + 0.5, 0.12, soft) if cloth.share < 0.25 else _NOTHING
    return _bar(cells.real, 0.26 + 0.12 * cloth.share, soft), thin


def _checks(cloth: Fabric, cells: Threads, soft: float) -> tuple[Plane, Plane]:
    width = 0.28 + 0.1 * cloth.share
    bars = _bar(cells.real, width, soft) + _bar(cells.imag, width, soft)
    lines = np.maximum(_bar(cells.real + 0.5, 0.09, soft), _bar(cells.imag + 0.5, 0.09, soft))
    return 0.45 * bars, (np.float32(0.8) * lines if cloth.share < 0.5 else _NOTHING)


def _dots(cloth: Fabric, cells: Threads, soft: float) -> tuple[Plane, Plane]:
    row = np.floor(cells.imag)
    across = cells.real + 0.5 * (row % 2)
    away = np.hypot(across - np.floor(across) - 0.5, cells.imag - row - 0.5)
    return _edge(0.24 + 0.07 * cloth.share - away, soft), _NOTHING


def _flowers(cloth: Fabric, cells: Threads, soft: float) -> tuple[Plane, Plane]:
    """Draw flowers of five petals, and smaller leaves between them in random directions."""
    inner, loose = _centred(cloth, cells)
    inner -= 0.24 * ((loose[..., 0] - 0.5) + 1j * (loose[..., 1] - 0.5))
    away, angle = np.abs(inner), np.angle(inner) + 2 * np.pi * loose[..., 2]
    petals = (0.31 + 0.07 * loose[..., 3]) * (0.72 + 0.28 * np.cos(5 * angle))
    hearts = _edge(0.09 - away, soft)
    leaf, loose = _centred(cloth, cells + (0.5 + 0.5j))
    leaf *= np.exp(2j * np.pi * loose[..., 2])
    leaves = _edge(0.17 - np.hypot(leaf.real, 2.4 * leaf.imag), soft)
    return _edge(petals - away, soft), np.maximum(hearts, np.float32(0.9) * leaves)


def _centred(cloth: Fabric, cells: Threads) -> tuple[Threads, Plane]:
    """Return coordinates relative to the centre of their cell, and the random values of that cell."""
    x, y = np.floor(cells.real), np.floor(cells.imag)
    loose = cloth.loose[x.astype(int) % _CELLS, y.astype(int) % _CELLS]
    return cells - (x + 1j * y) - (0.5 + 0.5j), loose


_PRINTS: Final[Mapping[str, Callable[[Fabric, Threads, float], tuple[Plane, Plane]]]] = {
    "striped": _stripes,
    "checked": _checks,
    "dotted": _dots,
    "floral": _flowers,
}
