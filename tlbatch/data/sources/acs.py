"""Images in the layout of Apparel Classification with Style (Bossard et al., ACCV 2012).

The folder holds ``images/<class>/<name>.jpg``, and ``train.txt`` and ``test.txt`` with one ``<class>/<name>`` per line.
The label is the type of garment given by the number of the class; with tags it is a phrase: the words from the labels
file, if there is one, followed by the type.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.sources.base import TWO_LABELS, Found, key_of
from tlbatch.data.sources.files import is_image, walk
from tlbatch.data.sources.listing import Listing

TYPES: Final = (
    "blouse", "cloak", "coat", "jacket", "long dress", "polo shirt", "robe", "shirt", "short dress", "suit", "sweater",
    "t-shirt", "undergarment", "uniform", "vest",
)  # fmt: skip
"""By class number; a folder with another name is itself the type."""
Words = Mapping[str, str | None]
"""Tags of images by key; None where the labels file contradicts itself."""
_LISTS = ("train", "test")


def from_acs(folder: Path, data: Data, words: Words | None, listing: Listing) -> Iterator[Found]:
    """Yield all images that a list names.

    Parameters
    ----------
    words
        Words before the type, by key; None: no words.

    Raises
    ------
    UserError
        When a list is missing, or both name an image.
    """
    part_of = _parts(folder)
    files = _files(folder / "images", listing)
    for stem in sorted(files.keys() | part_of.keys()):
        cause = _cause(stem, folder, files, part_of, words)
        if cause:
            listing.reject(stem, cause)
            continue
        name = stem.partition("/")[0]
        label = TYPES[int(name)] if name.isdecimal() and int(name) < len(TYPES) else name
        if data.tag_separator:
            own = words[key_of(stem)] if words else ""
            label = data.tag_separator.join([*filter(None, [own]), *label.split(" ")])
        yield Found(stem, f"{folder}/images/{files[stem]}", label, part=part_of[stem])


def _cause(stem: str, folder: Path, files: Mapping[str, str], part_of: Mapping[str, str], words: Words | None) -> str:
    """Return why an image cannot be used; empty if it can."""
    if stem not in files:
        return f"{part_of[stem]}.txt names it, and there is no such image below {folder}/images"
    if stem not in part_of:
        return "neither train.txt nor test.txt names it"
    if words is not None and key_of(stem) not in words:
        return "the labels file has no line for it"
    if words is not None and words[key_of(stem)] is None:
        return TWO_LABELS
    return ""


def _parts(folder: Path) -> dict[str, str]:
    part_of: dict[str, str] = {}
    for part in _LISTS:
        file = folder / f"{part}.txt"
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); set data.images to the folder that holds it") from None
        for stem in filter(None, map(str.strip, lines)):
            if part_of.setdefault(stem, part) != part:
                raise UserError(f"{file}: {stem} is in train.txt too; remove it from one")
    return part_of


def _files(folder: Path, listing: Listing) -> dict[str, str]:
    """Return the path of each image below the folder, by its path without the extension."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set data.images to the folder that holds images/ and train.txt")
    found: dict[str, str] = {}
    for place, names in walk(folder, is_image, listing):
        for name in names:
            inner = (place / name).as_posix()
            found.setdefault(os.path.splitext(inner)[0], inner)  # noqa: PTH122 (a Path per image costs too much)
    return found
