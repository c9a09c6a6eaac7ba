"""Plan a set of synthetic garments, and the photographs of each.

Some words are rarer than others, and some are correlated, as in shops: trousers are mostly plain, dresses often floral.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.random import Generator

from tlbatch.config.data import Synthetic
from tlbatch.core.files import to_csv
from tlbatch.data.synthetic.garments.draw import draw
from tlbatch.data.synthetic.garments.phrases import ATTRIBUTES, LENGTHS_OF, SLEEVES_OF, Garment, phrase
from tlbatch.data.synthetic.paint import stream
from tlbatch.data.synthetic.plan import Plan

_MOST_PHOTOGRAPHS: Final = 3
_TYPES: Final = (0.20, 0.18, 0.13, 0.11, 0.09, 0.07, 0.11, 0.11)
_COLOURS: Final = (0.19, 0.13, 0.12, 0.09, 0.08, 0.11, 0.18, 0.10)
_PATTERNS: Final = (0.34, 0.21, 0.14, 0.15, 0.16)
_LIKED: Final[Mapping[str, tuple[str, ...]]] = {
    "dress": ("floral", "dotted", "red", "pink"),
    "shirt": ("striped", "checked", "white", "blue"),
    "sweater": ("striped", "green"),
    "jacket": ("plain", "brown"),
    "coat": ("plain", "checked", "black"),
    "vest": ("checked", "plain"),
    "skirt": ("floral", "checked", "yellow"),
    "trousers": ("plain", "blue", "black"),
}
_LIKED_TIMES: Final = 2.2
_SHARES: Final = {1: (1.0,), 2: (0.65, 0.35), 3: (0.42, 0.33, 0.25)}
"""Frequencies of the sleeves or lengths that a type may have, by their number, in order."""
_README: Final = """\
Synthetic photographs of garments
=================================

All of this is synthetic. No image shows a real product, and results on it say nothing about real photographs. It was
drawn by `python -m tlbatch.data.synthetic` to try out and to test software.

{num_images} images of {side} x {side} pixels, of {products} garments; seed {seed}.

garments.csv  image, phrase, and the attributes of the garment: type, colour, pattern, sleeve, length; the last two are
              empty for types that do not have them
images/       PRODUCT_NUMBER.jpeg; the JPEG comment of each states that it is synthetic

A garment has one to {most} photographs that share its cut and cloth: split by product. The word order of a phrase
depends on the garment, and default values are omitted: see
tlbatch/data/synthetic/garments/phrases.py.
"""


@dataclass(frozen=True)
class Photograph:
    """One image of the data set: the product, the number of the photograph, and the attributes of the product."""

    product: int
    number: int
    garment: Garment

    @property
    def name(self) -> str:
        """Name of the image in the table, and stem of its file name."""
        return f"{self.product}_{self.number}"


def plan_garments(settings: Synthetic) -> Plan:
    """Plan garments.csv (image, phrase, type, colour, pattern, sleeve, length) and images/<product>_<n>.jpeg."""
    seed, side = settings.seed, settings.side
    photos = photographs(settings.num_images, seed=seed)
    readme = _README.format(products=photos[-1].product, most=_MOST_PHOTOGRAPHS, **settings.model_dump())
    rows = ((each.name, phrase(each.garment), *(getattr(each.garment, name) for name in ATTRIBUTES)) for each in photos)
    files = {"garments.csv": to_csv(("image", "phrase", *ATTRIBUTES), rows), "README.txt": readme}
    pictures = {
        one.name: partial(draw, seed, one.product, one.number, garment=one.garment, side=side) for one in photos
    }
    return Plan(pictures, "images", files)


def photographs(num_images: int, *, seed: int) -> list[Photograph]:
    """List one to three photographs of each product, by product number, ``num_images`` in total.

    A longer list begins with any shorter one of the same seed.
    """
    found: list[Photograph] = []
    # Products are numbered from 1; stream 0 is for this list.
    rng = stream(seed, 0)
    product = 0
    while len(found) < num_images:
        product += 1
        garment, times = _garment(rng), rng.integers(1, _MOST_PHOTOGRAPHS, endpoint=True)
        found += [Photograph(product, number, garment) for number in range(1, times + 1)]
    return found[:num_images]


def _garment(rng: Generator) -> Garment:
    garment_type = _drawn(rng, ATTRIBUTES["type"], _TYPES)
    liked = _LIKED[garment_type]
    return Garment(
        garment_type,
        _drawn(rng, ATTRIBUTES["colour"], _COLOURS, liked),
        _drawn(rng, ATTRIBUTES["pattern"], _PATTERNS, liked),
        _kind(rng, SLEEVES_OF.get(garment_type, ("",))),
        _kind(rng, LENGTHS_OF.get(garment_type, ("",))),
    )


def _kind(rng: Generator, words: tuple[str, ...]) -> str:
    return _drawn(rng, words, _SHARES[len(words)])


def _drawn(rng: Generator, words: tuple[str, ...], shares: tuple[float, ...], liked: tuple[str, ...] = ()) -> str:
    weights = np.array(shares) * np.where(np.isin(words, liked), _LIKED_TIMES, 1.0)
    return words[rng.choice(len(words), p=weights / weights.sum())]
