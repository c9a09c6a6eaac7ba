"""Scores of predicted classes, all computed from the confusion matrix, with bootstrap intervals over groups."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from tlbatch.core.typing import Bools, Floats, Ints
from tlbatch.metrics.bootstrap import GroupSums, estimate, group_sums_of_cells, numbered, proportion, resample
from tlbatch.metrics.kappa import quadratic_kappa, weighted_kappa
from tlbatch.runs.report import SCORES, ClassScores, Estimate, Ranked, ScoreName

_TRUE, _CHOSEN, _RIGHT, _APART, _GRADES, _SQUARES = range(6)
_COLUMNS = 6


@dataclass(frozen=True)
class Classified:
    """True and predicted classes of readable, labelled images."""

    y_true: Ints
    """0 to num_classes - 1, (n,)."""
    y_pred: Ints
    """The same, (n,)."""
    groups: Ints
    """Numbered from 0, (n,)."""
    num_classes: int

    def __post_init__(self) -> None:
        for codes in (self.y_true, self.y_pred):
            if codes.dtype.kind != "i" or (len(codes) and not 0 <= codes.min() <= codes.max() < self.num_classes):
                raise ValueError(f"classes must be integers from 0 to {self.num_classes - 1}")

    def where(self, some: Bools) -> "Classified":
        """Select some of the images."""
        return Classified(self.y_true[some], self.y_pred[some], numbered(self.groups[some]), self.num_classes)

    @property
    def cells(self) -> Ints:
        """Cell of each image in the confusion matrix, row by row, (n,)."""
        return self.y_true * self.num_classes + self.y_pred


def effects(cells: Ints, num_classes: int) -> csr_array:
    """Return the contribution of an image in each cell to the sums of `table_scores`, (cells, 6 x num_classes).

    Every score depends only on these sums per class: images of the class; images predicted as the class; correct
    predictions; distance, predicted grade and its square, by true class. A replicate therefore never needs the full
    matrix of num_classes^2 cells.
    """
    y_true, y_pred = np.divmod(cells, num_classes)
    rows, ones = np.arange(len(cells)), np.ones(len(cells))
    columns = (
        (_TRUE, y_true, ones),
        (_CHOSEN, y_pred, ones),
        (_RIGHT, y_true, (y_true == y_pred).astype(np.float64)),
        (_APART, y_true, np.abs(y_true - y_pred)),
        (_GRADES, y_true, y_pred),
        (_SQUARES, y_true, y_pred**2),
    )
    values = np.concatenate([np.asarray(value, np.float64) for _, _, value in columns])
    at = np.concatenate([number * num_classes + place for number, place, _ in columns])
    return csr_array((values, (np.tile(rows, _COLUMNS), at)), shape=(len(cells), _COLUMNS * num_classes))


def table_scores(sums: Floats) -> dict[ScoreName, Floats]:
    """Compute all scores of many confusion matrices at once.

    Cohen's kappa (1960), weighted (1968) by the distance of classes or its square; Matthews' coefficient in the form of
    Gorodkin (2004).

    Parameters
    ----------
    sums
        (replicates, 6 x num_classes), see `effects`.

    Returns
    -------
    Each (replicates,), NaN where undefined.
    """
    parts = sums.reshape(len(sums), _COLUMNS, -1).transpose(1, 0, 2)
    true, y_pred, right, apart, grades, squares = parts
    numbers = np.arange(true.shape[1], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings(action="ignore"):  # means of none
        recall = right / true
        total = true.sum(1)
        agreed = right.sum(1) / total
        found: dict[ScoreName, Floats] = {
            "quadratic_kappa": quadratic_kappa(
                total, true @ numbers, grades.sum(1), true @ numbers**2, squares.sum(1), grades @ numbers
            ),
            "accuracy": agreed,
            "balanced_accuracy": np.nanmean(recall, axis=1),
            "grade_error": apart.sum(1) / total,
        }
        chance = (true * y_pred).sum(1) / total**2
        below, under = true.cumsum(1)[:, :-1], y_pred.cumsum(1)[:, :-1]
        crossings = (below * (total[:, None] - under) + under * (total[:, None] - below)).sum(1) / total**2
        f1 = 2 * right / (true + y_pred)
        spread = (total**2 - (y_pred**2).sum(1)) * (total**2 - (true**2).sum(1))
        return found | {
            "linear_kappa": weighted_kappa(found["grade_error"], crossings),
            "kappa": weighted_kappa(1 - agreed, 1 - chance),
            "macro_f1": np.nanmean(f1, axis=1),
            "weighted_f1": np.nansum(true * f1, axis=1) / total,
            "mcc": (total * right.sum(1) - (true * y_pred).sum(1)) / np.sqrt(np.where(spread > 0, spread, np.nan)),
        }


@dataclass(frozen=True)
class Tables:
    """Bootstrap replicates of a confusion matrix."""

    kinds: GroupSums
    sums: Floats
    """(replicates, 6 x num_classes)."""


def bootstrap_tables(decided: Classified, *, seed: int) -> Tables:
    """Resample the groups, 10,000 replicates."""
    cells, used = group_sums_of_cells(decided.cells, decided.groups)
    kinds = cells.times(effects(used, decided.num_classes))
    return Tables(kinds, np.concatenate(list(resample(kinds, seed=seed))))


def score_with_intervals(decided: Classified, *, seed: int) -> dict[ScoreName, Estimate]:
    """Compute all scores with their intervals; undefined ones state the reason."""
    if not len(decided.y_true):
        return {name: Estimate(value=None, undefined="no images") for name in SCORES}
    return _scored(decided, bootstrap_tables(decided, seed=seed))


def _scored(decided: Classified, tables: Tables) -> dict[ScoreName, Estimate]:
    replicates, points = table_scores(tables.sums), point_scores(decided)
    found = {name: estimate(points[name], replicates[name], undefined=_why(decided)) for name in SCORES}
    total, right = len(decided.y_true), int((decided.y_true == decided.y_pred).sum())
    accuracy, groups = replicates["accuracy"], tables.kinds.num_groups
    return found | {"accuracy": proportion(right, total, accuracy, num_groups=groups, undefined="no images")}


def score_all_with_intervals(
    decided: Classified, classes: Sequence[str], ranked: Sequence[Ranked], *, seed: int
) -> tuple[dict[ScoreName, Estimate], tuple[ClassScores, ...]]:
    """Compute all scores, overall and by class, from the same replicates."""
    if not len(decided.y_true):
        none = Estimate(value=None, undefined="no images")
        empty = [
            ClassScores(**dict(one), name=name, support=0, predicted=0, precision=none, recall=none, f1=none)
            for name, one in zip(classes, ranked, strict=True)
        ]
        return score_with_intervals(decided, seed=seed), tuple(empty)
    tables = bootstrap_tables(decided, seed=seed)
    return _scored(decided, tables), _by_class(decided, tables, classes, ranked)


def score_deployed(
    decided: Classified, prior: Floats, classes: Sequence[str], *, seed: int
) -> dict[ScoreName, Estimate]:
    """Compute all scores for a class prevalence other than that of the test images.

    The images of each true class are weighted so that the classes have this prevalence (importance weights), in every
    replicate.

    Parameters
    ----------
    prior
        Prevalence of each class, (num_classes,).
    """
    absent = [name for number, name in enumerate(classes) if prior[number] and not (decided.y_true == number).any()]
    if absent:
        return {name: Estimate(value=None, undefined=f"no test images of class {absent[0]}") for name in SCORES}
    decided = decided.where(prior[decided.y_true] > 0)
    counts = np.maximum(1, np.bincount(decided.y_true, minlength=len(prior)))
    points = point_scores(decided, (prior / counts)[decided.y_true])
    cells, used = group_sums_of_cells(decided.cells, decided.groups)
    of = used // decided.num_classes
    true = csr_array((np.ones(len(used)), (range(len(used)), of)), shape=(len(used), len(prior)))
    sums = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for drawn in resample(cells, seed=seed):
            weights = np.where(prior > 0, prior / (drawn @ true), 0)
            sums.append((drawn * weights[:, of]) @ effects(used, decided.num_classes))
    replicates = table_scores(np.concatenate(sums))
    return {name: estimate(points[name], replicates[name], undefined=_why(decided)) for name in SCORES}


def point_scores(decided: Classified, weights: npt.NDArray[np.floating[Any]] | None = None) -> dict[ScoreName, float]:
    """Compute all scores of the images as they are; NaN where undefined.

    Parameters
    ----------
    weights
        Of the images, (n,); None: equal weights.
    """
    cells, of = np.unique(decided.cells, return_inverse=True)
    each = np.bincount(of, weights, minlength=len(cells)).astype(np.float64)
    scores = table_scores(np.asarray(each @ effects(cells, decided.num_classes))[None])
    return {name: float(values[0]) for name, values in scores.items()}


def _why(decided: Classified) -> str:
    one_class = len(np.unique(decided.y_true)) == 1
    return "all images belong to one class" if one_class else "all images are predicted as one class"


def confusion(decided: Classified) -> tuple[tuple[int, ...], ...]:
    """Count the images: rows are true classes, columns predicted classes."""
    counts = np.bincount(decided.cells, minlength=decided.num_classes**2)
    return tuple(tuple(row) for row in counts.reshape(decided.num_classes, -1).tolist())


def _by_class(
    decided: Classified, tables: Tables, classes: Sequence[str], ranked: Sequence[Ranked]
) -> tuple[ClassScores, ...]:
    matrix, rows = np.array(confusion(decided)), []
    for number, name in enumerate(classes):
        hits, support, total = int(matrix[number, number]), int(matrix[number].sum()), int(matrix[:, number].sum())
        true, y_pred, right = (tables.sums[:, part * len(classes) + number] for part in (_TRUE, _CHOSEN, _RIGHT))
        having, chosen = (tables.kinds.having(part * len(classes) + number) for part in (_TRUE, _CHOSEN))
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall, f1 = right / y_pred, right / true, 2 * right / (true + y_pred)
        point = 2 * hits / (support + total) if support + total else None
        rows.append(
            ClassScores(
                **dict(ranked[number]),
                name=name,
                support=support,
                predicted=total,
                precision=proportion(hits, total, precision, num_groups=chosen, undefined="never predicted"),
                recall=proportion(hits, support, recall, num_groups=having, undefined="no images of this class"),
                f1=estimate(point, f1, undefined="neither present nor predicted"),
            )
        )
    return tuple(rows)
