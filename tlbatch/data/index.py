"""The index of a set: one row an image and split, mapped into memory."""

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
from tlbatch.runs.records import SPLITS

_CHUNK = 100_000
Index = npt.NDArray[np.void]
"""Structured array, one row an image: see `index_dtype`."""


@dataclass(frozen=True)
class IndexRows:
    """Which images of a list are in which split: an image may be in several, or in none."""

    image: npt.NDArray[np.int64]
    """Number of the image, (rows,)."""
    split: npt.NDArray[np.int64]
    """Number in `SPLITS`, (rows,)."""

    def __len__(self) -> int:
        return len(self.image)

    def chosen(self, some: npt.NDArray[np.bool_]) -> "IndexRows":
        """Some of the rows."""
        return IndexRows(self.image[some], self.split[some])


def index_dtype(*, key_bytes: int, group_bytes: int, num_tags: int) -> np.dtype[np.void]:
    """Columns of the index.

    Keys and groups are in UTF-8; offset and size are bytes of the image in its shard; a label is the number of a
    class, or -1 with tags; tags are numbers of classes, -1 where there are fewer; content is the XXH3-128 of the
    image's bytes; plain says that `tlbatch.data.decode.decode_plain` can read it.
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
        ]
    )


def new_index(keys: Sequence[str], groups: Sequence[str], *, num_tags: int) -> Index:
    """An index with its keys and groups, the other columns to be filled."""
    longest = [max((len(text.encode()) for text in column), default=1) for column in (keys, groups)]
    index = np.zeros(len(keys), index_dtype(key_bytes=longest[0], group_bytes=longest[1], num_tags=num_tags))
    for name, column in (("key", keys), ("group", groups)):
        for start in range(0, len(column), _CHUNK):
            some = column[start : start + _CHUNK]
            index[name][start : start + _CHUNK] = [text.encode() for text in some]
    return index


def write_index(path: Path, index: Index) -> None:
    """Write the index, sorted as it is."""
    with atomic_file(path) as file:
        np.save(file, index, allow_pickle=False)


def read_index(path: Path) -> Index:
    """Map the index into memory.

    Raises
    ------
    UserError
        When it is missing or damaged.
    """
    try:
        index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
        if (
            not isinstance(index, np.ndarray)
            or index.dtype.names != index_dtype(key_bytes=1, group_bytes=1, num_tags=0).names
        ):
            raise ValueError("not an index")  # noqa: TRY301
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: missing or damaged ({error}); remove the folder and run shard again") from None
    return index


def split_rows(index: Index, split: SplitName) -> npt.NDArray[np.int64]:
    """Numbers of the rows of one split, in order."""
    return np.flatnonzero(index["split"] == SPLITS.index(split))


def digest_split(index: Index, split: SplitName, classes: Sequence[str]) -> str:
    """SHA-256 of keys, labels and contents of one split, in the order of the keys; of tags by their names."""
    sha = hashlib.sha256()
    for row in index[split_rows(index, split)]:
        labels = "\1".join(classes[tag] for tag in row["tags"] if tag >= 0) or row["label"]
        sha.update(f"{row['key'].decode()}\0{labels}\0{row['content'].decode()}\n".encode())
    return sha.hexdigest()
