"""One synthetic photograph of a garment: background, garment, occluding cloth and camera.

Coordinates are in field units: the centre of the image is 0, and its edges are at -1 and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from tlbatch.data.synthetic.garments.background import draw_room, lay_over
from tlbatch.data.synthetic.garments.fabric import Fabric, Threads, fabric, lay_cloth
from tlbatch.data.synthetic.garments.phrases import Garment
from tlbatch.data.synthetic.garments.seams import Silhouette, fit_of
from tlbatch.data.synthetic.garments.shapes import reach, silhouette
from tlbatch.data.synthetic.paint import SHADOW, Grid, Plane, Points, absorb, cover, enlarge, mask_of, sensed, stream

_LINING: Final = 0.45
"""Brightness of the lining of a garment, whose colour is the opposite of its cloth."""


@dataclass(frozen=True)
class Pose:
    """Position of a garment in its photograph, and direction of the light."""

    scale: float
    turn: complex
    shift: complex
    middle: complex
    """Point in garment units that is placed at ``shift``."""
    light: complex

    def place(self, points: Points) -> Points:
        """Convert points in garment units to field units."""
        return np.asarray((points - self.middle) * self.scale * self.turn + self.shift)

    def threads(self, places: Points) -> Threads:
        """Return the coordinates of points on the cloth, in field units."""
        return ((places - self.shift) / self.turn).astype(np.complex64)


def draw(seed: int, product: int, number: int, *, garment: Garment, side: int) -> npt.NDArray[np.uint8]:
    """Draw one photograph; the same arguments always give the same pixels, and only the garment depends on ``garment``.

    Parameters
    ----------
    seed, product
        They identify the garment, whose photographs share cut and cloth.
    number
        Number of the photograph of the garment, from 1; each has its own background, pose, light and camera.
    garment
        What to draw.
    side
        Height and width in pixels.

    Returns
    -------
    numpy.ndarray
        uint8 RGB of shape (side, side, 3).
    """
    cut, cloth = (stream(seed, product, 0, layer) for layer in range(2))
    # One stream per layer: a longer sleeve must not move the furniture or change the sensor noise.
    room, lie, creases, camera = (stream(seed, product, number, layer) for layer in range(4))
    frame = Grid(side, side / 2, 1)
    shape = silhouette(garment.type, sleeve=garment.sleeve, length=garment.length, fit=fit_of(cut, lie))
    pose = _pose(lie, *reach(garment.type, garment.length))
    planes = draw_room(room, frame)
    canvas = Canvas(planes, frame, pose, _relief(creases, frame, pose))
    threads = pose.threads(frame.grid(side)) + _warp(creases, frame)
    _lay_down(canvas, shape, fabric(cloth, garment.colour, garment.pattern), threads)
    lay_over(planes, room, frame)
    return _photograph(planes, camera, frame)


def _pose(rng: Generator, height: float, half_width: float) -> Pose:
    size, x, y, towards = rng.uniform(0, 1, 4)
    fit = min(1.72 / height, 0.92 / half_width)
    turn = complex(np.exp(1j * np.clip(rng.normal(0, 0.1), -0.25, 0.25)))
    shift = complex(0.2 * x - 0.1, 0.12 * y - 0.06)
    light = complex(np.exp(1j * np.pi * (1.1 + 0.8 * towards)))
    return Pose(fit * (0.84 + 0.16 * size), turn, shift, 0.5j * height, light)


@dataclass(frozen=True)
class Canvas:
    """An image on which a garment is being drawn."""

    planes: Plane
    frame: Grid
    pose: Pose
    relief: Plane
    """Brightness of the cloth under the light."""

    def mask(self, outlines: Sequence[Points], *, shift: complex = 0, blur: float = 0.0) -> Plane:
        """Return the ink mask of outlines in garment units."""
        placed = [(self.pose.place(outline)[None, :] + shift, 1.0) for outline in outlines]
        return mask_of(self.frame, placed, blur=blur)

    def paint(self, outlines: Sequence[Points], colour: Plane, *, ink: float = 1.0) -> None:
        """Fill outlines with one colour."""
        if outlines:
            cover(self.planes, np.float32(ink) * self.mask(outlines), colour[:, None, None] * self.relief)

    def lay(self, outlines: Sequence[Points], cloth: Fabric, threads: Threads) -> None:
        """Lay cloth with a small shadow, and a rim that is bright towards the light and dark away from it."""
        if not outlines:
            return
        soft = self.mask(outlines, blur=0.045)
        below, back, ahead = (self._moved(soft, away) for away in (-0.03, 0.03, -0.03))
        absorb(self.planes, 0.6 * below, SHADOW)
        shade = self.relief * (0.72 + 0.28 * soft + 0.25 * (ahead - back))
        lay_cloth(self.planes, self.mask(outlines), cloth, threads, shade)

    def _moved(self, plane: Plane, towards_light: float) -> Plane:
        """Shift a plane towards the light by a distance in field units, to the nearest pixel."""
        away = towards_light * self.pose.light * self.frame.radius_px
        return np.roll(plane, (round(away.imag), round(away.real)), (0, 1))


def _lay_down(canvas: Canvas, shape: Silhouette, cloth: Fabric, threads: Threads) -> None:
    """Lay down the sleeves, then the body, then what is sewn on it."""
    below = (*shape.body, *(outline for outline, _ in shape.sleeves))
    absorb(canvas.planes, canvas.mask(below, shift=-0.06 * canvas.pose.light, blur=0.04), SHADOW)
    canvas.paint(shape.inside, 0.5 * cloth.ground)
    for outline, thread in shape.sleeves:
        canvas.lay((outline,), cloth, threads / thread)
    canvas.lay(shape.body, cloth, threads)
    canvas.paint(shape.front, _LINING * (1.2 - cloth.ground))
    if shape.ribs:
        ribs = 0.9 + 0.13 * np.sin(2 * np.pi * threads.real / 0.055)
        cover(canvas.planes, canvas.mask(shape.ribs), cloth.ground[:, None, None] * canvas.relief * ribs)
    canvas.lay(shape.flaps, cloth, threads * complex(np.exp(0.6j)))
    canvas.paint(shape.seams, _seen_on(cloth.ground, 0.1), ink=0.75)
    rims = tuple(centre + 0.032 * np.exp(2j * np.pi * np.arange(10) / 10) for centre in shape.buttons)
    canvas.paint(rims, _seen_on(cloth.ground, 0.4))


def _seen_on(ground: Plane, contrast: float) -> Plane:
    """Return a colour for thread or buttons that contrasts with the cloth: lighter if it is dark, else darker."""
    return ground + np.float32(contrast if ground.mean() < 0.4 else -2 * contrast)


def _relief(rng: Generator, frame: Grid, pose: Pose) -> Plane:
    """Draw the brightness of the cloth: vertical folds, and creases in any direction."""
    places = pose.threads(frame.grid())
    folds = np.zeros(places.shape)
    for pace in rng.uniform(0.7, 2.6, 4):
        slant = rng.normal(0, 0.25)
        drift, start, size = rng.uniform((1, 0, 0.025), (2.5, 1, 0.09))
        swing = 0.12 * np.sin(drift * places.imag + 6 * start)
        folds += size * np.sin(2 * np.pi * (pace * (places.real + slant * places.imag + swing) + start))
    folds *= 0.6 + 0.5 * np.clip(places.imag + 0.3, 0, 1)
    relief = enlarge(0.96 + folds, frame.side)
    for cells, size in ((14, 0.045), (40, 0.018)):
        relief = relief + enlarge(size * rng.standard_normal((cells, cells)), frame.side)
    return np.clip(relief, 0.5, 1.3)


def _warp(rng: Generator, frame: Grid) -> Threads:
    """Draw the displacement of threads by folds, in field units."""
    right, down = (enlarge(0.022 * rng.standard_normal((7, 7)), frame.side) for _ in range(2))
    return right + 1j * down


def _photograph(planes: Plane, rng: Generator, frame: Grid) -> npt.NDArray[np.uint8]:
    """Add uneven coloured light, slight defocus and grain; return uint8 of shape (side, side, 3)."""
    grid = frame.grid()
    warmth, tint = np.clip(rng.normal(0, (0.07, 0.03)), -0.16, 0.16)
    cast = np.array([1 + warmth, 1 - tint, 1 - warmth], dtype=np.float32) * np.float32(rng.uniform(0.78, 1.12))
    tilt = complex(*rng.normal(0, 0.12, 2))
    light = 1 + (grid * tilt).real - rng.uniform(0, 0.12) * np.abs(grid) ** 2
    planes *= cast[:, None, None] * enlarge(light, frame.side)
    grain = np.float32(255 * rng.uniform(0.008, 0.03)) * rng.standard_normal((frame.side,) * 2, dtype=np.float32)
    return sensed(planes, blur_px=rng.uniform(0.0015, 0.006) * frame.side, grain=grain)
