"""The index of a set: one row an image, mapped into memory."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.job.errors import UserError
from tlbatch.job.files import atomic_file
from tlbatch.job.records import SPLITS, SplitName

Index = npt.NDArray[np.void]
"""Structured array, one row an image: see `index_dtype`."""


def index_dtype(*, key_bytes: int, group_bytes: int) -> np.dtype[np.void]:
    """Columns of the index; keys and groups in UTF-8, offset and size in bytes of the image in its shard."""
    return np.dtype(
        [
            ("key", f"S{max(1, key_bytes)}"),
            ("group", f"S{max(1, group_bytes)}"),
            ("shard", "<i4"),
            ("offset", "<i8"),
            ("size", "<i8"),
            ("label", "<i4"),
            ("split", "<i1"),
            ("content", "S64"),
        ]
    )


def write_index(path: Path, rows: Iterable[tuple[object, ...]]) -> Index:
    """Write the index, sorted as the rows are."""
    table = list(rows)
    longest = [max((len(row[column]) for row in table), default=1) for column in (0, 1)]  # type: ignore[arg-type]
    index = np.array(table, dtype=index_dtype(key_bytes=longest[0], group_bytes=longest[1]))
    with atomic_file(path) as file:
        np.save(file, index, allow_pickle=False)
    return index


def read_index(path: Path) -> Index:
    """Map the index into memory.

    Raises
    ------
    UserError
        When it is missing or damaged.
    """
    try:
        index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); remove the folder and run shard again") from None
    return index


def digest_split(index: Index, split: SplitName) -> str:
    """SHA-256 of keys, labels and contents of one split, in the order of the keys."""
    rows = index[index["split"] == SPLITS.index(split)]
    rows = rows[np.argsort(rows["key"])]
    sha = hashlib.sha256()
    for row in rows:
        sha.update(b"%b\0%d\0%b\n" % (row["key"], row["label"], row["content"]))
    return sha.hexdigest()
