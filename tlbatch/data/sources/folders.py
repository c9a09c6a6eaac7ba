"""Class folders."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.sources.base import Found
from tlbatch.data.sources.files import given_split, is_image, walk, why_unread
from tlbatch.data.sources.listing import Listing


def from_folders(images: Path, data: Data, listing: Listing, classes: dict[str, None]) -> Iterator[Found]:
    """Yield the images in class folders; with given splits, class folders lie in split folders."""
    depth = 1 if (data.split.method == "given" and not data.split.files) or data.split.recipe == "dogs-vs-cats" else 0
    if not depth:
        _refuse_splits(images)
    for folder, names in walk(images, is_image, listing):
        parts = folder.parts
        if len(parts) > depth:
            classes[_readable(parts[depth])] = None
        stems = [os.path.splitext(name)[0] for name in names]  # noqa: PTH122 (a Path per image costs too much)
        counts = Counter(stems)
        for name, stem in zip(names, stems, strict=True):
            inner = (folder / name).as_posix()
            if len(parts) <= depth:
                wanted = "<split>/<class>" if depth else "<class>"
                cause = f"lies outside of a class folder; move it into {images}/{wanted}/"
                listing.reject(inner, cause)
                continue
            own = inner if counts[stem] > 1 else inner[: len(inner) - len(name) + len(stem)]  # x.jpg and x.png are two
            yield Found(own, f"{images}/{inner}", _readable(parts[depth]), part=parts[0] if depth else "")
    for inner in listing.unread:
        listing.reject(inner, why_unread(inner))


def _readable(name: str) -> str:
    """Return a file name as text, whatever its bytes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _refuse_splits(images: Path) -> None:
    """Refuse folders that are named as splits, which would be classes."""
    names = sorted(place.name for place in images.iterdir() if place.is_dir())
    splits = {name: split for name in names if (split := given_split(name, {}))}
    if "train" in splits.values() and len(set(splits.values())) > 1:
        raise UserError(
            f"{images}: {', '.join(splits)} look like splits, not classes; set data.split.method=given, or rename them"
        )
