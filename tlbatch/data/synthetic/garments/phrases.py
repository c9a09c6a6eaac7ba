"""The words that describe a synthetic garment, and the grammar that puts them in order.

The type ends a phrase. Before it:

- ``PATTERN COLOUR``, as in "floral red"; a striped or checked cloth names its colour first, as in "red striped";
- shirts, sweaters, jackets, coats and vests say the sleeves next to the type: "dotted blue short-sleeved shirt";
- dresses say the sleeves first of all, and dresses and skirts the length next to the type: "sleeveless floral red short
  dress";
- coats and trousers say the length first: "long black coat".

What goes without saying is not said: a plain pattern, and the first of each type in `SLEEVES_OF` and `LENGTHS_OF`.
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
"""The values of each attribute; all are words of phrases, but plain, which is never said."""
SLEEVES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "dress": ("sleeveless", "short-sleeved", "long-sleeved"),
    "shirt": ("long-sleeved", "short-sleeved", "sleeveless"),
    "sweater": ("long-sleeved", "short-sleeved"),
    "jacket": ("long-sleeved", "short-sleeved"),
    "coat": ("long-sleeved",),
    "vest": ("sleeveless",),
}
"""What sleeves a type may have, the unspoken ones first; other types have none to speak of."""
LENGTHS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "dress": ("midi", "short", "long"),
    "skirt": ("short", "midi", "long"),
    "trousers": ("long", "short"),
    "coat": ("midi", "long"),
}
"""What lengths a type may have, the unspoken one first; other types have none to speak of."""
_COLOUR_FIRST: Final = ("striped", "checked")
_LENGTH_FIRST: Final = ("coat", "trousers")
_SLEEVE_FIRST: Final = ("dress",)


@dataclass(frozen=True)
class Garment:
    """What is true of a garment, one word of `ATTRIBUTES` each; empty: the type has no such thing."""

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


def check_garment(garment: Garment) -> None:
    """Refuse what there is no such garment of.

    Raises
    ------
    ValueError
        When a word is none of its attribute's, or the type has none such.
    """
    possible = {
        **ATTRIBUTES,
        "sleeve": SLEEVES_OF.get(garment.type, ("",)),
        "length": LENGTHS_OF.get(garment.type, ("",)),
    }
    for attribute, words in possible.items():
        word = getattr(garment, attribute)
        if word not in words:
            raise ValueError(f"{attribute} of a garment must be one of {', '.join(words) or 'none'} (got {word!r})")
