"""Predictions of a run for all validation and test images with their labels, as arrays and as predictions.csv."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from tlbatch.config.base import SplitName
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, exact_text, plain_text
from tlbatch.core.typing import Bools, Ints
from tlbatch.data.index import Index
from tlbatch.data.sources.base import key_of_shown, shown_key
from tlbatch.evaluation.prediction_parts import Part
from tlbatch.metrics.bootstrap import numbered
from tlbatch.metrics.confusion import Classified
from tlbatch.runs.records import SPLITS

_ROWS = 100_000
_TEXTS = ("image", "group", "split", "label", "prediction")


@dataclass(frozen=True)
class PredictionTable:
    """Images with their predictions, a row each."""

    keys: npt.NDArray[np.bytes_]
    """(n,), sorted within a split."""
    groups: npt.NDArray[np.bytes_]
    splits: Ints
    """Indices into `SPLITS`."""
    errors: npt.NDArray[np.object_]
    """Reason why the image could not be read, (n,); else empty."""

    def where(self, some: Bools | Ints) -> Self:
        """Select some of the images."""
        return replace(self, **{name: column[some] for name, column in self.arrays.items()})

    def of(self, split: SplitName) -> Self:
        """Select the images of a split."""
        return self.where(self.splits == SPLITS.index(split))

    @property
    def arrays(self) -> dict[str, Any]:
        """All fields that hold a row per image, by name."""
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: column for name, column in every.items() if isinstance(column, np.ndarray)}

    @property
    def columns(self) -> tuple[Mapping[str, Sequence[str]], Mapping[str, npt.NDArray[np.float32]]]:
        """Columns of predictions.csv other than those of this class: texts, and numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Predictions(PredictionTable):
    """Images with their true class and predicted probabilities."""

    classes: tuple[str, ...]
    labels: Ints
    probabilities: npt.NDArray[np.float32]
    """(n, num_classes); NaN where an image could not be read."""

    @property
    def is_read(self) -> Bools:
        """Whether each image could be read, (n,)."""
        return np.asarray(~np.isnan(self.probabilities).any(axis=1))

    @property
    def decided(self) -> Classified:
        """True and most probable class of each image; all images must be readable."""
        chosen = self.probabilities.argmax(axis=1).astype(np.int64)
        return Classified(self.labels, chosen, numbered(self.groups), len(self.classes))

    @property
    def predicted(self) -> list[str]:
        """Most probable class of each image; empty where it could not be read."""
        chosen = np.nan_to_num(self.probabilities).argmax(axis=1).tolist()
        return [self.classes[at] if ok else "" for at, ok in zip(chosen, self.is_read.tolist(), strict=True)]

    @property
    def columns(self) -> tuple[Mapping[str, Sequence[str]], Mapping[str, npt.NDArray[np.float32]]]:
        """True and predicted class, and the probability of each class."""
        texts = {"label": [self.classes[number] for number in self.labels.tolist()], "prediction": self.predicted}
        return texts, {f"p_{name}": self.probabilities[:, number] for number, name in enumerate(self.classes)}


def located(index: Index, merged: Part) -> Mapping[str, Any]:
    """Return the fields of `PredictionTable` for merged predictions."""
    rows = index[merged.rows]
    errors = np.array([merged.errors.get(row, "") for row in merged.rows.tolist()], np.object_)
    return {"keys": rows["key"], "groups": rows["group"], "splits": rows["split"].astype(np.int64), "errors": errors}


def write_predictions(path: Path, found: PredictionTable) -> None:
    """Write predictions.csv; text cells are safe from formula injection, and floats round-trip exactly.

    Images have their names as users see them, see `tlbatch.data.sources.base.shown`.
    """
    with atomic_file(path) as file:
        for start in range(0, max(1, len(found.keys)), _ROWS):
            some = found.where(np.arange(start, min(start + _ROWS, len(found.keys))))
            texts, numbers = some.columns
            keys = some.keys.tolist(), some.groups.tolist()
            names = [shown_key(key.decode()) for key in keys[0]]
            columns = {
                "image": _plain(names),
                "group": _plain(_group(*row) for row in zip(names, *keys, strict=True)),
                "split": _plain(SPLITS[number] for number in some.splits),
            }
            columns |= {name: _plain(column) for name, column in texts.items()}
            columns |= {name: pl.Series(values).fill_nan(None) for name, values in numbers.items()}
            columns["error"] = _plain(some.errors)
            pl.DataFrame(columns).write_csv(file, include_header=start == 0)


def _group(name: str, key: bytes, group: bytes) -> str:
    """Return the group of an image as users see it; one of its own has the image's name."""
    return name if group == key else group.decode()


def _plain(texts: Iterable[str]) -> pl.Series:
    return pl.Series([plain_text(text) for text in texts], dtype=pl.String)


def read_predictions(path: Path, classes: Sequence[str]) -> Predictions:
    """Read predictions.csv back; UserError if it is missing, damaged, or has other classes."""
    shared, texts, probabilities = read_columns(path, [f"p_{name}" for name in classes])
    known = {plain_text(name): number for number, name in enumerate(classes)}
    try:
        labels = np.array([known[name] for name in texts["label"]], np.int64)
    except KeyError as error:
        raise UserError(f"{path}: contains {error}, which is not in the report; run reduce again") from None
    return Predictions(**shared, classes=tuple(classes), labels=labels, probabilities=probabilities)


def read_columns(
    path: Path, numbers: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[str]], npt.NDArray[np.float32]]:
    """Read predictions.csv: the fields of `PredictionTable`, the columns of text, and those of numbers, (n, numbers).

    Where images have keys in place of names, as in files of earlier versions, the first column is ``key``. Raises
    UserError if it is missing, damaged, or has other columns.
    """
    kinds = dict.fromkeys(_TEXTS, pl.String) | dict.fromkeys(numbers, pl.Float32) | {"error": pl.String}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
        are_keys = header[:1] == ["key"]  # as files had it that were written before names
        if header[are_keys:] != list(kinds)[are_keys:]:
            raise pl.exceptions.SchemaError(f"its columns are {', '.join(header)}")
        table = pl.read_csv(path, has_header=False, skip_lines=1 + "".join(header).count("\n"), schema=kinds)
        values = table.select(numbers).to_numpy().astype(np.float32)
        texts = {name: table[name].fill_null("").to_list() for name in (*_TEXTS, "error")}
        splits = np.array([SPLITS.index(name) for name in texts["split"]], np.int64)
    except (OSError, ValueError, csv.Error, pl.exceptions.PolarsError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path}: missing or damaged ({first}); run reduce again: python -m tlbatch.reduce RUN"
        ) from None
    names, own = ([exact_text(text) for text in texts[name]] for name in ("image", "group"))
    keys = np.array([(text if are_keys else key_of_shown(text)).encode() for text in names], np.bytes_)
    groups = np.array([text.encode() for text in own], np.bytes_)
    errors = np.array(texts["error"], np.object_)
    return {"keys": keys, "groups": groups, "splits": splits, "errors": errors}, texts, values
