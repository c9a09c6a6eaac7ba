"""Parts of predictions: written by one rank each, merged by reduce, every image exactly once."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.job.errors import UserError
from tlbatch.job.files import atomic_file, to_json

_AGAIN = "submit the job again for a new run folder"


@dataclass(frozen=True)
class Part:
    """Predictions for some images."""

    rows: npt.NDArray[np.int64]
    """Row of each image in the set's index, (n,)."""
    probabilities: npt.NDArray[np.float32]
    """(n, num_classes)."""
    errors: npt.NDArray[np.str_]
    """Why an image could not be read, (n,); empty where it was predicted."""

    @staticmethod
    def empty(num_classes: int) -> "Part":
        """The part of a rank that had no image."""
        return Part(np.empty(0, np.int64), np.empty((0, num_classes), np.float32), np.empty(0, np.str_))

    @staticmethod
    def joined(parts: Sequence["Part"]) -> "Part":
        """All of them, one after the other."""
        return Part(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.errors for part in parts]),
        )

    def chosen(self, some: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Part":
        """Some of the predictions."""
        return Part(self.rows[some], self.probabilities[some], self.errors[some])


def clear_parts(folder: Path) -> None:
    """Remove what an earlier, unfinished attempt left."""
    for old in folder.glob("part-*.npz"):
        old.unlink()


def write_part(folder: Path, part: Part, header: dict[str, str], *, rank: int, world_size: int) -> None:
    """Write the part of one rank; the header says which run, weights and index it belongs to."""
    with atomic_file(folder / f"part-{rank:05d}-of-{world_size:05d}.npz") as file:
        np.savez(
            file,
            rows=part.rows,
            probabilities=part.probabilities,
            errors=part.errors,
            header=np.array(to_json(header)),
        )


def merge_parts(
    folder: Path,
    header: dict[str, str],
    expected: npt.NDArray[np.int64],
    *,
    keys: npt.NDArray[np.bytes_],
    num_classes: int,
) -> Part:
    """Merge the parts of all ranks into the order of the index.

    Parameters
    ----------
    header
        What every part must say of itself.
    expected
        Rows that must be there once each, sorted, (n,).
    keys
        Key of every row of the index, to name images by.

    Raises
    ------
    UserError
        When a part is missing, damaged or of another run, or a row is missing, doubled or unexpected.
    """
    files = sorted(folder.glob("part-*.npz"))
    if not files:
        raise UserError(f"{folder}: no predictions; run predict first: python -m tlbatch.predict RUN")
    of = {int(file.stem.rsplit("-", 1)[1]) for file in files}
    if of != {len(files)}:
        raise UserError(f"{folder}: {len(files)} parts, their names say {sorted(of)}; {_AGAIN}")
    merged = Part.joined([_read_part(file, header, num_classes) for file in files])
    order = np.argsort(merged.rows, kind="stable")
    rows = merged.rows[order]
    doubled = rows[1:][rows[1:] == rows[:-1]]
    for name, wrong in (
        ("predicted twice", doubled),
        ("not predicted", np.setdiff1d(expected, rows)),
        ("predicted but not asked for", np.setdiff1d(rows, expected)),
    ):
        if len(wrong):
            first = keys[wrong[0]].decode() if 0 <= wrong[0] < len(keys) else f"row {wrong[0]}"
            raise UserError(f"{folder}: {len(wrong)} images {name}, the first is {first}; {_AGAIN}")
    return merged.chosen(order)


def _read_part(file: Path, header: dict[str, str], num_classes: int) -> Part:
    try:
        with np.load(file, allow_pickle=False) as data:
            found = json.loads(str(data["header"]))
            part = Part(data["rows"], data["probabilities"], data["errors"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: damaged ({error}); {_AGAIN}") from None
    for key, value in header.items():
        if found.get(key) != value:
            raise UserError(f"{file}: of another {key} ({found.get(key)}, not {value}); {_AGAIN}")
    if part.probabilities.shape != (len(part.rows), num_classes) or part.errors.shape != part.rows.shape:
        raise UserError(f"{file}: shape {part.probabilities.shape}, not ({len(part.rows)}, {num_classes}); {_AGAIN}")
    return part
