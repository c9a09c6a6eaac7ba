"""Prediction parts: written by each rank for its images, and merged by reduce, every image exactly once."""

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, to_json
from tlbatch.core.text import counted
from tlbatch.core.typing import Ints
from tlbatch.data.sources.base import shown_key
from tlbatch.runs.records import Best

log = logging.getLogger(__name__)
_OFF = 1e-3
_AGAIN = "submit the job again for a new run folder"
Table = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Predictions for some images."""

    rows: Ints
    """Row of each image in the set's index, (n,)."""
    probabilities: Table
    """(n, num_classes); NaN where an image could not be read."""
    grades: Table
    """Regression output to be thresholded, or the log probability of a phrase, (n,); NaN where there is neither."""
    errors: Mapping[int, str]
    """Reason why an image could not be read, by its row."""
    phrases: npt.NDArray[np.int32]
    """Indices of the predicted tags, (n, max_tags), padded with -1; (n, 0) for classes."""

    @staticmethod
    def of_classes(rows: Ints, probabilities: Table, grades: Table, errors: Mapping[int, str]) -> "Part":
        """Create a part without phrases."""
        return Part(rows, probabilities, grades, errors, np.empty((len(rows), 0), np.int32))

    @staticmethod
    def joined(parts: Sequence["Part"]) -> "Part":
        """Concatenate parts."""
        names = ("rows", "probabilities", "grades", "phrases")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Part(**columns, errors={row: error for part in parts for row, error in part.errors.items()})


class Width(NamedTuple):
    """Number of values predicted for an image: class probabilities, or tags of a phrase."""

    num_classes: int
    max_tags: int = 0

    @staticmethod
    def of(best: Best) -> "Width":
        """Return the width of a checkpoint's predictions."""
        return Width(0, best.max_tags) if best.max_tags else Width(len(best.classes))

    def no_images(self) -> Part:
        """Return an empty part, for a rank without images."""
        probabilities, phrases = np.empty((0, self.num_classes), np.float32), np.empty((0, self.max_tags), np.int32)
        return Part(np.empty(0, np.int64), probabilities, np.empty(0, np.float32), {}, phrases)


def write_part(folder: Path, part: Part, header: Mapping[str, str]) -> None:
    """Write a part, named after a hash of its rows; the header identifies its run, weights and index."""
    with atomic_file(folder / f"part-{xxhash.xxh3_64_hexdigest(part.rows.tobytes())}.npz") as file:
        np.savez(
            file,
            rows=part.rows,
            probabilities=part.probabilities,
            grades=part.grades,
            error_rows=np.array(list(part.errors), np.int64),
            errors=np.array(list(part.errors.values()), np.str_),
            phrases=part.phrases,
            header=np.array(to_json(header)),
        )


def read_rows(folder: Path, header: Mapping[str, str], width: Width) -> Ints:
    """Return the rows predicted by earlier attempts of the stage; invalid parts are removed."""
    rows = [np.empty(0, np.int64)]
    for file in sorted(folder.glob("part-*.npz")):
        try:
            rows.append(_read_part(file, header, width).rows)
        except UserError as error:
            log.warning("predicting again: %s", str(error).partition(";")[0])
            file.unlink()
    return np.concatenate(rows)


def merge_parts(
    folder: Path, header: Mapping[str, str], expected: Ints, *, keys: npt.NDArray[np.bytes_], width: Width
) -> Part:
    """Merge the parts of all ranks into the order of the index.

    Only the result and one part at a time are held in memory.

    Parameters
    ----------
    header
        Header that every part must have.
    expected
        Rows that must be present exactly once, sorted, (n,).
    keys
        Key of every row of the index, for error messages.

    Raises
    ------
    UserError
        When a part is missing, damaged or from another run, or a row is missing, duplicated or unexpected.
    """
    files = sorted(folder.glob("part-*.npz"))
    if not files:
        raise UserError(f"{folder}: no predictions; run predict first: python -m tlbatch.predict RUN")
    probabilities = np.empty((len(expected), width.num_classes), np.float32)
    grades = np.empty(len(expected), np.float32)
    phrases = np.empty((len(expected), width.max_tags), np.int32)
    counts = np.zeros(len(expected), np.int64)
    errors: dict[int, str] = {}
    for file in files:
        part = _read_part(file, header, width)
        places = np.searchsorted(expected, part.rows)
        known = places < len(expected)
        known[known] = expected[places[known]] == part.rows[known]
        _refuse("predicted unexpectedly", part.rows[~known], folder, keys)
        probabilities[places], grades[places], phrases[places] = part.probabilities, part.grades, part.phrases
        np.add.at(counts, places, 1)
        errors |= part.errors
    _refuse("predicted twice", expected[counts > 1], folder, keys)
    _refuse("not predicted", expected[counts == 0], folder, keys)
    return Part(expected, probabilities, grades, {row: errors[row] for row in sorted(errors)}, phrases)


def _refuse(wrong: str, rows: Ints, folder: Path, keys: npt.NDArray[np.bytes_]) -> None:
    if len(rows):
        row = int(rows.min())
        first = shown_key(keys[row].decode()) if 0 <= row < len(keys) else f"row {row}"
        raise UserError(f"{folder}: {counted(len(rows), 'image')} {wrong}, the first is {first}; {_AGAIN}")


def _read_part(file: Path, header: Mapping[str, str], width: Width) -> Part:
    try:
        with np.load(file, allow_pickle=False) as data:
            found = json.loads(str(data["header"]))
            errors = dict(zip(data["error_rows"].tolist(), data["errors"].tolist(), strict=True))
            part = Part(data["rows"], data["probabilities"], data["grades"], errors, data["phrases"])
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: damaged ({error}); {_AGAIN}") from None
    for key, value in header.items():
        if found.get(key) != value:
            raise UserError(f"{file}: made with {key} {found.get(key)}, not {value}; {_AGAIN}")
    _check_values(file, part, width)
    return part


def _check_values(file: Path, part: Part, width: Width) -> None:
    shapes: dict[str, tuple[npt.NDArray[Any], tuple[int, ...]]] = {
        "probabilities": (part.probabilities, (len(part.rows), width.num_classes)),
        "grades": (part.grades, (len(part.rows),)),
        "phrases": (part.phrases, (len(part.rows), width.max_tags)),
    }
    for name, (values, shape) in shapes.items():
        if values.shape != shape:
            raise UserError(f"{file}: {name} have shape {values.shape}, not {shape}; {_AGAIN}")
    if not width.num_classes:
        return
    unread = np.isin(part.rows, list(part.errors))
    sums = np.where(part.probabilities >= 0, part.probabilities, np.nan).sum(axis=1, dtype=np.float64)
    wrong = np.flatnonzero(~unread & ~(np.abs(sums - 1) < _OFF))
    if len(wrong):
        raise UserError(
            f"{file}: the probabilities of {counted(len(wrong), 'image')} do not sum to 1, the first is row "
            f"{part.rows[wrong[0]]} of the index; {_AGAIN}"
        )
