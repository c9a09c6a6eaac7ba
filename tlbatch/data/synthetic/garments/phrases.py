"""The words that describe a synthetic garment, and the grammar that puts them in order.

The type ends a phrase. Before it:

- ``PATTERN COLOUR``, as in "floral red"; striped and checked cloths have the colour first, as in "red striped";
- shirts, sweaters, jackets, coats and vests have the sleeves before the type: "dotted blue short-sleeved shirt";
- dresses have the sleeves first, and dresses and skirts have the length before the type: "sleeveless floral red short
  dress";
- coats and trousers have the length first: "long black coat".

Default values are omitted: a plain pattern, and the first value of each type in `SLEEVES_OF` and `LENGTHS_OF`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "type": ("dress", "shirt", "sweater", "jacket", "coat", "vest", "skirt", "trousers"),
    "colour": ("black", "white", "red", "pink", "yellow", "green", "blue", "brown"),
    "pattern": ("plain", "striped", "dotted", "checked", "floral"),
    "sleeve": ("sleeveless", "short-sleeved", "long-sleeved"),
    "length": ("short", "midi", "long"),
}
"""The values of each attribute; all occur in phrases, except plain, which is always omitted."""
SLEEVES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "dress": ("sleeveless", "short-sleeved", "long-sleeved"),
    "shirt": ("long-sleeved", "short-sleeved", "sleeveless"),
    "sweater": ("long-sleeved", "short-sleeved"),
    "jacket": ("long-sleeved", "short-sleeved"),
    "coat": ("long-sleeved",),
    "vest": ("sleeveless",),
}
"""Possible sleeves of each type, the omitted default first; other types have no sleeve value."""
LENGTHS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "dress": ("midi", "short", "long"),
    "skirt": ("short", "midi", "long"),
    "trousers": ("long", "short"),
    "coat": ("midi", "long"),
}
"""Possible lengths of each type, the omitted default first; other types have no length value."""
_COLOUR_FIRST: Final = ("striped", "checked")
_LENGTH_FIRST: Final = ("coat", "trousers")
_SLEEVE_FIRST: Final = ("dress",)


@dataclass(frozen=True)
class Garment:
    """The attributes of a garment, one value of `ATTRIBUTES` each; empty if the type does not have the attribute."""

    type: str
    colour: str
    pattern: str
    sleeve: str
    length: str


def phrase(garment: Garment) -> str:
    """Describe a garment in a few words, by the grammar of this module."""
    cloth = ["" if garment.pattern == "plain" else garment.pattern, garment.colour]
    if garment.pattern in _COLOUR_FIRST:
        cloth.reverse()
    sleeve = _spoken(garment.sleeve, SLEEVES_OF.get(garment.type, ()))
    length = _spoken(garment.length, LENGTHS_OF.get(garment.type, ()))
    before = [sleeve if garment.type in _SLEEVE_FIRST else "", length if garment.type in _LENGTH_FIRST else ""]
    after = ["" if sleeve in before else sleeve, "" if length in before else length]
    return " ".join(word for word in (*before, *cloth, *after, garment.type) if word)


def _spoken(word: str, possible: tuple[str, ...]) -> str:
    return "" if word in possible[:1] else word
