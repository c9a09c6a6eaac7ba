"""Parts of the shapes of synthetic garments, and the outlines that most of them share.

Coordinates are complex numbers in *garment units*: the middle of the neck, or of the waistband, is 0, the shoulders are
about half a unit from it, and +y points down to the hem.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from tlbatch.data.synthetic.paint import Points, ribbons

Sleeves = tuple[tuple[Points, complex], ...]
"""Outlines, and the direction of the threads."""


@dataclass(frozen=True)
class Fit:
    """The cut of a garment, and the position of its arms in one photograph."""

    shoulder: float
    waist: float
    flare: float
    neck: float
    dip: float
    pointed: bool
    """Whether the neckline is a V."""
    arms: tuple[float, float]
    """Angles of the right and the left arm from straight down, in radians."""
    bends: tuple[float, float]


@dataclass(frozen=True)
class Silhouette:
    """The parts of a garment, in the order in which they are drawn."""

    inside: tuple[Points, ...] = ()
    """The inside of the cloth, visible at the neck."""
    sleeves: Sleeves = ()
    body: tuple[Points, ...] = ()
    front: tuple[Points, ...] = ()
    """Openings that show what is underneath."""
    flaps: tuple[Points, ...] = ()
    """Parts of the same cloth: collars, lapels, pockets, belts."""
    ribs: tuple[Points, ...] = ()
    """Knitted or stitched bands in one colour."""
    seams: tuple[Points, ...] = ()
    buttons: tuple[complex, ...] = ()


def fit_of(garment: Generator, photograph: Generator) -> Fit:
    """Draw the cut of a garment from one stream, and its position from the other."""
    shoulder, waist, flare, neck, dip, pointed = garment.uniform(0, 1, 6)
    first, second = photograph.uniform(0.2, 0.55, 2)
    bends = photograph.uniform(-0.15, 0.6, 2)
    return Fit(
        shoulder=0.46 + 0.07 * shoulder,
        waist=0.9 + 0.2 * waist,
        flare=flare,
        neck=0.16 + 0.06 * neck,
        dip=0.16 + 0.14 * dip,
        pointed=bool(pointed < 0.4),
        arms=(first, second),
        bends=(bends[0], bends[1]),
    )


def sleeves_of(fit: Fit, sleeve: str, *, wide: bool) -> Sleeves:
    """Return the two sleeves, or none."""
    if sleeve == "sleeveless":
        return ()
    size = 1.12 if sleeve == "long-sleeved" else 0.42
    right, left = (_sleeve(fit, size, angle, bend, wide=wide) for angle, bend in zip(fit.arms, fit.bends, strict=True))
    return right, (_mirrored(left[0]), left[1].conjugate())


def _sleeve(fit: Fit, size: float, angle: float, bend: float, *, wide: bool) -> tuple[Points, complex]:
    """Return the right sleeve, bent at the elbow to look natural."""
    t = np.linspace(0, 1, 12)
    elbow = 1 / (1 + np.exp(-14 * (t * size - 0.55)))
    steps = np.exp(1j * (np.pi / 2 - angle + bend * elbow)) * size / t.size
    # It begins under the cloth of the body, so that the shoulder has no gap.
    axis = complex(fit.shoulder * 0.74, 0.25) + np.cumsum(steps) - steps[0] * (1 + 0.07 * t.size / size)
    outline = ribbons(axis[None, :], 0.4 if wide else 0.35, taper=0.42 if size > 1 else 0.12)[0]
    return outline, complex(steps[0] / abs(steps[0])) / 1j


def _mirrored(points: Points) -> Points:
    return np.asarray(-points.conj())


def whole(right: Sequence[complex]) -> Points:
    """Mirror the right half of an outline, given from top middle to bottom middle, and smooth it."""
    half = np.array(right)
    outline: Points = np.concatenate([half, _mirrored(half)[::-1]])
    for _ in range(2):  # Chaikin's corner cutting
        after = np.roll(outline, -1)
        outline = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], axis=1).reshape(-1)
    return outline


def box(corner: complex, opposite: complex) -> Points:
    """Return an upright rectangle between two corners."""
    across = complex(opposite.real, corner.imag)
    return np.array([corner, across, opposite, complex(corner.real, opposite.imag)])


def both(points: Sequence[complex]) -> tuple[Points, Points]:
    """Return an outline on the right, and its mirror image on the left."""
    right = np.array(points)
    return right, _mirrored(right)


def line(*points: complex) -> Points:
    """Return the outline of a thread along points."""
    return np.asarray(ribbons(np.array(points)[None, :], 0.022, taper=0.0)[0])


def neck(fit: Fit, dip: float, *, pointed: bool) -> list[complex]:
    """Return the right half of a neckline, from its lowest point."""
    rim = [1j * dip, 1j * dip] if pointed else [1j * dip, complex(0.7 * fit.neck, 0.85 * dip)]
    return [*rim, complex(fit.neck, 0.02), complex(fit.neck, 0)]


def upper(fit: Fit, *, bare: bool) -> list[complex]:
    """Return the outline from the neck over the shoulder to the armpit."""
    shoulder = fit.shoulder - (0.1 if bare else 0)
    return [
        complex(shoulder - 0.05, 0.1),
        complex(shoulder, 0.13),
        complex(shoulder - 0.02, 0.22),
        complex(0.78 * fit.shoulder, 0.36),
        complex(0.8 * fit.shoulder + 0.02, 0.5),
    ]


def inside(fit: Fit) -> tuple[Points, ...]:
    """Return the back of the neck, as visible from the front."""
    return (whole([-0.05j, complex(0.8 * fit.neck, -0.04), complex(fit.neck, 0.02), complex(fit.neck, 0.12), 0.16j]),)


def armholes(sleeves: Sleeves, fit: Fit) -> tuple[Points, ...]:
    """Return the seams of the sleeves."""
    edge = (complex(fit.shoulder - 0.03, 0.14), complex(0.8 * fit.shoulder, 0.34), complex(0.8 * fit.shoulder, 0.5))
    right = line(*edge)
    return (right, _mirrored(right)) if sleeves else ()


def cuffs(sleeves: Sleeves, depth: float) -> tuple[Points, ...]:
    """Return the ends of the sleeves, whose outlines go down one side and up the other."""
    ends = []
    for outline, _ in sleeves:
        half = len(outline) // 2
        near, far = outline[half - 1], outline[half]
        up = (outline[half - 2] - near) / abs(outline[half - 2] - near) * depth
        ends.append(np.array([near + up, near, far, far + up]))
    return tuple(ends)
