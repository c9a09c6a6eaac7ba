"""Words of messages and pages, and when two words are the same."""

import re
import unicodedata
from decimal import Decimal

_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "-"})


def counted(number: int, name: str) -> str:
    """Format a count with its noun, in the plural unless it is one."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def folded(text: str) -> str:
    """Return the form in which two spellings of one value are equal.

    It has Unicode's compatibility form (NFKC), no difference of case, no invisible characters, single spaces, and
    numbers in their shortest form: 2.0, 02 and a full-width 2 are all 2.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if not text.isprintable():
        text = "".join(letter for letter in text if letter.isspace() or not _is_invisible(letter))
    number = shortest(text)
    return " ".join(text.split()).casefold() if number is None else number


def shortest(text: str) -> str | None:
    """Return the shortest decimal form of a number, without exponents; None if the text is no number."""
    text = text.strip()
    if not re.fullmatch(r"[+-]?\d{1,100}(\.\d{1,100})?", text):
        return None
    number = format(Decimal(text), "f")
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return "0" if number == "-0" else number


def is_missing(text: str) -> bool:
    """Return whether a cell of a table says that it has no value."""
    return text.casefold() in _MISSING


def trimmed(text: str) -> str:
    """Return a text without white space and invisible characters around it."""
    text = text.strip()
    while text and _is_invisible(text[0]):
        text = text[1:].lstrip()
    while text and _is_invisible(text[-1]):
        text = text[:-1].rstrip()
    return text


def _is_invisible(letter: str) -> bool:
    return not letter.isprintable() and unicodedata.category(letter) in ("Cc", "Cf")
