"""Painting of synthetic images: coordinates, outlines, ink and the camera.

Coordinates are complex numbers in *field units*: the centre of the field of view is 0, its radius 1, +x points right
(in an eye to the nose: every eye is drawn as a right eye) and +y down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

Plane = npt.NDArray[np.float32]
Points = npt.NDArray[np.complex128]
Reals = npt.NDArray[np.float64]
Range = tuple[float, float]
Colour = tuple[float, float, float]
"""Fractions of red, green and blue light: absorbed by dark ink, reflected by bright ink."""
Shapes = tuple[Points, float]
"""Outlines of shape (outlines, corners), and the ink from 0 to 1 that fills them."""
SHADOW: Final[Colour] = (0.62, 0.60, 0.56)
"""Fractions of light that a soft shadow absorbs."""
_OVERSAMPLING: Final = 2
_COARSE: Final = 64
_CORNERS: Final = 14
_STEPS: Final = 24


@dataclass(frozen=True)
class Grid:
    """Position of the field of view in the square image."""

    side: int
    radius_px: float
    turn: complex

    def pixels(self, points: Points) -> Reals:
        """Return points as pixel coordinates of the oversampled canvas, (..., 2)."""
        z = (points * self.turn * self.radius_px + complex(1, 1) * self.side / 2) * _OVERSAMPLING
        return np.stack([z.real, z.imag], axis=-1)

    def grid(self, cells: int = _COARSE) -> Points:
        """Return the cell centres of a raster over the image, by default a coarse one for smooth fields."""
        axis = ((np.arange(cells) + 0.5) / cells - 0.5) * self.side / self.radius_px
        return (axis[None, :] + 1j * axis[:, None]) / self.turn


@dataclass(frozen=True)
class Eye(Grid):
    """A grid with the landmarks of one eye."""

    disc: complex
    disc_radius: float
    fovea: complex


def stream(seed: int, *key: int) -> Generator:
    """Return the random generator of a key, independent of all others."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def mask_of(frame: Grid, shapes: Sequence[Shapes], *, blur: float = 0.0) -> Plane:
    """Return ink of shape (side, side), from 0 to 1; later shapes cover earlier ones."""
    if not any(outlines.size for outlines, _ in shapes):
        return np.zeros((frame.side, frame.side), dtype=np.float32)
    canvas = Image.new("L", (frame.side * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for outlines, ink in shapes:
        for corners in frame.pixels(outlines):
            pen.polygon(corners.ravel().tolist(), fill=round(255 * ink))
    if not blur:
        return _shares(canvas.reduce(_OVERSAMPLING))
    # A blurred mask needs only half the resolution, in a quarter of the time.
    small = blurred(canvas.reduce(2 * _OVERSAMPLING), blur * frame.radius_px / 2)
    return _shares(small.resize((frame.side,) * 2, Image.Resampling.BILINEAR))


def blurred(image: Image.Image, sigma_px: float) -> Image.Image:
    """Blur with a box of the given standard deviation: a third of the time of a Gaussian, and closer to a lens."""
    return image.filter(ImageFilter.BoxBlur(((12 * sigma_px**2 + 1) ** 0.5 - 1) / 2))


def _shares(image: Image.Image) -> Plane:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def absorb(planes: Plane, mask: Plane, strength: Colour) -> None:
    """Absorb a fraction of the light of each of three planes, in place, in proportion to ``mask``."""
    for channel, share in enumerate(strength):
        planes[channel] *= 1 - np.float32(share) * mask


def cover(planes: Plane, mask: Plane, colour: Colour | Plane) -> None:
    """Blend a colour, or three planes of colour, over three planes, in place, with opacity ``mask``."""
    for channel, value in enumerate(colour):
        planes[channel] += (np.float32(value) - planes[channel]) * mask


def enlarge(coarse: Reals, side: int) -> Plane:
    """Interpolate a coarse raster over the image to a smooth plane of shape (side, side)."""
    small = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def hill(grid: Points, centre: complex, width: float) -> Reals:
    """Return a Gaussian of height 1 around ``centre``; ``width`` is its standard deviation in field units."""
    return np.exp(-(np.abs(grid - centre) ** 2) / (2 * width**2))


def blobs(rng: Generator, centres: Points, radii: Range, ragged: float, stretch: Points | None = None) -> Points:
    """Draw irregular outlines around centres; ``stretch`` gives the direction and elongation of each."""
    low, high = radii
    uneven = rng.uniform(-ragged, ragged, (len(centres), _CORNERS))
    uneven = (uneven + np.roll(uneven, 1, axis=1) + np.roll(uneven, 2, axis=1)) / 2
    edges = (1 + uneven) * np.exp(2j * np.pi * np.arange(_CORNERS) / _CORNERS)
    if stretch is not None:
        lengths = np.abs(stretch)[:, None]
        edges = (edges.real * lengths + 1j * edges.imag) * stretch[:, None] / lengths
    # Most blobs are near the small end, as in real eyes.
    sizes = low * (high / low) ** rng.uniform(0, 1, len(centres))
    return np.asarray(centres[:, None] + sizes[:, None] * edges)


def grow(rng: Generator, starts: Points, headings: Reals, lengths: Reals, bends: Reals, wobble: float) -> Points:
    """Grow curves of shape (starts, steps) that bend by ``bends`` radians, mostly at the start."""
    t = np.linspace(0, 1, _STEPS)
    waves = rng.uniform(1.0, 3.5, starts.size)[:, None] * t + rng.uniform(0, 1, starts.size)[:, None]
    angles = headings[:, None] + bends[:, None] * np.sqrt(t) + wobble * np.sin(2 * np.pi * waves)
    steps = np.exp(1j * angles) * lengths[:, None] / _STEPS
    return np.asarray(starts[:, None] + np.cumsum(steps, axis=1) - steps[:, :1])


def ribbons(curves: Points, width: float, *, beading: float = 0.0, taper: float = 0.6) -> Points:
    """Return outlines along curves, narrowed by ``taper`` at the end; beading swells them periodically."""
    along = np.gradient(curves, axis=1)
    t = np.linspace(0, 1, curves.shape[1])
    half = width / 2 * (1 - taper * t) * (1 + beading * np.sin(44 * t))
    across = 1j * along / np.abs(along) * half
    return np.concatenate([curves + across, (curves - across)[:, ::-1]], axis=1)


def scatter(rng: Generator, eye: Eye, num: int, *, quadrants: int = 4) -> Points:
    """Draw ``num`` points in the field and off the disc, spread evenly over the given number of quadrants."""
    tries = 3 * num + 12
    quarter = np.resize(rng.permutation(4)[:quadrants], tries) + rng.uniform(0, 1, tries)
    places = np.sqrt(rng.uniform(0.03, 0.75, tries)) * np.exp(0.5j * np.pi * quarter)
    off_disc: Points = places[np.abs(places - eye.disc) > 1.4 * eye.disc_radius]
    return off_disc[:num]


def heap_around(rng: Generator, centre: complex, num: int, *, spread: float) -> Points:
    """Draw ``num`` points around ``centre``, with a standard deviation of half of ``spread`` in each direction."""
    east, south = rng.normal(0, spread / 2, (2, num))
    return np.asarray(centre + east + 1j * south)


def sensed(planes: Plane, *, blur_px: float, grain: Plane, stop: Plane | None = None) -> npt.NDArray[np.uint8]:
    """Turn three planes from 0 to 1 into a photograph, uint8 of shape (side, side, 3).

    Parameters
    ----------
    blur_px
        Standard deviation of the defocus, in pixels.
    grain
        Sensor noise added to each pixel, on a scale of 255.
    stop
        Aperture mask, from 0 (no light) to 1.
    """
    sharp = (Image.fromarray(_bytes(255 * plane)) for plane in planes)
    lit = [np.asarray(blurred(plane, blur_px), dtype=np.float32) + grain for plane in sharp]
    return np.stack([_bytes(plane if stop is None else plane * stop) for plane in lit], axis=-1)


def _bytes(values: Plane) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[np.uint8] = np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)
    return rounded
