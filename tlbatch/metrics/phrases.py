"""Scores of predicted phrases, short ordered lists of tags, with bootstrap intervals over groups."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from nltk.metrics.distance import edit_distance
from nltk.translate.bleu_score import modified_precision
from sklearn.preprocessing import MultiLabelBinarizer

from tlbatch.core.typing import Floats, Ints
from tlbatch.metrics.bootstrap import estimate, group_sums_of_values, proportion, resample
from tlbatch.runs.report import Estimate, OddPhrases, TagScores

_ORDERS = 4
_NO_IMAGES = "no images"
Phrase = Sequence[str]


@dataclass(frozen=True)
class Vocabulary:
    """All tags, and the attributes that they describe."""

    tags: Sequence[str]
    attributes: Mapping[str, Sequence[str]]
    """Mutually exclusive tags by attribute: an image has one of them or none."""
    odd: OddPhrases
    num_writable: int


def score_tags(
    truth: Sequence[Phrase],
    predicted: Sequence[Phrase],
    groups: Ints,
    vocabulary: Vocabulary,
    *,
    seed: int,
) -> TagScores:
    """Compute exact match, edit distance, BLEU, F1 of every tag, and accuracy of every attribute.

    An exact match has the same tags in the same order. The edit distance (Levenshtein 1966) counts insertions,
    deletions and substitutions of tags, averaged over images. BLEU (Papineni et al. 2002) is computed over the corpus,
    with n-grams of up to four tags, or up to the length of the longest true phrase. F1 and attribute accuracy ignore
    the order; an attribute is correct where exactly its true tags are predicted. Their means are taken over the tags
    and attributes that occur in true phrases, so that they cover the same ones for all runs.

    Parameters
    ----------
    truth, predicted
        Tags of each image in order, n each.
    groups
        Numbered from 0, (n,).

    Raises
    ------
    ValueError
        When a phrase contains an unknown tag.
    """
    tags = vocabulary.tags
    unknown = {tag for phrase in (*truth, *predicted) for tag in phrase} - set(tags)
    if unknown:
        raise ValueError(f"unknown tags: {', '.join(sorted(unknown))}")
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
        **dict.fromkeys(("exact_match", "edit_distance", "bleu", "macro_f1", "mean_attribute"), none),
        n=0,
        num_writable=vocabulary.num_writable,
        odd=vocabulary.odd,
        f1=dict.fromkeys(vocabulary.tags, none),
        attributes=dict.fromkeys(vocabulary.attributes, none),
        num_with=dict.fromkeys(vocabulary.attributes, 0),
    )


def _attributes(
    truth: Sequence[Phrase], attributes: Mapping[str, Sequence[str]], sums: Mapping[str, Floats], num_groups: int
) -> dict[str, object]:
    num_with = {name: sum(bool(set(own) & set(phrase)) for phrase in truth) for name, own in attributes.items()}
    absent = Estimate(value=None, undefined="no image has this attribute")
    shares = zip(num_with.items(), _shares(sums, "attributes", num_groups), strict=True)
    there = np.array([bool(number) for number in num_with.values()], np.bool_)
    return {
        "attributes": {name: share if number else absent for (name, number), share in shares},
        "num_with": num_with,
        "mean_attribute": _mean(sums["attributes"][:, there] / sums["one"], "no attributes defined, or none present"),
    }


def _shares(sums: Mapping[str, Floats], name: str, num_groups: int) -> list[Estimate]:
    """Estimate one proportion of the images per column."""
    (total,), each = sums["one"][-1], sums[name] / sums["one"]
    return [
        proportion(int(number), int(total), drawn[:-1], num_groups=num_groups, undefined=_NO_IMAGES)
        for number, drawn in zip(sums[name][-1], each.T, strict=True)
    ]


def _drawn_sums(
    truth: Sequence[Phrase],
    predicted: Sequence[Phrase],
    groups: Ints,
    vocabulary: Vocabulary,
    *,
    seed: int,
) -> tuple[dict[str, Floats], int]:
    """Return sums over the groups of each replicate, (replicates + 1, columns), and the number of groups.

    The last row is the original sample: every group once.
    """
    coder = MultiLabelBinarizer(classes=list(vocabulary.tags))
    yes, answered = coder.fit_transform(truth), coder.transform(predicted)
    orders = range(1, 1 + max(1, min(_ORDERS, max(len(phrase) for phrase in truth))))
    attributes = [set(tags) for tags in vocabulary.attributes.values()]
    scored = cache(partial(_scored, orders=orders, attributes=attributes))  # far fewer distinct pairs than images
    rows = [scored(tuple(one), tuple(other)) for one, other in zip(truth, predicted, strict=True)]
    columns = {
        "one": np.ones((len(truth), 1)),
        **{name: np.array([row[name] for row in rows], np.float64) for name in rows[0]},
        "hits": yes * answered,
        "sizes": yes + answered,
    }
    values = np.column_stack(list(columns.values())).astype(np.float64)
    kinds = group_sums_of_values(values, groups)
    drawn = np.concatenate([*resample(kinds, seed=seed), values.sum(axis=0, keepdims=True)])
    edges = np.cumsum([column.shape[1] for column in columns.values()])[:-1]
    return dict(zip(columns, np.split(drawn, edges, axis=1), strict=True)), kinds.num_groups


def _scored(
    truth: Phrase, predicted: Phrase, *, orders: range, attributes: Sequence[set[str]]
) -> dict[str, list[float]]:
    """Return the sums of one image.

    Those of ``sequences`` are, for BLEU, the matched, predicted and true n-grams of each order.
    """
    matched = [modified_precision([truth], predicted, order).numerator for order in orders]  # it is not reduced
    return {
        "exact": [truth == predicted],
        "edits": [edit_distance(list(truth), list(predicted))],
        "sequences": [*matched, *(max(0, len(one) - order + 1) for one in (predicted, truth) for order in orders)],
        "attributes": [tags & set(truth) == tags & set(predicted) for tags in attributes],
    }


def _bleu(sums: Floats) -> Estimate:
    """Compute BLEU of the replicates and, in the last row, of the sample; longer n-grams than true ones are skipped."""
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
        tag: estimate(float(each[-1, at]), each[:-1, at], undefined="neither present nor predicted")
        for at, tag in enumerate(tags)
    }
    there = np.array([tag in present for tag in tags], np.bool_)
    return {"f1": of_tags, "macro_f1": _mean(each[:, there], "no tags present")}


def _mean(each: Floats, undefined: str) -> Estimate:
    """Average the defined columns of the replicates and, in the last row, of the sample."""
    counts = (~np.isnan(each)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        means = np.nansum(each, axis=1) / np.where(counts, counts, np.nan)
    return estimate(float(means[-1]), means[:-1], undefined=undefined)
