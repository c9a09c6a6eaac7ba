"""Scores of decided classes, all from the table of true and predicted classes, with intervals over groups."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    precision_recall_fscore_support,
)

from tlbatch.metrics.bootstrap import Kinds, estimate, kinds_of_cells, numbered, proportion, redrawn
from tlbatch.runs.report import SCORES, ClassScores, Estimate, Ranked, ScoreName

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_TRUE, _CHOSEN, _RIGHT, _APART, _GRADES, _SQUARES = range(6)
_COLUMNS = 6
_SHARES: tuple[ScoreName, ...] = ("accuracy",)


@dataclass(frozen=True)
class Decided:
    """Decisions on images that are read and labelled."""

    truth: Ints
    """0 to num_classes - 1, (n,)."""
    chosen: Ints
    """The same, (n,)."""
    groups: Ints
    """From 0, (n,)."""
    num_classes: int

    def __post_init__(self) -> None:
        for codes in (self.truth, self.chosen):
            if codes.dtype.kind != "i" or (len(codes) and not 0 <= codes.min() <= codes.max() < self.num_classes):
                raise ValueError(f"classes must be whole numbers from 0 to {self.num_classes - 1}")

    def where(self, some: npt.NDArray[np.bool_]) -> "Decided":
        """Some of the images."""
        return Decided(self.truth[some], self.chosen[some], numbered(self.groups[some]), self.num_classes)


def effects(truth: Ints, chosen: Ints, num_classes: int) -> csr_array:
    """What an image of each cell adds to the sums of `table_scores`, (cells, 6 x num_classes).

    Every score depends on these sums by true class alone: images; images predicted as the class; those that are right;
    distance, predicted grade and its square. So no draw needs the whole table, which has num_classes^2 cells.
    """
    rows = np.arange(len(truth))
    columns = (
        (_TRUE, truth, np.ones(len(truth))),
        (_CHOSEN, chosen, np.ones(len(truth))),
        (_RIGHT, truth, (truth == chosen).astype(np.float64)),
        (_APART, truth, np.abs(truth - chosen)),
        (_GRADES, truth, chosen),
        (_SQUARES, truth, chosen**2),
    )
    values = np.concatenate([np.asarray(value, np.float64) for _, _, value in columns])
    at = np.concatenate([number * num_classes + place for number, place, _ in columns])
    return csr_array((values, (np.tile(rows, _COLUMNS), at)), shape=(len(truth), _COLUMNS * num_classes))


def table_scores(sums: Floats) -> dict[ScoreName, Floats]:
    """All scores of many tables at once.

    Cohen's kappa (1960), weighted (1968) by the distance of classes or its square; Matthews' coefficient in the form of
    Gorodkin (2004).

    Parameters
    ----------
    sums
        (draws, 6 x num_classes), see `effects`.

    Returns
    -------
    Each (draws,), NaN where undefined.
    """
    parts = sums.reshape(len(sums), _COLUMNS, -1).transpose(1, 0, 2)
    true, chosen, right, apart, grades, squares = parts
    numbers = np.arange(true.shape[1], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no classes is NaN
        recall = right / true
        total = true.sum(1)
        agreed = right.sum(1) / total
        observed = (true @ numbers**2 - 2 * grades @ numbers + squares.sum(1)) / total
        by_chance = (true @ numbers**2 + squares.sum(1) - 2 * (true @ numbers) * grades.sum(1) / total) / total
        found: dict[ScoreName, Floats] = {
            "quadratic_kappa": _kappa(observed, by_chance),
            "accuracy": agreed,
            "balanced_accuracy": np.nanmean(recall, axis=1),
            "grade_error": apart.sum(1) / total,
        }
        chance = (true * chosen).sum(1) / total**2
        below, under = true.cumsum(1)[:, :-1], chosen.cumsum(1)[:, :-1]
        crossings = (below * (total[:, None] - under) + under * (total[:, None] - below)).sum(1) / total**2
        f1 = 2 * right / (true + chosen)
        spread = (total**2 - (chosen**2).sum(1)) * (total**2 - (true**2).sum(1))
        return found | {
            "linear_kappa": _kappa(found["grade_error"], crossings),
            "kappa": _kappa(1 - agreed, 1 - chance),
            "macro_f1": np.nanmean(f1, axis=1),
            "weighted_f1": np.nansum(true * f1, axis=1) / total,
            "mcc": (total * right.sum(1) - (true * chosen).sum(1)) / np.sqrt(np.where(spread > 0, spread, np.nan)),
        }


def _kappa(observed: Floats, by_chance: Floats) -> Floats:
    return 1 - observed / np.where(by_chance > 1e-12, by_chance, np.nan)


@dataclass(frozen=True)
class Tables:
    """Redrawn tables of some decisions."""

    kinds: Kinds
    sums: Floats
    """(draws, 6 x num_classes)."""
    num_classes: int

    def of_class(self, part: int, number: int) -> Floats:
        """One sum of one class in all draws."""
        return self.sums[:, part * self.num_classes + number]


def redraw(decided: Decided, *, seed: int) -> Tables:
    """Draw the groups again, 10,000 times."""
    cells, used = kinds_of_cells(decided.truth * decided.num_classes + decided.chosen, decided.groups)
    kinds = cells.times(effects(used // decided.num_classes, used % decided.num_classes, decided.num_classes))
    return Tables(kinds, np.concatenate(list(redrawn(kinds, seed=seed))), decided.num_classes)


def judge(decided: Decided, *, seed: int) -> dict[ScoreName, Estimate]:
    """All scores with their intervals; undefined ones say why."""
    if not len(decided.truth):
        return {name: Estimate(value=None, undefined="no images") for name in SCORES}
    return _judged(decided, redraw(decided, seed=seed))


def _judged(decided: Decided, tables: Tables) -> dict[ScoreName, Estimate]:
    draws, points = table_scores(tables.sums), point_scores(decided)
    found = {name: estimate(points[name], draws[name], undefined=_why(decided)) for name in SCORES}
    total, right = len(decided.truth), int((decided.truth == decided.chosen).sum())
    groups = tables.kinds.num_groups
    return found | {
        name: proportion(right, total, draws[name], num_groups=groups, undefined="no images") for name in _SHARES
    }


def judge_all(
    decided: Decided, classes: Sequence[str], ranked: Sequence[Ranked], *, seed: int
) -> tuple[dict[ScoreName, Estimate], tuple[ClassScores, ...]]:
    """All scores, and those of each class, from the same draws."""
    if not len(decided.truth):
        none = Estimate(value=None, undefined="no images")
        empty = [
            ClassScores(**dict(one), name=name, support=0, predicted=0, precision=none, recall=none, f1=none)
            for name, one in zip(classes, ranked, strict=True)
        ]
        return judge(decided, seed=seed), tuple(empty)
    tables = redraw(decided, seed=seed)
    return _judged(decided, tables), _by_class(decided, tables, classes, ranked)


def judge_deployed(decided: Decided, prior: Floats, classes: Sequence[str], *, seed: int) -> dict[ScoreName, Estimate]:
    """All scores for classes in other shares than those of the test images.

    The images of each true class are weighed so that the classes have these shares (importance weights), in every draw.

    Parameters
    ----------
    prior
        Share of each class, (num_classes,).
    """
    absent = [name for number, name in enumerate(classes) if prior[number] and not (decided.truth == number).any()]
    if absent:
        return {name: Estimate(value=None, undefined=f"no test image of class {absent[0]}") for name in SCORES}
    decided = decided.where(prior[decided.truth] > 0)
    points = point_scores(
        decided, (prior / np.maximum(1, np.bincount(decided.truth, minlength=len(prior))))[decided.truth]
    )
    cells, used = kinds_of_cells(decided.truth * decided.num_classes + decided.chosen, decided.groups)
    of, chosen = used // decided.num_classes, used % decided.num_classes
    true = csr_array((np.ones(len(used)), (range(len(used)), of)), shape=(len(used), len(prior)))
    sums = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for drawn in redrawn(cells, seed=seed):
            weights = np.where(prior > 0, prior / (drawn @ true), 0)
            sums.append((drawn * weights[:, of]) @ effects(of, chosen, decided.num_classes))
    draws = table_scores(np.concatenate(sums))
    return {name: estimate(points[name], draws[name], undefined=_why(decided)) for name in SCORES}


def point_scores(decided: Decided, weights: npt.NDArray[np.floating[Any]] | None = None) -> dict[ScoreName, float]:
    """All scores by scikit-learn over the full list of classes; NaN where one is undefined.

    Parameters
    ----------
    weights
        Of the images, (n,); without them all weigh the same.
    """
    codes, cell = np.unique(decided.truth * decided.num_classes + decided.chosen, return_inverse=True)
    true, chosen = codes // decided.num_classes, codes % decided.num_classes
    each = np.bincount(cell, weights, minlength=len(codes)).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is undefined becomes NaN here
        every = range(decided.num_classes)
        constant = len(set(true) | set(chosen)) == 1
        one_sided = len(set(true)) == 1 or len(set(chosen)) == 1
        kappas = [
            np.nan if constant else cohen_kappa_score(true, chosen, labels=every, weights=way, sample_weight=each)
            for way in ("quadratic", "linear", None)
        ]
        f1 = [
            f1_score(true, chosen, labels=every, average=way, sample_weight=each, zero_division=np.nan)
            for way in ("macro", "weighted")
        ]
        return {
            "quadratic_kappa": float(kappas[0]),
            "linear_kappa": float(kappas[1]),
            "kappa": float(kappas[2]),
            "accuracy": float(accuracy_score(true, chosen, sample_weight=each)),
            "balanced_accuracy": float(balanced_accuracy_score(true, chosen, sample_weight=each)),
            "macro_f1": float(f1[0]),
            "weighted_f1": float(f1[1]),
            "mcc": np.nan if one_sided else float(matthews_corrcoef(true, chosen, sample_weight=each)),
            "grade_error": float(mean_absolute_error(true, chosen, sample_weight=each)),
        }


def _why(decided: Decided) -> str:
    if len(np.unique(decided.truth)) == 1:
        return "all images are of one class"
    return "all images were given one class"


def confusion(decided: Decided) -> tuple[tuple[int, ...], ...]:
    """Counts, a row for each true class and a column for each predicted one."""
    if not len(decided.truth):
        return ((0,) * decided.num_classes,) * decided.num_classes
    matrix = confusion_matrix(decided.truth, decided.chosen, labels=range(decided.num_classes))
    return tuple(tuple(row) for row in matrix.tolist())


def _by_class(
    decided: Decided, tables: Tables, classes: Sequence[str], ranked: Sequence[Ranked]
) -> tuple[ClassScores, ...]:
    codes, cell = np.unique(decided.truth * decided.num_classes + decided.chosen, return_inverse=True)
    found = precision_recall_fscore_support(
        codes // decided.num_classes,
        codes % decided.num_classes,
        labels=range(len(classes)),
        sample_weight=np.bincount(cell).astype(np.float64),
        zero_division=np.nan,
    )
    predicted = np.bincount(decided.chosen, minlength=len(classes))
    rows = []
    for number, name in enumerate(classes):
        true, chosen, right = (tables.of_class(part, number) for part in (_TRUE, _CHOSEN, _RIGHT))
        support, total = int(found[3][number]), int(predicted[number])
        hits = found[1][number] * support if support else 0
        having = {part: tables.kinds.having(part * tables.num_classes + number) for part in (_TRUE, _CHOSEN)}
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = (right / chosen, right / true, 2 * right / (true + chosen))
        rows.append(
            ClassScores(
                **dict(ranked[number]),
                name=name,
                support=support,
                predicted=total,
                precision=proportion(hits, total, draws[0], num_groups=having[_CHOSEN], undefined="never predicted"),
                recall=proportion(hits, support, draws[1], num_groups=having[_TRUE], undefined="no image of the class"),
                f1=estimate(found[2][number], draws[2], undefined="neither there nor predicted"),
            )
        )
    return tuple(rows)
