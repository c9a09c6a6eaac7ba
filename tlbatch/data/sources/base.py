"""Labelled images of any source, in a fixed order and with one digest."""

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlbatch.config.data import Data
from tlbatch.core.typing import Ints
from tlbatch.runs.manifest import Rejected

_BEFORE_ESCAPE = re.compile(r"\\(?=\\*(?:udc[89a-f][0-9a-f]|[\udc80-\udcff]))")
_ESCAPED = re.compile(r"(\\+)udc([89a-f][0-9a-f])")
NO_LABEL = "has no label"
TWO_LABELS = "the key is there twice, with two labels"
"""Why an image is left out."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """One image of a source."""

    key: str
    path: str
    """The file that holds it."""
    label: str
    group: str
    part: str
    """What the source calls its split; may be empty."""
    stamp: int
    """64-bit hash of key, label, the file's size and time, and its offset in a tar; if it changes, the image is read
    again."""
    offset: int = 0
    """Offset in the file, in bytes; in an IDX file, the number of the image."""
    size: int = -1
    """Size in bytes; -1: the whole file."""


@dataclass(frozen=True)
class Found:
    """An image as a source lists it, before it is given a key and a group."""

    name: str
    path: str
    label: str
    group: str = ""
    part: str = ""
    offset: int = 0
    size: int = -1
    prefix: str = ""
    """Put before the name in the key, where another image has the same name."""


@dataclass(frozen=True)
class Source:
    """All usable images, sorted by key, and the classes in order."""

    images: tuple[Labelled, ...]
    classes: tuple[str, ...]
    columns: tuple[str, str]
    digest: str
    """Digest of keys, labels, groups, parts, file sizes and times, and of the rejected images; it changes with the
    source."""
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...] = ()
    """How the source was understood."""
    spellings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other spellings of a group that has several."""
    pixels: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Pixels of IDX files by path: (images, height, width)."""

    def read(self, image: Labelled) -> bytes:
        """Return the bytes of an image file."""
        if image.path in self.pixels:
            buffer = io.BytesIO()
            Image.fromarray(self.pixels[image.path][image.offset]).save(buffer, "PNG")
            return buffer.getvalue()
        with open(image.path, "rb") as file:  # noqa: PTH123 (a Path per image would cost more than opening it)
            file.seek(image.offset)
            return file.read(image.size)


def key_of(name: str) -> str:
    """Return the key of an image: its name, with all but letters, digits, ``_``, ``-``, ``~`` and ``/`` quoted.

    WebDataset ends a key at the first dot of the member's name, so dots are quoted too.
    """
    return quote(name, safe="/", errors="surrogateescape").replace(".", "%2E")


def name_of(key: str) -> str:
    """Return the name of an image from its key: the inverse of `key_of`."""
    return unquote(key, errors="surrogateescape")


def shown(name: str) -> str:
    r"""Return the name of an image as users see it: as it is, but bytes that are not UTF-8 as ``\udcff``.

    To keep names apart, a backslash is doubled where it is before such a byte, or before text that looks like one.
    """
    if "\\" in name:
        name = _BEFORE_ESCAPE.sub(r"\\\\", name)
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def shown_key(key: str) -> str:
    """Return the name of an image as users see it, from its key."""
    return shown(name_of(key))


def key_of_shown(text: str) -> str:
    """Return the key of an image from its name as users see it: the inverse of `shown_key`."""
    return key_of(_ESCAPED.sub(_unescaped, text))


def _unescaped(found: re.Match[str]) -> str:
    pairs, is_byte = divmod(len(found[1]), 2)
    return "\\" * pairs + (chr(0xDC00 + int(found[2], 16)) if is_byte else f"udc{found[2]}")


def tags_of(label: str, data: Data) -> tuple[str, ...]:
    """Return the classes that a label names: the label itself, or its tags."""
    if not data.tag_separator:
        return (label,) if label else ()
    return tuple(dict.fromkeys(tag.strip() for tag in label.split(data.tag_separator) if tag.strip()))


def coded(values: Iterable[str]) -> tuple[Ints, list[str]]:
    """Return an integer code for each value, and the distinct values, in the order of first occurrence."""
    numbers: dict[str, int] = {}
    codes = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64)
    return codes, list(numbers)
