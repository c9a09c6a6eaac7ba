"""One synthetic fundus photograph: the eye, its lesions, and the camera.

Layers are in the order of the light path: retina, vessels, lesions, lens, sensor. The geometry is that of
`tlbatch.data.synthetic.paint`: every eye is drawn as a right eye, and a left eye is mirrored at the end.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from tlbatch.data.synthetic import paint
from tlbatch.data.synthetic.lesions import BURDENS, add_lesions, vein_beading
from tlbatch.data.synthetic.paint import Eye, Plane, Points, Range

EyeSide = Literal["left", "right"]
_VESSEL: Final = (0.36, 0.66, 0.52)
_PIGMENT: Final = (0.42, 0.46, 0.40)
_DRUSEN: Final = (0.92, 0.72, 0.42)
_DISC: Final = (0.98, 0.76, 0.48)
_CUP: Final = (1.0, 0.92, 0.72)
_HAZE: Final = (0.62, 0.60, 0.62)


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


def draw(seed: int, patient: int, eye_side: EyeSide, *, grade: int, side: int) -> npt.NDArray[np.uint8]:
    """Draw one eye; the same arguments always give the same pixels, and another grade changes only the lesions.

    Parameters
    ----------
    seed, patient
        They identify the patient, whose two eyes share pigment, vessel tortuosity and camera.
    eye_side
        The optic disc lies on the right in an image of a right eye, and on the left in one of a left eye.
    grade
        International Clinical Diabetic Retinopathy grade, 0 to 4 (Wilkinson et al., Ophthalmology 110:1677, 2003).
    side
        Height and width in pixels.

    Returns
    -------
    numpy.ndarray
        uint8 RGB of shape (side, side, 3), black outside the round field.
    """
    traits = _traits(paint.stream(seed, patient))
    # One stream per layer: another lesion must not move a vessel or change the sensor noise.
    anatomy, specks, lesions, camera = (
        paint.stream(seed, patient, int(eye_side == "right"), layer) for layer in range(4)
    )
    burden = BURDENS[grade]
    eye = _eye(anatomy, traits, side)
    planes = _retina(anatomy, traits, eye)
    _add_vessels(planes, anatomy, traits, eye, beading=vein_beading(lesions, burden))
    _add_distractors(planes, specks, eye)
    add_lesions(planes, lesions, eye, burden)
    image = _photograph(planes, camera, traits, eye)
    return image if eye_side == "right" else np.ascontiguousarray(image[:, ::-1])


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


def _retina(rng: Generator, traits: Patient, eye: Eye) -> Plane:
    grid = eye.grid()
    texture = sum(paint.enlarge(0.6 * traits.choroid * rng.standard_normal((n, n)), eye.side) for n in (24, 64))
    macula = 0.30 * paint.hill(grid, eye.fovea, 0.16) + 0.22 * paint.hill(grid, eye.fovea, 0.05)
    shade = paint.enlarge(1 - macula + 0.2 * paint.hill(grid, eye.disc, 0.3), eye.side) + texture
    planes: Plane = traits.colour[:, None, None] * shade
    # Red light comes from deep in the choroid, so it shows less of the layers above.
    planes[0] += (traits.colour[0] - planes[0]) * 0.5
    _add_disc(planes, rng, eye)
    return planes


def _add_disc(planes: Plane, rng: Generator, eye: Eye) -> None:
    cup = eye.disc + 0.1 * eye.disc_radius * complex(rng.normal(), rng.normal())
    cup_radius = eye.disc_radius * rng.uniform(0.3, 0.6)
    for centre, radius, colour, ink in ((eye.disc, eye.disc_radius, _DISC, 0.9), (cup, cup_radius, _CUP, 0.8)):
        upright = np.array([1j * rng.uniform(1.0, 1.15)])
        outline = paint.blobs(rng, np.array([centre]), (radius, radius), 0.04, upright)
        paint.cover(planes, paint.mask_of(eye, [(outline, ink)], blur=0.012), colour)


def _add_vessels(planes: Plane, rng: Generator, traits: Patient, eye: Eye, *, beading: float) -> None:
    arteries = _tree(rng, eye, -0.16, traits.tortuosity)
    veins = _tree(rng, eye, 0.08, traits.tortuosity)
    shapes = [(paint.ribbons(curves, 0.021 * size), 0.65 * size**0.5) for curves, size in arteries]
    # The light reflex along the wall of an artery.
    shapes += [(paint.ribbons(arteries[-1][0], 0.007), 0.35)]
    shapes += [(paint.ribbons(curves, 0.029 * size, beading=beading), size**0.5) for curves, size in veins]
    no_vessels = paint.enlarge(1 - paint.hill(eye.grid(), eye.fovea, 0.09), eye.side)
    paint.absorb(planes, paint.mask_of(eye, shapes) * no_vessels, _VESSEL)


def _tree(rng: Generator, eye: Eye, shift: float, wobble: float) -> list[tuple[Points, float]]:
    """Return twigs, branches and trunks, each with its width relative to the trunks."""
    trunks = _trunks(rng, eye, shift, 0.5 * wobble)
    branches = _branches(rng, trunks, 6, (0.3, 0.7), wobble)
    twigs = _branches(rng, branches, 4, (0.1, 0.3), wobble)
    return [(twigs[:, ::2], 0.32), (branches, 0.55), (trunks, 1.0)]


def _trunks(rng: Generator, eye: Eye, shift: float, wobble: float) -> Points:
    """Draw the four main vessels: two temporal arcades around the macula, and two nasal ones."""
    up_down = np.array([-1.0, 1.0, -1.0, 1.0])
    headings = up_down * (np.array([1.95, 1.95, 0.95, 0.95]) + rng.normal(shift, 0.08, 4))
    bends = up_down * (np.array([1.35, 1.35, -0.2, -0.2]) + rng.normal(0, 0.12, 4))
    starts = paint.heap_around(rng, eye.disc, 4, spread=0.3 * eye.disc_radius)
    return paint.grow(rng, starts, headings, np.array([1.75, 1.75, 0.8, 0.8]), bends, wobble)


def _branches(rng: Generator, parents: Points, num: int, lengths: Range, wobble: float) -> Points:
    """Grow ``num`` curves from each parent, on alternating sides."""
    at = np.linspace(3, parents.shape[1] - 5, num).astype(int) + rng.integers(0, 4, (len(parents), num))
    rows = np.arange(len(parents))[:, None]
    starts = parents[rows, at].ravel()
    along = np.angle(parents[rows, at + 1] - parents[rows, at]).ravel()
    turns = np.where(np.arange(starts.size) % 2, 1.0, -1.0) * rng.uniform(0.6, 1.1, starts.size)
    bends = -turns * rng.uniform(0, 0.8, starts.size)
    return paint.grow(rng, starts, along + turns, rng.uniform(*lengths, starts.size), bends, wobble)


def _add_distractors(planes: Plane, rng: Generator, eye: Eye) -> None:
    """Paint distractors that occur in eyes of every grade: pigment spots, drusen and reflexes."""
    spots = paint.scatter(rng, eye, _few(rng, 14))
    paint.absorb(planes, paint.mask_of(eye, [(paint.blobs(rng, spots, (0.008, 0.03), 0.3), 0.8)], blur=0.004), _PIGMENT)
    kinks = paint.scatter(rng, eye, _few(rng, 12))
    paint.absorb(planes, paint.mask_of(eye, [(paint.blobs(rng, kinks, (0.009, 0.018), 0.3), 0.7)]), _VESSEL)
    drusen = paint.heap_around(rng, eye.fovea, _few(rng, 50), spread=rng.uniform(0.1, 0.4))
    paint.cover(
        planes, paint.mask_of(eye, [(paint.blobs(rng, drusen, (0.005, 0.015), 0.2), rng.uniform(0.4, 0.9))]), _DRUSEN
    )
    if rng.random() < 0.5:
        arcades = _trunks(rng, eye, 0.1, 0.1)[:2]
        paint.cover(
            planes, paint.mask_of(eye, [(paint.ribbons(arcades, 0.05), rng.uniform(0.1, 0.3))], blur=0.02), _HAZE
        )


def _few(rng: Generator, most: int) -> int:
    """Draw a count that is 0 in half of the eyes, and rarely as many as ``most``."""
    return int(most * max(0.0, rng.uniform(-1, 1)) ** 2 + 0.5)


def _photograph(planes: Plane, rng: Generator, traits: Patient, eye: Eye) -> npt.NDArray[np.uint8]:
    """Add uneven light, haze at the rim, defocus, grain and the round stop; return uint8 (side, side, 3)."""
    grid = eye.grid()
    tilt = complex(*rng.normal(0, 0.10, 2))
    light = rng.uniform(0.85, 1.1) * (1 - rng.uniform(0.1, 0.35) * np.abs(grid) ** 2 + (grid * tilt).real)
    planes *= paint.enlarge(light, eye.side)
    if rng.random() < 0.3:
        rim = complex(np.exp(2j * np.pi * rng.random()))
        paint.cover(planes, paint.enlarge(rng.uniform(0.2, 0.6) * paint.hill(grid, rim, 0.25), eye.side), _HAZE)
    blur_px = traits.blur * rng.uniform(0.8, 1.3) * eye.radius_px
    grain = np.float32(255 * traits.noise) * rng.standard_normal((eye.side, eye.side), dtype=np.float32)
    stop = paint.mask_of(eye, [(np.exp(2j * np.pi * np.arange(180) / 180)[None, :], 1.0)])
    return paint.sensed(planes, blur_px=blur_px, grain=grain, stop=stop)
