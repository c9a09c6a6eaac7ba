"""Predictions of a run for all validation and test images with their labels, as arrays and as predictions.csv."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from tlbatch.config.base import SplitName
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, exact_text, plain_text
from tlbatch.metrics.bootstrap import numbered
from tlbatch.metrics.confusion import Classified
from tlbatch.runs.records import SPLITS

_ROWS = 100_000
_FIXED = ("key", "group", "split", "label", "prediction")


@dataclass(frozen=True)
class PredictionTable:
    """Arrays with one row per image, of which ``splits`` holds indices into `SPLITS`."""

    def where(self, some: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Self:
        """Select some of the images."""
        columns = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: own[some] for name, own in columns.items() if isinstance(own, np.ndarray)})

    def of(self, split: SplitName) -> Self:
        """Select the images of a split."""
        splits: npt.NDArray[np.int64] = vars(self)["splits"]
        return self.where(splits == SPLITS.index(split))


@dataclass(frozen=True)
class Predictions(PredictionTable):
    """Images with their true class and predicted probabilities."""

    classes: tuple[str, ...]
    keys: npt.NDArray[np.bytes_]
    """(n,), sorted within a split."""
    groups: npt.NDArray[np.bytes_]
    splits: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    """(n, num_classes); NaN where an image could not be read."""
    errors: npt.NDArray[np.object_]
    """Reason why the image could not be read, (n,); else empty."""

    @property
    def is_read(self) -> npt.NDArray[np.bool_]:
        """Whether each image could be read, (n,)."""
        return np.asarray(~np.isnan(self.probabilities).any(axis=1))

    @property
    def decided(self) -> Classified:
        """True and most probable class of each image; all images must be readable."""
        chosen = self.probabilities.argmax(axis=1).astype(np.int64)
        return Classified(self.labels, chosen, numbered(self.groups), len(self.classes))


def write_predictions(path: Path, found: Predictions) -> None:
    """Write predictions.csv; text cells are safe from formula injection, and floats round-trip exactly."""
    classes = np.array([plain_text(name) for name in found.classes])
    with atomic_file(path) as file:
        for start in range(0, max(1, len(found.keys)), _ROWS):
            some = found.where(np.arange(start, min(start + _ROWS, len(found.keys))))
            read = some.is_read
            chosen = np.where(read, np.nan_to_num(some.probabilities).argmax(axis=1), 0)
            columns = {
                "key": texts(some.keys),
                "group": texts(some.groups),
                "split": pl.Series([SPLITS[number] for number in some.splits], dtype=pl.String),
                "label": pl.Series(classes[some.labels].tolist(), dtype=pl.String),
                "prediction": pl.Series(
                    [name if ok else "" for name, ok in zip(classes[chosen].tolist(), read, strict=True)],
                    dtype=pl.String,
                ),
            }
            for number, name in enumerate(found.classes):
                columns[f"p_{name}"] = pl.Series(some.probabilities[:, number]).fill_nan(None)
            columns["error"] = pl.Series([plain_text(text) for text in some.errors], dtype=pl.String)
            pl.DataFrame(columns).write_csv(file, include_header=start == 0)


def texts(column: npt.NDArray[np.bytes_]) -> pl.Series:
    """Convert keys or groups to text that a spreadsheet does not read as a formula."""
    return pl.Series([plain_text(text.decode()) for text in column.tolist()], dtype=pl.String)


def read_predictions(path: Path, classes: Sequence[str]) -> Predictions:
    """Read predictions.csv back.

    Raises
    ------
    UserError
        When it is missing, damaged, or has other classes.
    """
    probabilities = [f"p_{name}" for name in classes]
    kinds = dict.fromkeys(_FIXED, pl.String) | dict.fromkeys(probabilities, pl.Float32) | {"error": pl.String}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
        if header != list(kinds):
            raise pl.exceptions.SchemaError(f"its columns are {', '.join(header)}")
        table = pl.read_csv(path, has_header=False, skip_lines=1 + "".join(header).count("\n"), schema=kinds)
        values = table.select(probabilities).to_numpy().astype(np.float32)
        columns = {name: table[name].fill_null("").to_list() for name in (*_FIXED, "error")}
    except (OSError, UnicodeDecodeError, csv.Error, pl.exceptions.PolarsError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path}: missing or damaged ({first}); run reduce again: python -m tlbatch.reduce RUN"
        ) from None
    known = {plain_text(name): number for number, name in enumerate(classes)}
    try:
        labels = np.array([known[name] for name in columns["label"]], np.int64)
        splits = np.array([SPLITS.index(name) for name in columns["split"]], np.int64)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: contains {error}, which is not in the report; run reduce again") from None
    return Predictions(
        tuple(classes), exact_bytes(columns["key"]), exact_bytes(columns["group"]), splits, labels, values,
        np.array(columns["error"], np.object_),
    )  # fmt: skip


def exact_bytes(texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Invert `texts`."""
    return np.array([exact_text(text).encode() for text in texts], np.bytes_)
