"""Ensembling: combine the predictions of several runs or folds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
    Raises UserError if classes, groups or labels differ.
    """
    for member, name in zip(members, names, strict=True):
        if member.classes != members[0].classes:
            raise UserError(f"{name}: its classes differ from those of {names[0]}; name runs of one task")
    test = _mean([member.of("test") for member in members], how, names)
    parts = [test]
    val = [member.of("val") for member in members]
    if len(val[0].keys) and all(np.array_equal(member.keys, val[0].keys) for member in val):
        parts.insert(0, _mean(val, how, names))
    return replace(test, **_columns(parts))


def _columns(members: Sequence[Predictions]) -> dict[str, Any]:
    return {name: np.concatenate([member.arrays[name] for member in members]) for name in members[0].arrays}


def _mean(members: Sequence[Predictions], how: Ensemble, names: Sequence[str]) -> Predictions:
    columns = _columns(members)
    keys, first, place = np.unique(columns["keys"], return_index=True, return_inverse=True)
    times = np.bincount(place, minlength=len(keys))
    for what in ("label", "group"):
        column = columns[f"{what}s"]
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
    errors = columns["errors"][first]
    for number in np.flatnonzero(columns["errors"] != ""):
        errors[place[number]] = columns["errors"][number]
    each = {name: column[first] for name, column in columns.items()}
    return replace(members[0], **each | {"probabilities": mean.astype(np.float32), "errors": errors})


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
