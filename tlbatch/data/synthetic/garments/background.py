"""Background of a synthetic garment: a floor or wall, boxes, and other pieces of cloth."""

from typing import Final

import numpy as np
from numpy.random import Generator

from tlbatch.data.synthetic.garments.fabric import fabric, lay_cloth, turned_threads, woven
from tlbatch.data.synthetic.garments.phrases import ATTRIBUTES
from tlbatch.data.synthetic.paint import SHADOW, Grid, Plane, Points, Range, absorb, blobs, cover, enlarge, mask_of

_NAP: Final = 96
"""Texture cells in each direction, so that a larger image shows the same background."""


def draw_room(rng: Generator, frame: Grid) -> Plane:
    """Draw a textured wall or floor, with blocks like furniture and other pieces of cloth."""
    tone = rng.uniform(0.25, 0.85) + rng.normal(0, 0.06, 3)
    light = enlarge(0.1 * rng.standard_normal((3, 3)), frame.side)
    weave = fabric(rng, _any(rng, "colour"), _any(rng, "pattern"))
    # Half the size takes a quarter of the time, and suffices for a background.
    half = Grid(frame.side // 2, frame.side / 4, 1)
    threads = turned_threads(half, rng.uniform(0.3, 1.2) * np.exp(1j * rng.uniform(0, np.pi)))
    texture = woven(weave, threads, pixel=2 / half.side) + enlarge(0.15 * rng.standard_normal((_NAP, _NAP)), half.side)
    ink = rng.uniform(0.05, 0.3)
    planes = np.stack(
        [
            enlarge((1 - ink) * value + ink * plane, frame.side) + light
            for value, plane in zip(tone, texture, strict=True)
        ]
    )
    for _ in range(rng.integers(1, 5)):
        _add_block(planes, rng, frame)
    for _ in range(rng.integers(0, 4)):
        centre = complex(rng.uniform(0.75, 1.2) * np.exp(2j * np.pi * rng.random()))
        _add_scrap(planes, rng, frame, centre=centre, sizes=(0.25, 0.5))
    return planes


def _any(rng: Generator, attribute: str) -> str:
    words = ATTRIBUTES[attribute]
    return words[rng.integers(len(words))]


def _add_block(planes: Plane, rng: Generator, frame: Grid) -> None:
    """Add a flat box in one colour, with a shadow."""
    centre, turn = complex(*rng.uniform(-1.1, 1.1, 2)), complex(np.exp(1j * rng.normal(0, 0.25)))
    wide, high = rng.uniform(0.15, 0.8, 2)
    corners = np.array([[-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j]])
    corners = centre + (corners.real * wide + 1j * corners.imag * high) * turn
    colour = rng.uniform(0.15, 0.85) + rng.normal(0, 0.1, 3)
    _cast_shadow(planes, frame, corners, 0.05 + 0.05j, strength=0.5)
    cover(planes, mask_of(frame, [(corners, 1.0)]), tuple(colour.tolist()))


def _add_scrap(planes: Plane, rng: Generator, frame: Grid, *, centre: complex, sizes: Range) -> None:
    """Add another piece of cloth, of any colour and pattern."""
    outline = blobs(rng, np.array([centre]), sizes, 0.35)
    cloth = fabric(rng, _any(rng, "colour"), _any(rng, "pattern"))
    threads = turned_threads(frame, np.exp(2j * np.pi * rng.random()))
    shade = 0.85 + 0.15 * enlarge(rng.standard_normal((6, 6)), frame.side)
    _cast_shadow(planes, frame, outline, 0.03 + 0.05j, strength=0.5)
    lay_cloth(planes, mask_of(frame, [(outline, 1.0)]), cloth, threads, shade)


def _cast_shadow(planes: Plane, frame: Grid, outlines: Points, away: complex, *, strength: float) -> None:
    absorb(planes, mask_of(frame, [(outlines + away, strength)], blur=0.05), SHADOW)


def lay_over(planes: Plane, rng: Generator, frame: Grid) -> None:
    """Lay other pieces of cloth over the corners of the image."""
    for _ in range(rng.integers(0, 3)):
        corner = complex(rng.choice((-1, 1)), rng.choice((-1, 1)))
        _add_scrap(planes, rng, frame, centre=corner * rng.uniform(1.0, 1.15), sizes=(0.2, 0.4))
