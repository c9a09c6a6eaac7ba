"""The shapes of synthetic garments by type, in the garment units of `tlbatch.data.synthetic.garments.seams`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from tlbatch.data.synthetic.garments.seams import (
    Fit,
    Silhouette,
    Sleeves,
    armholes,
    both,
    box,
    cuffs,
    inside,
    line,
    neck,
    sleeves_of,
    upper,
    whole,
)
from tlbatch.data.synthetic.paint import Points, ribbons

_LENGTHS: Final[Mapping[tuple[str, str], float]] = {
    ("dress", "short"): 1.45,
    ("dress", "midi"): 2.0,
    ("dress", "long"): 2.7,
    ("skirt", "short"): 0.75,
    ("skirt", "midi"): 1.25,
    ("skirt", "long"): 1.95,
    ("trousers", "short"): 0.85,
    ("trousers", "long"): 2.1,
    ("coat", "midi"): 1.75,
    ("coat", "long"): 2.45,
    ("shirt", ""): 1.3,
    ("sweater", ""): 1.25,
    ("jacket", ""): 1.25,
    ("vest", ""): 1.15,
}
_BELOW_WAIST: Final = ("skirt", "trousers")


def reach(garment_type: str, length: str) -> tuple[float, float]:
    """Return the height and the half width that the photograph must fit, for any sleeves."""
    height = _LENGTHS[garment_type, length]
    return height, 0.75 if garment_type in _BELOW_WAIST else 1.0


def silhouette(garment_type: str, *, sleeve: str, length: str, fit: Fit) -> Silhouette:
    """Return the shape of a garment of the given type, sleeves and length."""
    size = _LENGTHS[garment_type, length]
    if garment_type in _BELOW_WAIST:
        return _SHAPES[garment_type](fit, size, ())
    return _SHAPES[garment_type](fit, size, sleeves_of(fit, sleeve, wide=garment_type in ("coat", "sweater")))


def _dress(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    waist, hem = 0.3 * fit.waist, 0.42 + 0.12 * length * (0.4 + fit.flare)
    right = [
        *neck(fit, fit.dip + 0.05, pointed=fit.pointed),
        *upper(fit, bare=not sleeves),
        complex(waist + 0.02, 0.78),
        complex(waist + 0.02, 0.86),
        complex(0.6 * waist + 0.4 * hem, 1.1),
        *[complex(hem, length)] * 2,
        1j * (length + 0.04),
    ]
    pleats = [line(complex(x * waist, 0.9), complex(x * hem * 0.9, length - 0.25)) for x in (-0.55, 0.05, 0.6)]
    waistline = line(complex(-waist, 0.82), complex(0, 0.84), complex(waist, 0.82))
    return Silhouette(inside(fit), sleeves, (whole(right),), seams=(*armholes(sleeves, fit), waistline, *pleats))


def _straight(fit: Fit, length: float, *, bare: bool, dip: float, pointed: bool, hem: float) -> Points:
    waist = 0.39 * fit.waist
    right = [
        *neck(fit, dip, pointed=pointed),
        *upper(fit, bare=bare),
        complex(waist, 0.86),
        *[complex(hem, length)] * 2,
        1j * length,
    ]
    return whole(right)


def _shirt(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    body = _straight(fit, length, bare=not sleeves, dip=0.1, pointed=True, hem=0.41)
    tails = whole([1j * (length - 0.1), complex(0.36, length - 0.1), complex(0.3, length + 0.07), 1j * (length + 0.1)])
    collar = both([complex(0.9 * fit.neck, -0.07), complex(fit.neck + 0.06, 0.03), complex(0.17, 0.22), 0.11j])
    placket = (line(0.05 + 0.13j, complex(0.05, length)), line(-0.04 + 0.13j, complex(-0.04, length)))
    pocket = box(complex(0.14, 0.48), complex(0.31, 0.68))
    edges = tuple(line(*flap, flap[0]) for flap in (*collar, pocket, *cuffs(sleeves, 0.1)))
    return Silhouette(
        inside(fit),
        sleeves,
        (body, tails),
        flaps=(*collar, pocket),
        seams=(*armholes(sleeves, fit), *placket, *edges),
        buttons=tuple(complex(0.005, y) for y in np.arange(0.25, length, 0.21)),
    )


def _sweater(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    body = _straight(fit, length, bare=False, dip=0.15, pointed=False, hem=0.45)
    hem = whole([1j * (length - 0.05), *[complex(0.43, length - 0.05)] * 2, *[complex(0.4, length + 0.1)] * 2,
                  1j * (length + 0.1)])  # fmt: skip
    arc = np.exp(1j * np.linspace(-0.25, np.pi + 0.25, 14))
    collar = ribbons((1.05 * fit.neck * arc.real + 0.14j * arc.imag + 0.02j)[None, :], 0.1, taper=0.0)[0]
    return Silhouette(
        inside(fit), sleeves, (body,), ribs=(hem, collar, *cuffs(sleeves, 0.12)),
        seams=armholes(sleeves, fit),
    )  # fmt: skip


def _open(fit: Fit, length: float, sleeves: Sleeves, *, depth: float, lapel: float) -> Silhouette:
    """Return a body that is open down to a depth, with lapels along the opening, and closed below."""
    hem = 0.43 + (0.1 * length - 0.1) * fit.flare
    body = _straight(fit, length, bare=not sleeves, dip=0.02, pointed=True, hem=hem)
    opening = np.array([complex(-fit.neck, -0.02), complex(fit.neck, -0.02), 1j * depth])
    lapels = both([complex(fit.neck, -0.05), complex(fit.neck + 0.03, -0.03), complex(fit.neck + lapel, 0.3),
                    complex(fit.neck + lapel * 0.55, 0.34), complex(0.005, depth)])  # fmt: skip
    closing = line(1j * depth, 1j * length)
    pockets = tuple(box(complex(sign * 0.13, 0.86), complex(sign * 0.34, 0.93)) for sign in (-1, 1))
    edges = tuple(line(*flap, flap[0]) for flap in (*lapels, *pockets))
    return Silhouette(
        (),
        sleeves,
        (body,),
        (opening,),
        (*lapels, *pockets),
        seams=(*armholes(sleeves, fit), closing, *edges),
    )


def _jacket(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    shape = _open(fit, length, sleeves, depth=0.72, lapel=0.13)
    gap = np.array([complex(0, 0.95), complex(0.12, length + 0.06), complex(-0.12, length + 0.06)])
    return replace(shape, front=(*shape.front, gap), buttons=(0.05 + 0.76j, 0.05 + 0.92j))


def _coat(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    shape = _open(fit, length, sleeves, depth=0.5, lapel=0.19)
    belt = box(complex(-0.43, 0.8), complex(0.43, 0.89))
    rows = tuple(complex(x, y) for x in (-0.11, 0.11) for y in (0.6, 1.02, 1.22))
    return replace(shape, flaps=(*shape.flaps[:2], belt), seams=(*shape.seams, line(*belt, belt[0])), buttons=rows)


def _vest(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    body = _straight(fit, length - 0.12, bare=True, dip=0.62, pointed=True, hem=0.39)
    points = both([complex(-0.01, length - 0.16), complex(0.39, length - 0.16), complex(0.17, length + 0.06)])
    pockets = tuple(box(complex(sign * 0.13, 0.78), complex(sign * 0.3, 0.83)) for sign in (-1, 1))
    edges = tuple(line(*flap, flap[0]) for flap in pockets)
    buttons = tuple(1j * y for y in np.arange(0.68, length - 0.1, 0.12))
    closing = line(0.62j, 1j * (length - 0.1))
    return Silhouette(inside(fit), sleeves, (body, *points), flaps=pockets, seams=(closing, *edges), buttons=buttons)


def _skirt(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    hem = 0.42 + 0.24 * length * (0.35 + fit.flare)
    right = [0j, *[complex(0.29, 0)] * 2, complex(0.33, 0.14), *[complex(min(hem, 0.85), length)] * 2,
             1j * (length + 0.05)]  # fmt: skip
    band = box(complex(-0.3, -0.03), complex(0.3, 0.08))
    pleats = [
        line(complex(x * 0.28, 0.12), complex(x * min(hem, 0.85) * 0.95, length)) for x in (-0.7, -0.25, 0.2, 0.65)
    ]
    return Silhouette((), sleeves, (whole(right),), ribs=(band,), seams=tuple(pleats))


def _trousers(fit: Fit, length: float, sleeves: Sleeves) -> Silhouette:
    ankle = 0.13 + 0.1 * fit.flare
    knee = 0.24 + 0.1 * fit.arms[0]
    right = [0j, *[complex(0.32, 0)] * 2, complex(0.42, 0.35), complex(knee + 0.14, 0.6 * length + 0.2),
             *[complex(knee + ankle, length)] * 2, *[complex(knee - ankle, length)] * 2,
             *[complex(0.012, 0.6)] * 2, 0.58j]  # fmt: skip
    band = box(complex(-0.33, -0.03), complex(0.33, 0.09))
    pockets = both([complex(0.2, 0.1), complex(0.25, 0.2), complex(0.37, 0.28)])
    seams = (
        line(0.1j, 0.35j, 0.56j),
        line(0.1j, 0.07 + 0.15j, 0.06 + 0.3j, 0.36j),
        *(line(*one) for one in pockets),
    )
    return Silhouette((), sleeves, (whole(right),), ribs=(band,), seams=seams, buttons=(0.03j,))


_SHAPES: Final[Mapping[str, Callable[[Fit, float, Sleeves], Silhouette]]] = {
    "dress": _dress,
    "shirt": _shirt,
    "sweater": _sweater,
    "jacket": _jacket,
    "coat": _coat,
    "vest": _vest,
    "skirt": _skirt,
    "trousers": _trousers,
}
