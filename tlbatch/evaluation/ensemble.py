"""Ensembling: combine the predictions of several runs or folds."""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

from tlbatch.core.errors import UserError
from tlbatch.core.typing import Floats
from tlbatch.evaluation.predictions import Predictions
from tlbatch.runs.report import Ensemble

_TINY = 1e-7


def together(members: Sequence[Predictions], names: Sequence[str], how: Ensemble) -> Predictions:
    """Average the predictions of each image over all runs that predict it; folds predict different images.

    mean: arithmetic mean of the probabilities; log-mean: geometric mean; rank: mean rank of the image for each class
    within its run and split, mapped to the probability at the same quantile of the pooled predictions. Validation
    images are included if all runs have the same ones. An image that any of its runs could not read has no prediction.

    Raises
    ------
    UserError
        When classes, groups or labels differ.
    """
    for member, name in zip(members, names, strict=True):
        if member.classes != members[0].classes:
            raise UserError(f"{name}: its classes differ from those of {names[0]}; name runs of one task")
    test = _mean([member.of("test") for member in members], how, names)
    parts = [test]
    val = [member.of("val") for member in members]
    if len(val[0].keys) and all(np.array_equal(member.keys, val[0].keys) for member in val):
        parts.insert(0, _mean(val, how, names))
    return Predictions(
        test.classes,
        *(np.concatenate([getattr(part, name) for part in parts]) for name in
          ("keys", "groups", "splits", "labels", "probabilities", "errors")),
    )  # fmt: skip


def _mean(members: Sequence[Predictions], how: Ensemble, names: Sequence[str]) -> Predictions:
    keys, first, place = np.unique(
        np.concatenate([member.keys for member in members]), return_index=True, return_inverse=True
    )
    times = np.bincount(place, minlength=len(keys))
    groups, labels, splits, errors = (
        np.concatenate([getattr(member, name) for member in members])
        for name in ("groups", "labels", "splits", "errors")
    )
    for what, column in (("label", labels), ("group", groups)):
        other = np.flatnonzero(column != column[first][place])
        if len(other):
            raise UserError(
                f"{keys[place[other[0]]].decode()}: has different {what}s in {', '.join(names)}; name runs on the "
                "same labels"
            )
    given = [member.probabilities.astype(np.float64) for member in members]
    values = np.concatenate([_comparable(one, how) for one in given])
    sums = np.zeros((len(keys), values.shape[1]))
    np.add.at(sums, place, values)
    mean: Floats = sums / times[:, None]
    if how == "rank":
        mean = _at_ranks(mean, np.concatenate(given))
    mean = softmax(mean, axis=1) if how == "log-mean" else mean / mean.sum(axis=1, keepdims=True)
    why = errors[first].copy()
    for number in np.flatnonzero(errors != ""):
        why[place[number]] = errors[number]
    return Predictions(
        members[0].classes, keys, groups[first], splits[first], labels[first], mean.astype(np.float32), why
    )


def _comparable(probabilities: Floats, how: Ensemble) -> Floats:
    if how == "mean":
        return probabilities
    if how == "log-mean":
        return np.asarray(np.log(probabilities.clip(_TINY, 1)))
    return _ranks(probabilities)


def _ranks(values: Floats) -> Floats:
    """Rank each column, scaled to 0 to 1 (Hazen 1914); rows with NaN stay NaN."""
    read = ~np.isnan(values).any(axis=1)
    ranks = np.full_like(values, np.nan)
    ranks[read] = (rankdata(values[read], axis=0) - 0.5) / max(1, int(read.sum()))
    return ranks


def _at_ranks(mean: Floats, pooled: Floats) -> Floats:
    """Map mean ranks to the quantiles of each column of ``pooled``, which preserves the class frequencies."""
    found, pooled = _ranks(mean), pooled[~np.isnan(pooled).any(axis=1)]
    read = ~np.isnan(found).any(axis=1)
    for number in range(mean.shape[1] if read.any() else 0):
        found[read, number] = np.quantile(pooled[:, number], found[read, number], method="hazen")
    return found
