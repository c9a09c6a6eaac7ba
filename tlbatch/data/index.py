"""The index of a set: one row per image and split, mapped into memory."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.config.base import SplitName
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file
from tlbatch.core.typing import Ints
from tlbatch.runs.records import SPLITS

_CHUNK = 100_000
Index = npt.NDArray[np.void]
"""Structured array, one row per image: see `index_dtype`."""


@dataclass(frozen=True)
class IndexRows:
    """The images of each split, as numbers into a list: an image may be in several splits, or in none."""

    image: Ints
    """Number of the image, (rows,)."""
    split: Ints
    """Number in `SPLITS`, (rows,)."""

    def __len__(self) -> int:
        return len(self.image)


def index_dtype(*, key_bytes: int, group_bytes: int, num_tags: int, own_bytes: int = 0) -> np.dtype[np.void]:
    """Return the columns of the index.

    Keys and groups are UTF-8; offset and size locate the image in its shard, in bytes; label is a class number, or -1
    with tags; tags are class numbers, padded with -1; content is the XXH3-128 of the image's bytes; plain says whether
    `tlbatch.data.decode.decode_plain` can read it. Groups that share a duplicate are one group; where there are such,
    own_group is the group that the source gives the image.
    """
    return np.dtype(
        [
            ("key", f"S{max(1, key_bytes)}"),
            ("group", f"S{max(1, group_bytes)}"),
            ("shard", "<i4"),
            ("offset", "<i8"),
            ("size", "<i8"),
            ("label", "<i4"),
            ("tags", "<i4", (num_tags,)),
            ("split", "<i1"),
            ("plain", "?"),
            ("content", "S32"),
            *([("own_group", f"S{own_bytes}")] if own_bytes else []),
        ]
    )


def new_index(
    keys: Sequence[str], groups: Sequence[str], *, num_tags: int, own_groups: Sequence[str] | None = None
) -> Index:
    """Return an index with its keys and groups; the other columns are zero.

    The column own_group is left out where it equals the groups.
    """
    columns = {"key": keys, "group": groups}
    if own_groups is not None and own_groups != groups:
        columns["own_group"] = own_groups
    longest = {name: max((len(text.encode()) for text in column), default=1) for name, column in columns.items()}
    own_bytes = longest.get("own_group", 0)
    kinds = index_dtype(key_bytes=longest["key"], group_bytes=longest["group"], num_tags=num_tags, own_bytes=own_bytes)
    index = np.zeros(len(keys), kinds)
    for name, column in columns.items():
        for start in range(0, len(column), _CHUNK):
            some = column[start : start + _CHUNK]
            index[name][start : start + _CHUNK] = [text.encode() for text in some]
    return index


def own_groups(index: Index) -> npt.NDArray[np.bytes_]:
    """Return the group that the source gives each image, (n,)."""
    return index["own_group" if "own_group" in (index.dtype.names or ()) else "group"]


def write_index(path: Path, index: Index) -> None:
    """Write the index in its present order."""
    with atomic_file(path) as file:
        np.save(file, index, allow_pickle=False)


def read_index(path: Path) -> Index:
    """Map the index into memory; UserError if it is missing or damaged."""
    try:
        index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
        columns = [index_dtype(key_bytes=1, group_bytes=1, num_tags=0, own_bytes=size).names for size in (0, 1)]
        if not isinstance(index, np.ndarray) or index.dtype.names not in columns:
            raise ValueError("not an index")  # noqa: TRY301
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: missing or damaged ({error}); remove the folder and run shard again") from None
    return index


def split_rows(index: Index, split: SplitName) -> Ints:
    """Return the row numbers of one split, in order."""
    return np.flatnonzero(index["split"] == SPLITS.index(split))


def digest_split(index: Index, split: SplitName, classes: Sequence[str]) -> str:
    """Return the SHA-256 of keys, labels and contents of one split, in the order of the keys; tags by name."""
    sha = hashlib.sha256()
    for row in index[split_rows(index, split)]:
        labels = "\1".join(classes[tag] for tag in row["tags"] if tag >= 0) or row["label"]
        sha.update(f"{row['key'].decode()}\0{labels}\0{row['content'].decode()}\n".encode())
    return sha.hexdigest()
