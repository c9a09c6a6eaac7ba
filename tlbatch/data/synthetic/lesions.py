"""Lesions of diabetic retinopathy in a synthetic eye, by grade: blood, lipid, cotton wool and new vessels."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator

from tlbatch.data.synthetic import paint
from tlbatch.data.synthetic.paint import Eye, Plane, Points, Shapes

_BLOOD: Final = (0.42, 0.74, 0.62)
_LIPID: Final = (0.98, 0.88, 0.52)
_WOOL: Final = (0.95, 0.86, 0.66)


@dataclass(frozen=True)
class Burden:
    """The lesions in an eye of one grade: closed ranges of counts, and the probability of beading."""

    microaneurysms: tuple[int, int] = (0, 0)
    haemorrhages: tuple[int, int] = (0, 0)
    quadrants: tuple[int, int] = (4, 4)
    exudates: tuple[int, int] = (0, 0)
    cotton_wool: tuple[int, int] = (0, 0)
    beading_chance: float = 0.0
    proliferates: bool = False


BURDENS: Final = (
    Burden(),
    Burden((3, 12)),
    Burden((3, 14), haemorrhages=(1, 6), quadrants=(1, 3), exudates=(0, 1), cotton_wool=(0, 1)),
    Burden((6, 22), haemorrhages=(12, 28), exudates=(0, 2), cotton_wool=(0, 3), beading_chance=0.7),
    Burden((2, 20), (0, 24), (1, 4), (0, 1), (0, 2), beading_chance=0.3, proliferates=True),
)
"""By grade of the International Clinical Diabetic Retinopathy scale, 0 to 4."""


def vein_beading(rng: Generator, burden: Burden) -> float:
    """Draw how far the veins swell, as a fraction of their width; 0 without beading."""
    return rng.uniform(0.25, 0.5) if rng.random() < burden.beading_chance else 0.0


def add_lesions(planes: Plane, rng: Generator, eye: Eye, burden: Burden) -> None:
    """Paint the lesions of ``burden`` on planes of shape (3, side, side), in place."""
    wool = paint.scatter(rng, eye, _count(rng, burden.cotton_wool))
    paint.cover(planes, paint.mask_of(eye, [(paint.blobs(rng, wool, (0.03, 0.06), 0.4), 0.75)], blur=0.014), _WOOL)
    exudates = [(_exudates(rng, eye), 0.9) for _ in range(_count(rng, burden.exudates))]
    paint.cover(planes, paint.mask_of(eye, exudates), _LIPID)
    dots = paint.scatter(rng, eye, _count(rng, burden.microaneurysms))
    blood = [
        (paint.blobs(rng, dots, (0.010, 0.015), 0.1), rng.uniform(0.65, 0.9)),
        (_haemorrhages(rng, eye, burden), rng.uniform(0.75, 1)),
    ]
    if burden.proliferates:
        blood += _proliferation(rng, eye)
    paint.absorb(planes, paint.mask_of(eye, blood), _BLOOD)


def _haemorrhages(rng: Generator, eye: Eye, burden: Burden) -> Points:
    """Draw dot, blot and flame haemorrhages, the last along the nerve fibres away from the disc."""
    quadrants = _count(rng, burden.quadrants)
    places = paint.scatter(rng, eye, _count(rng, burden.haemorrhages), quadrants=quadrants)
    away = (places - eye.disc) / np.abs(places - eye.disc)
    lengths = np.where(rng.random(places.size) < 0.25, 2.5, 1.15)
    return paint.blobs(rng, places, (0.013, 0.036), 0.3, lengths * away)


def _exudates(rng: Generator, eye: Eye) -> Points:
    """Draw yellow specks, in a cluster or a ring."""
    centre = complex(eye.fovea + rng.uniform(0.1, 0.45) * np.exp(2j * np.pi * rng.random()))
    num, spread = int(rng.integers(7, 26)), rng.uniform(0.05, 0.13)
    ring = centre + spread * np.exp(2j * np.pi * rng.random(num)) * rng.uniform(0.85, 1.15, num)
    heap = paint.heap_around(rng, centre, num, spread=spread)
    return paint.blobs(rng, ring if rng.random() < 0.4 else heap, (0.006, 0.017), 0.3)


def _proliferation(rng: Generator, eye: Eye) -> list[Shapes]:
    """Draw at least one of: new vessels at the disc, new vessels elsewhere, preretinal blood."""
    at_disc, elsewhere, before = rng.random(3) < (0.5, 0.5, 0.35)
    shapes = [_frond(rng, eye.disc, 0.25)] if at_disc else []
    if elsewhere or not (at_disc or before):
        shapes += [_frond(rng, complex(place), 0.16) for place in paint.scatter(rng, eye, _count(rng, (1, 3)))]
    return [*shapes, _boat(rng, eye)] if before else shapes


def _frond(rng: Generator, root: complex, reach: float) -> Shapes:
    num = _count(rng, (10, 22))
    starts = paint.heap_around(rng, root, num, spread=0.4 * reach)
    headings, bends = rng.uniform(0, 2 * np.pi, num), rng.normal(0, 2.5, num)
    curves = paint.grow(rng, starts, headings, reach * rng.uniform(0.5, 1.2, num), bends, 0.9)
    return paint.ribbons(curves, 0.008), rng.uniform(0.45, 0.7)


def _boat(rng: Generator, eye: Eye) -> Shapes:
    """Draw settled preretinal blood, flat on top and round below."""
    angles = np.linspace(0, np.pi, 24)
    hull = rng.uniform(0.12, 0.26) * (np.cos(angles) + 1j * rng.uniform(0.5, 0.8) * np.sin(angles))
    return paint.scatter(rng, eye, 1)[:, None] + hull, 1.0


def _count(rng: Generator, closed: tuple[int, int]) -> int:
    return int(rng.integers(*closed, endpoint=True))
