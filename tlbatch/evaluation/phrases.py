"""Predicted phrases of a run for all validation and test images, as arrays and as predictions.csv."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tlbatch.core.typing import Bools
from tlbatch.data.image_set import ImageSet
from tlbatch.data.phrase_checks import odd_phrases
from tlbatch.data.sources.base import name_of
from tlbatch.evaluation.prediction_parts import Part
from tlbatch.evaluation.predictions import PredictionTable, located, read_columns, write_predictions
from tlbatch.evaluation.scoring import Scoring
from tlbatch.evaluation.summary import values_of
from tlbatch.metrics.bootstrap import numbered
from tlbatch.metrics.confusion import Classified, score_with_intervals
from tlbatch.metrics.phrases import Vocabulary, score_tags
from tlbatch.runs.records import SPLITS, Best
from tlbatch.runs.report import SCORES, Estimate, Scored, ScoreName, Subgroup

_NO_CLASSES = Estimate(value=None, undefined="not defined for phrases")


@dataclass(frozen=True)
class Phrases(PredictionTable):
    """Images with their true and predicted phrases, each as one text."""

    labels: npt.NDArray[np.object_]
    written: npt.NDArray[np.object_]
    """Predicted phrase; empty where an image could not be read."""
    log_probabilities: npt.NDArray[np.float32]
    """Log probability of the predicted phrase, (n,); NaN where an image could not be read."""

    @property
    def is_read(self) -> Bools:
        """Whether each image could be read, (n,)."""
        return np.asarray(~np.isnan(self.log_probabilities))

    @property
    def is_right(self) -> Bools:
        """Whether each phrase matches the true one exactly, (n,)."""
        return np.asarray(self.labels == self.written, np.bool_)

    @property
    def decided(self) -> Classified:
        """Correct or not as a binary class, so that exact match is an accuracy and is compared as one."""
        right = self.is_right.astype(np.int64)
        return Classified(np.ones_like(right), right, numbered(self.groups), 2)

    @property
    def columns(self) -> tuple[Mapping[str, Sequence[str]], Mapping[str, npt.NDArray[np.float32]]]:
        """True and predicted phrase, and its log probability."""
        texts = {"label": self.labels.tolist(), "prediction": self.written.tolist()}
        return texts, {"log_probability": self.log_probabilities}


def read_phrases(path: Path) -> Phrases:
    """Read predictions.csv back, with phrases as written there; UserError if it is missing or damaged."""
    shared, texts, values = read_columns(path, ["log_probability"])
    labels, written = (np.array(texts[name], np.object_) for name in ("label", "prediction"))
    return Phrases(**shared, labels=labels, written=written, log_probabilities=values[:, 0])


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


def _subgroups(decided: Classified, columns: Mapping[str, Sequence[str]], read: Bools, *, seed: int) -> list[Subgroup]:
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
    truth, written = _tags(index["tags"][merged.rows], manifest.classes), _tags(merged.phrases, best.classes)
    found = Phrases(
        **located(index, merged),
        labels=np.array([separator.join(tags) for tags in truth], np.object_),
        written=np.array([separator.join(tags) for tags in written], np.object_),
        log_probabilities=merged.grades,
    )
    write_predictions(scoring.folder / "predictions.csv", found)
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
