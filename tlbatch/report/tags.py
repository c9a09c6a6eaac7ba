"""Scores of images with several tags, a short ordered phrase each, with intervals over groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nltk.metrics.distance import edit_distance
from nltk.translate.bleu_score import corpus_bleu, modified_precision
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from tlbatch.job.report import Estimate, TagScores
from tlbatch.report.draws import estimate, kinds_of_values, proportion, redrawn

_ORDERS = 4
Phrase = Sequence[str]
Floats = npt.NDArray[np.floating[Any]]


def judge_tags(
    truth: Sequence[Phrase],
    predicted: Sequence[Phrase],
    groups: npt.NDArray[np.int64],
    tags: Sequence[str],
    *,
    seed: int,
) -> TagScores:
    """Exact match, edit distance, BLEU, and F1 of every tag.

    An exact match has the same tags in the same order. The edit distance (Levenshtein 1966) counts tags to insert,
    delete or replace, a mean over images. BLEU (Papineni et al. 2002) is that of all images together, of sequences of
    one up to four tags, or as many as the longest true phrase has. F1 does not look at the order.

    Parameters
    ----------
    truth, predicted
        Tags of each image in their order, n each.
    groups
        From 0, (n,).
    tags
        All that there are.

    Raises
    ------
    ValueError
        When a phrase holds something else.
    """
    unknown = {tag for phrase in (*truth, *predicted) for tag in phrase} - set(tags)
    if unknown:
        raise ValueError(f"not among the tags: {', '.join(sorted(unknown))}")
    if not truth:
        none = Estimate(value=None, undefined="no images")
        return TagScores(n=0, exact_match=none, edit_distance=none, bleu=none, f1=dict.fromkeys(tags, none))
    orders = max(1, min(_ORDERS, max(len(phrase) for phrase in truth)))
    coder = MultiLabelBinarizer(classes=list(tags))
    yes, answered = coder.fit_transform(truth), coder.transform(predicted)
    exact = np.array([list(one) == list(other) for one, other in zip(truth, predicted, strict=True)])
    edits = np.array([edit_distance(list(one), list(other)) for one, other in zip(truth, predicted, strict=True)])
    columns = [np.ones(len(truth)), exact, edits, _sequences(truth, predicted, orders), yes * answered, yes + answered]
    kinds = kinds_of_values(np.column_stack(columns).astype(np.float64), groups)
    sums = np.concatenate(list(redrawn(kinds, seed=seed)))
    total, edges = sums[:, 0], np.cumsum([3, 2 * orders + 2, len(tags)])
    _, of_bleu, hits, sizes = np.split(sums, edges, axis=1)
    f1 = f1_score(yes, answered, average=None, zero_division=np.nan)
    bleu = float(corpus_bleu([[phrase] for phrase in truth], list(predicted), weights=(1 / orders,) * orders))
    with np.errstate(divide="ignore", invalid="ignore"):
        return TagScores(
            n=len(truth),
            exact_match=proportion(
                int(exact.sum()), len(truth), sums[:, 1] / total, num_groups=kinds.num_groups, undefined="no images"
            ),
            edit_distance=estimate(float(edits.mean()), sums[:, 2] / total),
            bleu=estimate(bleu, _bleu(of_bleu, orders)),
            f1={
                tag: estimate(float(f1[at]), 2 * hits[:, at] / sizes[:, at], undefined="neither there nor predicted")
                for at, tag in enumerate(tags)
            },
        )


def _sequences(truth: Sequence[Phrase], predicted: Sequence[Phrase], orders: int) -> Floats:
    """What BLEU adds up over images: sequences found and predicted of each length, predicted and true tags."""
    rows = []
    for one, other in zip(truth, predicted, strict=True):
        found = [modified_precision([one], other, order) for order in range(1, orders + 1)]
        parts = [part.numerator for part in found], [part.denominator for part in found]  # which are not reduced
        rows.append([*parts[0], *parts[1], len(other), len(one)])
    return np.array(rows, np.float64)


def _bleu(sums: Floats, orders: int) -> Floats:
    found, possible, (predicted, true) = sums[:, :orders], sums[:, orders : 2 * orders], sums[:, 2 * orders :].T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(np.log(found / possible).mean(axis=1))
        return np.asarray(mean * np.exp(np.minimum(0, 1 - true / predicted)))
