"""Scores of images with several tags, a short ordered phrase each, with intervals over groups."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from nltk.metrics.distance import edit_distance
from nltk.translate.bleu_score import modified_precision
from sklearn.preprocessing import MultiLabelBinarizer

from tlbatch.metrics.bootstrap import estimate, group_sums_of_values, proportion, resample
from tlbatch.runs.report import Estimate, OddPhrases, TagScores

_ORDERS = 4
_NO_IMAGES = "no images"
Phrase = Sequence[str]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Vocabulary:
    """All tags that there are, and what they say."""

    tags: Sequence[str]
    attributes: Mapping[str, Sequence[str]]
    """Tags of which an image has one or none, by name."""
    odd: OddPhrases
    num_writable: int


def score_tags(
    truth: Sequence[Phrase],
    predicted: Sequence[Phrase],
    groups: npt.NDArray[np.int64],
    vocabulary: Vocabulary,
    *,
    seed: int,
) -> TagScores:
    """Exact match, edit distance, BLEU, F1 of every tag, and accuracy of every attribute.

    An exact match has the same tags in the same order. The edit distance (Levenshtein 1966) counts tags to insert,
    delete or replace, a mean over images. BLEU (Papineni et al. 2002) is that of all images together, of sequences of
    one up to four tags, or as many as the longest true phrase has. F1 and the accuracy of an attribute, which is right
    where all its tags are and no other one of it, do not look at the order; their means are over the tags and
    attributes that a true phrase has, so that they are of the same ones for all runs.

    Parameters
    ----------
    truth, predicted
        Tags of each image in their order, n each.
    groups
        From 0, (n,).

    Raises
    ------
    ValueError
        When a phrase holds something else.
    """
    tags = vocabulary.tags
    unknown = {tag for phrase in (*truth, *predicted) for tag in phrase} - set(tags)
    if unknown:
        raise ValueError(f"not among the tags: {', '.join(sorted(unknown))}")
    if not truth:
        return _undefined(vocabulary)
    sums, num_groups = _drawn_sums(truth, predicted, groups, vocabulary, seed=seed)
    (exact,) = _shares(sums, "exact", num_groups)
    edits = sums["edits"] / sums["one"]
    return TagScores.model_validate(
        {
            "n": len(truth),
            "num_writable": vocabulary.num_writable,
            "odd": vocabulary.odd,
            "exact_match": exact,
            "edit_distance": estimate(float(edits[-1, 0]), edits[:-1, 0]),
            "bleu": _bleu(sums["sequences"]),
        }
        | _f1(tags, {tag for phrase in truth for tag in phrase}, sums)
        | _attributes(truth, vocabulary.attributes, sums, num_groups)
    )


def _undefined(vocabulary: Vocabulary) -> TagScores:
    none = Estimate(value=None, undefined=_NO_IMAGES)
    return TagScores(
        n=0,
        num_writable=vocabulary.num_writable,
        odd=vocabulary.odd,
        exact_match=none,
        edit_distance=none,
        bleu=none,
        macro_f1=none,
        f1=dict.fromkeys(vocabulary.tags, none),
        mean_attribute=none,
        attributes=dict.fromkeys(vocabulary.attributes, none),
        num_with=dict.fromkeys(vocabulary.attributes, 0),
    )


def _attributes(
    truth: Sequence[Phrase], attributes: Mapping[str, Sequence[str]], sums: Mapping[str, Floats], num_groups: int
) -> dict[str, object]:
    num_with = {name: sum(bool(set(own) & set(phrase)) for phrase in truth) for name, own in attributes.items()}
    absent = Estimate(value=None, undefined="no image has one")
    shares = zip(num_with.items(), _shares(sums, "attributes", num_groups), strict=True)
    there = np.array([bool(number) for number in num_with.values()], np.bool_)
    return {
        "attributes": {name: share if number else absent for (name, number), share in shares},
        "num_with": num_with,
        "mean_attribute": _mean(sums["attributes"][:, there] / sums["one"], "none is named, or none is there"),
    }


def _shares(sums: Mapping[str, Floats], name: str, num_groups: int) -> list[Estimate]:
    """Shares of the images, one a column."""
    (total,), each = sums["one"][-1], sums[name] / sums["one"]
    return [
        proportion(int(number), int(total), drawn[:-1], num_groups=num_groups, undefined=_NO_IMAGES)
        for number, drawn in zip(sums[name][-1], each.T, strict=True)
    ]


def _drawn_sums(
    truth: Sequence[Phrase],
    predicted: Sequence[Phrase],
    groups: npt.NDArray[np.int64],
    vocabulary: Vocabulary,
    *,
    seed: int,
) -> tuple[dict[str, Floats], int]:
    """Sums over the groups of each draw, (draws + 1, columns), of which the last row is of all groups once; and how
    many groups there are.
    """
    coder = MultiLabelBinarizer(classes=list(vocabulary.tags))
    yes, answered = coder.fit_transform(truth), coder.transform(predicted)
    judged = _PhraseScorer(truth, vocabulary.attributes)
    rows = [judged(tuple(one), tuple(other)) for one, other in zip(truth, predicted, strict=True)]
    columns = {
        "one": np.ones((len(truth), 1)),
        **{name: np.array([getattr(row, name) for row in rows], np.float64) for name in _ScoredPhrases._fields},
        "hits": yes * answered,
        "sizes": yes + answered,
    }
    values = np.column_stack(list(columns.values())).astype(np.float64)
    kinds = group_sums_of_values(values, groups)
    drawn = np.concatenate([*resample(kinds, seed=seed), values.sum(axis=0, keepdims=True)])
    edges = np.cumsum([column.shape[1] for column in columns.values()])[:-1]
    return dict(zip(columns, np.split(drawn, edges, axis=1), strict=True)), kinds.num_groups


class _ScoredPhrases(NamedTuple):
    """What is added up of an image."""

    exact: list[float]
    edits: list[float]
    sequences: list[float]
    """What BLEU adds up: sequences of each length that are found, predicted and true; the first of these are tags."""
    attributes: list[float]
    """Whether each is right."""


class _PhraseScorer:
    """Judges a phrase against the true one, and remembers the pair: there are far fewer pairs than images."""

    def __init__(self, truth: Sequence[Phrase], attributes: Mapping[str, Sequence[str]]) -> None:
        self._orders = _num_orders(truth)
        self._attributes = [set(tags) for tags in attributes.values()]
        self._known: dict[tuple[Phrase, Phrase], _ScoredPhrases] = {}

    def __call__(self, truth: Phrase, predicted: Phrase) -> _ScoredPhrases:
        pair = truth, predicted
        if pair not in self._known:
            orders = range(1, self._orders + 1)
            found = [
                modified_precision([truth], predicted, order).numerator for order in orders
            ]  # which is not reduced
            self._known[pair] = _ScoredPhrases(
                [float(truth == predicted)],
                [float(edit_distance(list(truth), list(predicted)))],
                [*found, *(max(0, len(phrase) - order + 1) for phrase in (predicted, truth) for order in orders)],
                [float(tags & set(truth) == tags & set(predicted)) for tags in self._attributes],
            )
        return self._known[pair]


def _num_orders(truth: Sequence[Phrase]) -> int:
    return max(1, min(_ORDERS, max(len(phrase) for phrase in truth)))


def _bleu(sums: Floats) -> Estimate:
    """BLEU of draws and of all groups once, which stand last; sequences as long as no true phrase do not count."""
    found, predicted, true = np.split(sums, 3, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(predicted > 0, found / predicted, 0.0)
        counts = true > 0
        mean = np.exp(np.where(counts, np.log(precision), 0.0).sum(axis=1) / counts.sum(axis=1))
        every = mean * np.exp(np.minimum(0, 1 - true[:, 0] / predicted[:, 0]))
    return estimate(float(every[-1]), every[:-1])


def _f1(tags: Sequence[str], present: Container[str], sums: Mapping[str, Floats]) -> dict[str, object]:
    with np.errstate(divide="ignore", invalid="ignore"):
        each = 2 * sums["hits"] / sums["sizes"]
    of_tags = {
        tag: estimate(float(each[-1, at]), each[:-1, at], undefined="neither there nor predicted")
        for at, tag in enumerate(tags)
    }
    there = np.array([tag in present for tag in tags], np.bool_)
    return {"f1": of_tags, "macro_f1": _mean(each[:, there], "no tag is there")}


def _mean(each: Floats, undefined: str) -> Estimate:
    """The mean over columns that are defined, of draws and of all groups once, which stand last."""
    counts = (~np.isnan(each)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        means = np.nansum(each, axis=1) / np.where(counts, counts, np.nan)
    return estimate(float(means[-1]), means[:-1], undefined=undefined)
