"""What synthetic images are painted with: where things lie in an image, outlines, ink, and the camera.

Geometry is complex numbers in *field units*: the centre of the field of view is 0, its radius 1, +x points to the right
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
"""Shares of red, green and blue light: taken away by what is dark, given back by what is bright."""
Shapes = tuple[Points, float]
"""Outlines of shape (outlines, corners), and the ink from 0 to 1 that fills them."""
SHADOW: Final[Colour] = (0.62, 0.60, 0.56)
"""What a soft shadow takes from the light."""
_OVERSAMPLING: Final = 2
_COARSE: Final = 64
_CORNERS: Final = 14
_STEPS: Final = 24


@dataclass(frozen=True)
class Grid:
    """Where the field lies in the square image."""

    side: int
    radius_px: float
    turn: complex

    def pixels(self, points: Points) -> Reals:
        """Corners of shape (..., 2) in pixels of the oversampled canvas."""
        z = (points * self.turn * self.radius_px + complex(1, 1) * self.side / 2) * _OVERSAMPLING
        return np.stack([z.real, z.imag], axis=-1)

    def grid(self, cells: int = _COARSE) -> Points:
        """Places of the cells of a raster over the image, by default a coarse one for what varies slowly."""
        axis = ((np.arange(cells) + 0.5) / cells - 0.5) * self.side / self.radius_px
        return (axis[None, :] + 1j * axis[:, None]) / self.turn


@dataclass(frozen=True)
class Eye(Grid):
    """Where things lie in one eye, too."""

    disc: complex
    disc_radius: float
    fovea: complex


def stream(seed: int, *key: int) -> Generator:
    """Random numbers of each key's own, whoever asks and in whatever order."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def mask_of(frame: Grid, shapes: Sequence[Shapes], *, blur: float = 0.0) -> Plane:
    """Ink of shape (side, side) from 0 to 1, where later shapes cover earlier ones."""
    if not any(outlines.size for outlines, _ in shapes):
        return np.zeros((frame.side, frame.side), dtype=np.float32)
    canvas = Image.new("L", (frame.side * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for outlines, ink in shapes:
        for corners in frame.pixels(outlines):
            pen.polygon(corners.ravel().tolist(), fill=round(255 * ink))
    if not blur:
        return _shares(canvas.reduce(_OVERSAMPLING))
    # What is blurred anyway is blurred at half the size, in a quarter of the time.
    small = blurred(canvas.reduce(2 * _OVERSAMPLING), blur * frame.radius_px / 2)
    return _shares(small.resize((frame.side,) * 2, Image.Resampling.BILINEAR))


def blurred(image: Image.Image, sigma_px: float) -> Image.Image:
    """Blurred by the box of the given standard deviation: a third of the time of a Gaussian, and a lens's own shape."""
    return image.filter(ImageFilter.BoxBlur(((12 * sigma_px**2 + 1) ** 0.5 - 1) / 2))


def _shares(image: Image.Image) -> Plane:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def absorb(planes: Plane, mask: Plane, strength: Colour) -> None:
    """Take from each of three planes its share of the light, in place, where ``mask`` has ink."""
    for channel, share in enumerate(strength):
        planes[channel] *= 1 - np.float32(share) * mask


def cover(planes: Plane, mask: Plane, colour: Colour | Plane) -> None:
    """Lay a colour, or three planes of them, over three planes, in place, as thickly as ``mask`` has ink."""
    for channel, value in enumerate(colour):
        planes[channel] += (np.float32(value) - planes[channel]) * mask


def enlarge(coarse: Reals, side: int) -> Plane:
    """A smooth plane of shape (side, side) from a coarse raster over the image."""
    small = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def hill(grid: Points, centre: complex, width: float) -> Reals:
    """A bell of height 1 around ``centre``; ``width`` is its standard deviation in field units."""
    return np.exp(-(np.abs(grid - centre) ** 2) / (2 * width**2))


def blobs(rng: Generator, centres: Points, radii: Range, ragged: float, stretch: Points | None = None) -> Points:
    """Uneven outlines around centres; ``stretch`` is the direction and the length of each."""
    low, high = radii
    uneven = rng.uniform(-ragged, ragged, (len(centres), _CORNERS))
    uneven = (uneven + np.roll(uneven, 1, axis=1) + np.roll(uneven, 2, axis=1)) / 2
    edges = (1 + uneven) * np.exp(2j * np.pi * np.arange(_CORNERS) / _CORNERS)
    if stretch is not None:
        lengths = np.abs(stretch)[:, None]
        edges = (edges.real * lengths + 1j * edges.imag) * stretch[:, None] / lengths
    # Most blobs are nearer to the small end, as they are in eyes.
    sizes = low * (high / low) ** rng.uniform(0, 1, len(centres))
    outlines: Points = centres[:, None] + sizes[:, None] * edges
    return outlines


def grow(rng: Generator, starts: Points, headings: Reals, lengths: Reals, bends: Reals, wobble: float) -> Points:
    """Curves of shape (starts, steps) that turn by ``bends`` radians, most of it early."""
    t = np.linspace(0, 1, _STEPS)
    waves = rng.uniform(1.0, 3.5, starts.size)[:, None] * t + rng.uniform(0, 1, starts.size)[:, None]
    angles = headings[:, None] + bends[:, None] * np.sqrt(t) + wobble * np.sin(2 * np.pi * waves)
    steps = np.exp(1j * angles) * lengths[:, None] / _STEPS
    curves: Points = starts[:, None] + np.cumsum(steps, axis=1) - steps[:, :1]
    return curves


def ribbons(curves: Points, width: float, *, beading: float = 0.0, taper: float = 0.6) -> Points:
    """Outlines of curves that taper by a share; beading swells them like a string of sausages."""
    along = np.gradient(curves, axis=1)
    t = np.linspace(0, 1, curves.shape[1])
    half = width / 2 * (1 - taper * t) * (1 + beading * np.sin(44 * t))
    across = 1j * along / np.abs(along) * half
    return np.concatenate([curves + across, (curves - across)[:, ::-1]], axis=1)


def scatter(rng: Generator, eye: Eye, num: int, *, quadrants: int = 4) -> Points:
    """``num`` places in the field and off the disc, spread evenly over so many quadrants."""
    tries = 3 * num + 12
    quarter = np.resize(rng.permutation(4)[:quadrants], tries) + rng.uniform(0, 1, tries)
    places = np.sqrt(rng.uniform(0.03, 0.75, tries)) * np.exp(0.5j * np.pi * quarter)
    off_disc: Points = places[np.abs(places - eye.disc) > 1.4 * eye.disc_radius]
    return off_disc[:num]


def heap_around(rng: Generator, centre: complex, num: int, *, spread: float) -> Points:
    """``num`` places around ``centre``; the standard deviation each way is half of ``spread``."""
    east, south = rng.normal(0, spread / 2, (2, num))
    places: Points = centre + east + 1j * south
    return places


def sensed(planes: Plane, *, blur_px: float, grain: Plane, stop: Plane | None = None) -> npt.NDArray[np.uint8]:
    """What a camera makes of three planes from 0 to 1: uint8 of shape (side, side, 3).

    Parameters
    ----------
    blur_px
        Standard deviation of the defocus.
    grain
        What the sensor adds to each pixel, of 255.
    stop
        From 0, where no light comes, to 1.
    """
    lit = [_defocused(plane, blur_px) + grain for plane in planes]
    return np.stack([_bytes(plane if stop is None else plane * stop) for plane in lit], axis=-1)


def _defocused(plane: Plane, blur_px: float) -> Plane:
    return np.asarray(blurred(Image.fromarray(_bytes(255 * plane)), blur_px), dtype=np.float32)


def _bytes(values: Plane) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[np.uint8] = np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)
    return rounded
