"""One synthetic fundus photograph: the eye, what is wrong with it, and the camera.

Geometry is complex numbers in *field units*: the centre of the round field of view is 0, its radius 1, +x points to
the nose and +y down. Every eye is drawn as a right eye; a left eye is mirrored at the end. The order of the layers is
the order of the light: retina, vessels, lesions, lens, sensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

EyeSide = Literal["left", "right"]
Plane = npt.NDArray[np.float32]
Points = npt.NDArray[np.complex128]
Reals = npt.NDArray[np.float64]
Range = tuple[float, float]
Shapes = tuple[Points, float]
"""Outlines of shape (outlines, corners), and the ink from 0 to 1 that fills them."""

MIN_SIDE: Final = 64
_OVERSAMPLING: Final = 2
_COARSE: Final = 64
_CORNERS: Final = 14
_STEPS: Final = 24

# Shares of red, green and blue light: taken away by what is dark, given back by what is bright.
_BLOOD: Final = (0.42, 0.74, 0.62)
_VESSEL: Final = (0.36, 0.66, 0.52)
_PIGMENT: Final = (0.42, 0.46, 0.40)
_LIPID: Final = (0.98, 0.88, 0.52)
_DRUSEN: Final = (0.92, 0.72, 0.42)
_WOOL: Final = (0.95, 0.86, 0.66)
_DISC: Final = (0.98, 0.76, 0.48)
_CUP: Final = (1.0, 0.92, 0.72)
_HAZE: Final = (0.62, 0.60, 0.62)


@dataclass(frozen=True)
class Burden:
    """How much of each lesion an eye of one grade has: closed ranges of counts, and a chance."""

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
"""One for each grade of the International Clinical Diabetic Retinopathy scale, 0 to 4."""


@dataclass(frozen=True)
class Patient:
    """What the two eyes of a patient share, the camera included; lengths in field units."""

    colour: Plane
    tortuosity: float
    choroid: float
    field_share: float
    disc_radius: float
    blur: float
    noise: float


@dataclass(frozen=True)
class Eye:
    """Where things lie in one eye, and where its round field lies in the square image."""

    side: int
    radius_px: float
    turn: complex
    disc: complex
    disc_radius: float
    fovea: complex

    def pixels(self, points: Points) -> Reals:
        """Corners of shape (..., 2) in pixels of the oversampled canvas."""
        z = (points * self.turn * self.radius_px + complex(1, 1) * self.side / 2) * _OVERSAMPLING
        return np.stack([z.real, z.imag], axis=-1)

    def grid(self) -> Points:
        """Places of the cells of a coarse raster over the image, for what varies slowly."""
        axis = ((np.arange(_COARSE) + 0.5) / _COARSE - 0.5) * self.side / self.radius_px
        return (axis[None, :] + 1j * axis[:, None]) / self.turn


def draw(seed: int, patient: int, eye_side: EyeSide, *, grade: int, side: int) -> npt.NDArray[np.uint8]:
    """Draw one eye; the same arguments always give the same pixels, and another grade changes only the lesions.

    Parameters
    ----------
    seed, patient
        Not negative; they name the patient, whose two eyes share pigment, tortuosity of vessels, and camera.
    eye_side
        The optic disc lies on the right in an image of a right eye, and on the left in one of a left eye.
    grade
        International Clinical Diabetic Retinopathy grade, 0 to 4 (Wilkinson et al., Ophthalmology 110:1677, 2003).
    side
        Height and width in pixels, at least 64.

    Returns
    -------
    numpy.ndarray
        uint8 RGB of shape (side, side, 3), black outside the round field.

    Raises
    ------
    ValueError
        When grade or side is out of range.
    """
    if grade not in range(len(BURDENS)):
        raise ValueError(f"grade must be 0 to {len(BURDENS) - 1} (got {grade})")
    if side < MIN_SIDE:
        raise ValueError(f"side must be at least {MIN_SIDE} pixels (got {side})")
    traits = _traits(stream(seed, patient))
    # A stream for each layer: a lesion more must not move a vessel or change the sensor's noise.
    anatomy, specks, lesions, camera = (stream(seed, patient, int(eye_side == "right"), layer) for layer in range(4))
    burden = BURDENS[grade]
    eye = _eye(anatomy, traits, side)
    planes = _retina(anatomy, traits, eye)
    _add_vessels(planes, anatomy, traits, eye, beading=_beading(lesions, burden))
    _add_distractors(planes, specks, eye)
    _add_lesions(planes, lesions, eye, burden)
    image = _photograph(planes, camera, traits, eye)
    return image if eye_side == "right" else np.ascontiguousarray(image[:, ::-1])


def stream(seed: int, *key: int) -> Generator:
    """Random numbers of each key's own, whoever asks and in whatever order."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _traits(rng: Generator) -> Patient:
    fair, warmth = rng.uniform(0, 1), np.clip(rng.normal(0, 0.06), -0.07, 0.07)
    colour = np.array([0.60 + 0.20 * fair, 0.27 + 0.17 * fair - warmth, 0.12 + 0.14 * fair - warmth])
    return Patient(
        colour=(colour * rng.uniform(0.9, 1.1)).astype(np.float32),
        tortuosity=rng.uniform(0.15, 0.5),
        choroid=rng.uniform(0.02, 0.12),
        field_share=rng.uniform(0.45, 0.495),
        disc_radius=rng.uniform(0.115, 0.145),
        blur=rng.uniform(0.0015, 0.0065),
        noise=rng.uniform(0.008, 0.030),
    )


