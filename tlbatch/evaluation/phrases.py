"""Predicted phrases of a run for all validation and test images, as arrays and as predictions.csv."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, plain_text
from tlbatch.data.dataset import ImageSet
from tlbatch.data.phrase_checks import odd_phrases
from tlbatch.data.sources.base import name_of
from tlbatch.evaluation.prediction_parts import Part
from tlbatch.evaluation.predictions import PredictionTable, exact_bytes, texts
from tlbatch.evaluation.scoring import Scoring
from tlbatch.evaluation.summary import values_of
from tlbatch.metrics.bootstrap import numbered
from tlbatch.metrics.confusion import Classified, score_with_intervals
from tlbatch.metrics.phrases import Vocabulary, score_tags
from tlbatch.runs.records import SPLITS, Best
from tlbatch.runs.report import SCORES, Estimate, Scored, ScoreName, Subgroup

_COLUMNS = {
    "key": pl.String, "group": pl.String, "split": pl.String, "label": pl.String, "prediction": pl.String,
    "log_probability": pl.Float32, "error": pl.String,
}  # fmt: skip
_NO_CLASSES = Estimate(value=None, undefined="not defined for phrases")


@dataclass(frozen=True)
class Phrases(PredictionTable):
    """Images with their true and predicted phrases, each as one text."""

    keys: npt.NDArray[np.bytes_]
    """(n,), sorted within a split."""
    groups: npt.NDArray[np.bytes_]
    splits: npt.NDArray[np.int64]
    labels: npt.NDArray[np.object_]
    written: npt.NDArray[np.object_]
    """Predicted phrase; empty where an image could not be read."""
    log_probabilities: npt.NDArray[np.float32]
    """Log probability of the predicted phrase, (n,); NaN where an image could not be read."""
    errors: npt.NDArray[np.object_]
    """Reason why the image could not be read, (n,); else empty."""

    @property
    def is_read(self) -> npt.NDArray[np.bool_]:
        """Whether each image could be read, (n,)."""
        return np.asarray(~np.isnan(self.log_probabilities))

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """Whether each phrase matches the true one exactly, (n,)."""
        return np.asarray(self.labels == self.written, np.bool_)

    @property
    def decided(self) -> Classified:
        """Correct or not as a binary class, so that exact match is an accuracy and is compared as one."""
        right = self.is_right.astype(np.int64)
        return Classified(np.ones_like(right), right, numbered(self.groups), 2)


def write_phrases(path: Path, found: Phrases) -> None:
    """Write predictions.csv; text cells are safe from formula injection."""
    columns = {
        "key": texts(found.keys),
        "group": texts(found.groups),
        "split": pl.Series([SPLITS[number] for number in found.splits], dtype=pl.String),
        "label": pl.Series([plain_text(text) for text in found.labels], dtype=pl.String),
        "prediction": pl.Series([plain_text(text) for text in found.written], dtype=pl.String),
        "log_probability": pl.Series(found.log_probabilities).fill_nan(None),
        "error": pl.Series([plain_text(text) for text in found.errors], dtype=pl.String),
    }
    with atomic_file(path) as file:
        pl.DataFrame(columns).write_csv(file)


def read_phrases(path: Path) -> Phrases:
    """Read predictions.csv back, with phrases as written there.

    Raises
    ------
    UserError
        When it is missing or damaged.
    """
    try:
        table = pl.read_csv(path, schema=_COLUMNS)
        columns = {name: table[name].fill_null("").to_list() for name in _COLUMNS if name != "log_probability"}
        splits = np.array([SPLITS.index(name) for name in columns["split"]], np.int64)
        values = table["log_probability"].fill_null(np.nan).to_numpy().astype(np.float32)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path}: missing or damaged ({first}); run reduce again: python -m tlbatch.reduce RUN"
        ) from None
    labels, written, errors = (np.array(columns[name], np.object_) for name in ("label", "prediction", "error"))
    keys, groups = exact_bytes(columns["key"]), exact_bytes(columns["group"])
    return Phrases(keys, groups, splits, labels, written, values, errors)


class Tagged(NamedTuple):
    """Phrases with their tags, which cannot always be recovered from the text."""

    found: Phrases
    truth: Sequence[tuple[str, ...]]
    written: Sequence[tuple[str, ...]]


def summarise_phrases(
    tagged: Tagged, vocabulary: Vocabulary, columns: Mapping[str, Sequence[str]], *, seed: int
) -> Scored:
    """Score the readable test images; accuracy is the fraction of phrases that match exactly.

    Parameters
    ----------
    columns
        Values of columns of the labels file for each test image, readable or not.
    """
    found = tagged.found
    every = found.of("test")
    read = every.is_read
    test = every.where(read)
    decided = test.decided
    scored = np.flatnonzero((found.splits == SPLITS.index("test")) & found.is_read).tolist()
    truth, written = ([some[at] for at in scored] for some in (tagged.truth, tagged.written))
    tags = score_tags(truth, written, decided.groups, vocabulary, seed=seed)
    scores: dict[ScoreName, Estimate] = dict.fromkeys(SCORES, _NO_CLASSES)
    scores |= {"accuracy": tags.exact_match, "macro_f1": tags.macro_f1}
    return Scored(
        metric="accuracy",
        score=tags.exact_match.value,
        n=len(test.keys),
        num_groups=len(np.unique(test.groups)),
        num_errors=int((~read).sum()),
        scores=scores,
        classes=(),
        confusion=(),
        questions=(),
        tags=tags,
        calibration=None,
        thresholds=None,
        deployed=None,
        subgroups=tuple(_subgroups(decided, columns, read, seed=seed)),
        external=(),
    )


def _subgroups(
    decided: Classified, columns: Mapping[str, Sequence[str]], read: npt.NDArray[np.bool_], *, seed: int
) -> list[Subgroup]:
    return [
        Subgroup(
            column=column,
            value=value,
            n=int(some.sum()),
            num_groups=len(np.unique(decided.groups[some])),
            scores={"accuracy": score_with_intervals(decided.where(some), seed=seed)["accuracy"]},
        )
        for column, values in columns.items()
        for value, some in values_of(np.array(values, np.object_)[read])
    ]


def write_scored_phrases(
    scoring: Scoring, images: ImageSet, merged: Part, best: Best, causes: Sequence[str]
) -> tuple[Phrases, Scored]:
    """Write predictions.csv and submission.csv, and return the phrases with their scores.

    Parameters
    ----------
    causes
        Reasons why images were excluded from the set.

    Raises
    ------
    UserError
        When a column does not match the run.
    """
    job, manifest = scoring.record.job, scoring.manifest
    index, separator = images.index, job.data.tag_separator
    rows = index[merged.rows]
    truth, written = _tags(rows["tags"], manifest.classes), _tags(merged.phrases, best.classes)
    found = Phrases(
        keys=rows["key"],
        groups=rows["group"],
        splits=rows["split"].astype(np.int64),
        labels=np.array([separator.join(tags) for tags in truth], np.object_),
        written=np.array([separator.join(tags) for tags in written], np.object_),
        log_probabilities=merged.grades,
        errors=np.array([merged.errors.get(row, "") for row in merged.rows.tolist()], np.object_),
    )
    write_phrases(scoring.folder / "predictions.csv", found)
    test = found.of("test")
    names = [name_of(key.decode()) for key in test.keys]
    (commonest, _), *_ = Counter(_tags(images.tags("train"), manifest.classes)).most_common(1)
    scoring.write_submission(dict(zip(names, test.written.tolist(), strict=True)), separator.join(commonest))
    attributes = job.data.attributes_in(manifest.classes)
    odd = odd_phrases(index, manifest, best.classes, best.max_tags, attributes=attributes, causes=causes)
    vocabulary = Vocabulary(manifest.classes, attributes, odd, len(best.classes))
    return found, summarise_phrases(
        Tagged(found, truth, written), vocabulary, scoring.columns(test.keys), seed=job.seed
    )


def _tags(phrases: npt.NDArray[np.integer], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the tags of each phrase."""
    different, of = np.unique(phrases, axis=0, return_inverse=True)
    named = [tuple(names[tag] for tag in row if tag >= 0) for row in different.tolist()]
    return [named[number] for number in of.ravel().tolist()]