def _eye(rng: Generator, traits: Patient, side: int) -> Eye:
    disc = complex(rng.normal(0.6, 0.04), rng.normal(-0.03, 0.04))
    fovea = disc + complex(-rng.uniform(0.60, 0.70), rng.uniform(0.03, 0.10))
    turn = complex(np.exp(1j * rng.normal(0, 0.08)))
    return Eye(side, traits.field_share * side, turn, disc, traits.disc_radius, fovea)


def _mask(eye: Eye, shapes: Sequence[Shapes], *, blur: float = 0.0) -> Plane:
    """Ink of shape (side, side) from 0 to 1, where later shapes cover earlier ones."""
    if not any(outlines.size for outlines, _ in shapes):
        return np.zeros((eye.side, eye.side), dtype=np.float32)
    canvas = Image.new("L", (eye.side * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for outlines, ink in shapes:
        for corners in eye.pixels(outlines):
            pen.polygon(corners.ravel().tolist(), fill=round(255 * ink))
    if not blur:
        return _shares(canvas.reduce(_OVERSAMPLING))
    # What is blurred anyway is blurred at half the size, in a quarter of the time.
    small = _blurred(canvas.reduce(2 * _OVERSAMPLING), blur * eye.radius_px / 2)
    return _shares(small.resize((eye.side,) * 2, Image.Resampling.BILINEAR))


def _blurred(image: Image.Image, sigma_px: float) -> Image.Image:
    """Blurred by the box of the given standard deviation: a third of the time of a Gaussian, and a lens's own shape."""
    return image.filter(ImageFilter.BoxBlur(((12 * sigma_px**2 + 1) ** 0.5 - 1) / 2))


def _shares(image: Image.Image) -> Plane:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _absorb(planes: Plane, mask: Plane, strength: tuple[float, float, float]) -> None:
    for channel, share in enumerate(strength):
        planes[channel] *= 1 - np.float32(share) * mask


def _cover(planes: Plane, mask: Plane, colour: tuple[float, float, float]) -> None:
    for channel, value in enumerate(colour):
        planes[channel] += (np.float32(value) - planes[channel]) * mask


def _enlarge(coarse: Reals, side: int) -> Plane:
    small = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def _hill(grid: Points, centre: complex, width: float) -> Reals:
    return np.exp(-(np.abs(grid - centre) ** 2) / (2 * width**2))


def _blobs(rng: Generator, centres: Points, radii: Range, ragged: float, stretch: Points | None = None) -> Points:
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


def _retina(rng: Generator, traits: Patient, eye: Eye) -> Plane:
    grid = eye.grid()
    texture = sum(_enlarge(0.6 * traits.choroid * rng.standard_normal((n, n)), eye.side) for n in (24, 64))
    macula = 0.30 * _hill(grid, eye.fovea, 0.16) + 0.22 * _hill(grid, eye.fovea, 0.05)
    shade = _enlarge(1 - macula + 0.2 * _hill(grid, eye.disc, 0.3), eye.side) + texture
    planes: Plane = traits.colour[:, None, None] * shade
    # Red comes from deep in the choroid and shows less of what lies above it.
    planes[0] += (traits.colour[0] - planes[0]) * 0.5
    _add_disc(planes, rng, eye)
    return planes


def _add_disc(planes: Plane, rng: Generator, eye: Eye) -> None:
    cup = eye.disc + 0.1 * eye.disc_radius * complex(rng.normal(), rng.normal())
    cup_radius = eye.disc_radius * rng.uniform(0.3, 0.6)
    for centre, radius, colour, ink in ((eye.disc, eye.disc_radius, _DISC, 0.9), (cup, cup_radius, _CUP, 0.8)):
        upright = np.array([1j * rng.uniform(1.0, 1.15)])
        outline = _blobs(rng, np.array([centre]), (radius, radius), 0.04, upright)
        _cover(planes, _mask(eye, [(outline, ink)], blur=0.012), colour)


def _grow(rng: Generator, starts: Points, headings: Reals, lengths: Reals, bends: Reals, wobble: float) -> Points:
    """Curves of shape (starts, steps) that turn by ``bends`` radians, most of it early."""
    t = np.linspace(0, 1, _STEPS)
    waves = rng.uniform(1.0, 3.5, starts.size)[:, None] * t + rng.uniform(0, 1, starts.size)[:, None]
    angles = headings[:, None] + bends[:, None] * np.sqrt(t) + wobble * np.sin(2 * np.pi * waves)
    steps = np.exp(1j * angles) * lengths[:, None] / _STEPS
    curves: Points = starts[:, None] + np.cumsum(steps, axis=1) - steps[:, :1]
    return curves


def _trunks(rng: Generator, eye: Eye, shift: float, wobble: float) -> Points:
    """The four great vessels: two temporal arcades around the macula, and two nasal ones."""
    up_down = np.array([-1.0, 1.0, -1.0, 1.0])
    headings = up_down * (np.array([1.95, 1.95, 0.95, 0.95]) + rng.normal(shift, 0.08, 4))
    bends = up_down * (np.array([1.35, 1.35, -0.2, -0.2]) + rng.normal(0, 0.12, 4))
    starts = _heap(rng, eye.disc, 4, spread=0.3 * eye.disc_radius)
    return _grow(rng, starts, headings, np.array([1.75, 1.75, 0.8, 0.8]), bends, wobble)


def _branches(rng: Generator, parents: Points, num: int, lengths: Range, wobble: float) -> Points:
    """``num`` curves off each parent, to both sides in turn."""
    at = np.linspace(3, _STEPS - 5, num).astype(int) + rng.integers(0, 4, (len(parents), num))
    rows = np.arange(len(parents))[:, None]
    starts = parents[rows, at].ravel()
    along = np.angle(parents[rows, at + 1] - parents[rows, at]).ravel()
    turns = np.where(np.arange(starts.size) % 2, 1.0, -1.0) * rng.uniform(0.6, 1.1, starts.size)
    bends = -turns * rng.uniform(0, 0.8, starts.size)
    return _grow(rng, starts, along + turns, rng.uniform(*lengths, starts.size), bends, wobble)


def _ribbons(curves: Points, width: float, *, beading: float = 0.0) -> Points:
    """Outlines of vessels that taper to two fifths; beading swells them like a string of sausages."""
    along = np.gradient(curves, axis=1)
    t = np.linspace(0, 1, curves.shape[1])
    half = width / 2 * (1 - 0.6 * t) * (1 + beading * np.sin(44 * t))
    across = 1j * along / np.abs(along) * half
    return np.concatenate([curves + across, (curves - across)[:, ::-1]], axis=1)


def _add_vessels(planes: Plane, rng: Generator, traits: Patient, eye: Eye, *, beading: float) -> None:
    arteries = _tree(rng, eye, -0.16, traits.tortuosity)
    veins = _tree(rng, eye, 0.08, traits.tortuosity)
    shapes = [(_ribbons(curves, 0.021 * size), 0.65 * size**0.5) for curves, size in arteries]
    # The streak of light along an artery's wall.
    shapes += [(_ribbons(arteries[-1][0], 0.007), 0.35)]
    shapes += [(_ribbons(curves, 0.029 * size, beading=beading), size**0.5) for curves, size in veins]
    no_vessels = _enlarge(1 - _hill(eye.grid(), eye.fovea, 0.09), eye.side)
    _absorb(planes, _mask(eye, shapes) * no_vessels, _VESSEL)


def _tree(rng: Generator, eye: Eye, shift: float, wobble: float) -> list[tuple[Points, float]]:
    """Twigs, branches and trunks, each with its width as a share of the trunks' width."""
    trunks = _trunks(rng, eye, shift, 0.5 * wobble)
    branches = _branches(rng, trunks, 6, (0.3, 0.7), wobble)
    twigs = _branches(rng, branches, 4, (0.1, 0.3), wobble)
    return [(twigs[:, ::2], 0.32), (branches, 0.55), (trunks, 1.0)]


def _add_distractors(planes: Plane, rng: Generator, eye: Eye) -> None:
    """What must not fool a grader, in eyes of every grade: spots of pigment, drusen, reflexes."""
    spots = _scatter(rng, eye, _few(rng, 14))
    _absorb(planes, _mask(eye, [(_blobs(rng, spots, (0.008, 0.03), 0.3), 0.8)], blur=0.004), _PIGMENT)
    kinks = _scatter(rng, eye, _few(rng, 12))
    _absorb(planes, _mask(eye, [(_blobs(rng, kinks, (0.009, 0.018), 0.3), 0.7)]), _VESSEL)
    drusen = _heap(rng, eye.fovea, _few(rng, 50), spread=rng.uniform(0.1, 0.4))
    _cover(planes, _mask(eye, [(_blobs(rng, drusen, (0.005, 0.015), 0.2), rng.uniform(0.4, 0.9))]), _DRUSEN)
    if rng.random() < 0.5:
        arcades = _trunks(rng, eye, 0.1, 0.1)[:2]
        _cover(planes, _mask(eye, [(_ribbons(arcades, 0.05), rng.uniform(0.1, 0.3))], blur=0.02), _HAZE)


def _few(rng: Generator, most: int) -> int:
    """None in half of the eyes, ``most`` in hardly any."""
    return int(most * max(0.0, rng.uniform(-1, 1)) ** 2 + 0.5)


def _count(rng: Generator, closed: tuple[int, int]) -> int:
    return int(rng.integers(*closed, endpoint=True))


def _beading(rng: Generator, burden: Burden) -> float:
    return rng.uniform(0.25, 0.5) if rng.random() < burden.beading_chance else 0.0


def _scatter(rng: Generator, eye: Eye, num: int, *, quadrants: int = 4) -> Points:
    """``num`` places in the field and off the disc, spread evenly over so many quadrants."""
    tries = 3 * num + 12
    quarter = np.resize(rng.permutation(4)[:quadrants], tries) + rng.uniform(0, 1, tries)
    places = np.sqrt(rng.uniform(0.03, 0.75, tries)) * np.exp(0.5j * np.pi * quarter)
    off_disc: Points = places[np.abs(places - eye.disc) > 1.4 * eye.disc_radius]
    return off_disc[:num]


def _heap(rng: Generator, centre: complex, num: int, *, spread: float) -> Points:
    east, south = rng.normal(0, spread / 2, (2, num))
    places: Points = centre + east + 1j * south
    return places


def _add_lesions(planes: Plane, rng: Generator, eye: Eye, burden: Burden) -> None:
    wool = _scatter(rng, eye, _count(rng, burden.cotton_wool))
    _cover(planes, _mask(eye, [(_blobs(rng, wool, (0.03, 0.06), 0.4), 0.75)], blur=0.014), _WOOL)
    exudates = [(_exudates(rng, eye), 0.9) for _ in range(_count(rng, burden.exudates))]
    _cover(planes, _mask(eye, exudates), _LIPID)
    dots = _scatter(rng, eye, _count(rng, burden.microaneurysms))
    blood = [
        (_blobs(rng, dots, (0.010, 0.015), 0.1), rng.uniform(0.65, 0.9)),
        (_haemorrhages(rng, eye, burden), rng.uniform(0.75, 1)),
    ]
    if burden.proliferates:
        blood += _proliferation(rng, eye)
    _absorb(planes, _mask(eye, blood), _BLOOD)


def _haemorrhages(rng: Generator, eye: Eye, burden: Burden) -> Points:
    """Dots, blots, and flames that follow the nerve fibres away from the disc."""
    quadrants = _count(rng, burden.quadrants)
    places = _scatter(rng, eye, _count(rng, burden.haemorrhages), quadrants=quadrants)
    away = (places - eye.disc) / np.abs(places - eye.disc)
    lengths = np.where(rng.random(places.size) < 0.25, 2.5, 1.15)
    return _blobs(rng, places, (0.013, 0.036), 0.3, lengths * away)


def _exudates(rng: Generator, eye: Eye) -> Points:
    """Yellow specks, in a heap or in a ring."""
    centre = complex(eye.fovea + rng.uniform(0.1, 0.45) * np.exp(2j * np.pi * rng.random()))
    num, spread = int(rng.integers(7, 26)), rng.uniform(0.05, 0.13)
    ring = centre + spread * np.exp(2j * np.pi * rng.random(num)) * rng.uniform(0.85, 1.15, num)
    heap = _heap(rng, centre, num, spread=spread)
    return _blobs(rng, ring if rng.random() < 0.4 else heap, (0.006, 0.017), 0.3)


def _proliferation(rng: Generator, eye: Eye) -> list[Shapes]:
    """New vessels at the disc or elsewhere, or blood before the retina; at least one of them."""
    at_disc, elsewhere, before = rng.random(3) < (0.5, 0.5, 0.35)
    shapes = [_frond(rng, eye.disc, 0.25)] if at_disc else []
    if elsewhere or not (at_disc or before):
        shapes += [_frond(rng, complex(place), 0.16) for place in _scatter(rng, eye, _count(rng, (1, 3)))]
    return [*shapes, _boat(rng, eye)] if before else shapes


def _frond(rng: Generator, root: complex, reach: float) -> Shapes:
    num = _count(rng, (10, 22))
    starts = _heap(rng, root, num, spread=0.4 * reach)
    headings, bends = rng.uniform(0, 2 * np.pi, num), rng.normal(0, 2.5, num)
    return _ribbons(_grow(rng, starts, headings, reach * rng.uniform(0.5, 1.2, num), bends, 0.9), 0.008), rng.uniform(
        0.45, 0.7
    )


def _boat(rng: Generator, eye: Eye) -> Shapes:
    """Blood before the retina that has settled, flat on top and round below."""
    angles = np.linspace(0, np.pi, _STEPS)
    hull = rng.uniform(0.12, 0.26) * (np.cos(angles) + 1j * rng.uniform(0.5, 0.8) * np.sin(angles))
    return _scatter(rng, eye, 1)[:, None] + hull, 1.0


def _photograph(planes: Plane, rng: Generator, traits: Patient, eye: Eye) -> npt.NDArray[np.uint8]:
    """Uneven light, haze at the rim, defocus, grain and the round stop; uint8 of shape (side, side, 3)."""
    grid = eye.grid()
    tilt = complex(*rng.normal(0, 0.10, 2))
    light = rng.uniform(0.85, 1.1) * (1 - rng.uniform(0.1, 0.35) * np.abs(grid) ** 2 + (grid * tilt).real)
    planes *= _enlarge(light, eye.side)
    if rng.random() < 0.3:
        rim = complex(np.exp(2j * np.pi * rng.random()))
        _cover(planes, _enlarge(rng.uniform(0.2, 0.6) * _hill(grid, rim, 0.25), eye.side), _HAZE)
    blur_px = traits.blur * rng.uniform(0.8, 1.3) * eye.radius_px
    grain = np.float32(255 * traits.noise) * rng.standard_normal((eye.side, eye.side), dtype=np.float32)
    stop = _mask(eye, [(np.exp(2j * np.pi * np.arange(180) / 180)[None, :], 1.0)])
    return np.stack([_bytes((_defocus(plane, blur_px) + grain) * stop) for plane in planes], axis=-1)


def _defocus(plane: Plane, blur_px: float) -> Plane:
    return np.asarray(_blurred(Image.fromarray(_bytes(255 * plane)), blur_px), dtype=np.float32)


def _bytes(values: Plane) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[np.uint8] = np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)
    return rounded
