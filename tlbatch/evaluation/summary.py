"""Evaluation of predictions: scores, classes, binary questions, calibration, subgroups, deployment prevalence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tlbatch.config.base import Metric, SplitName
from tlbatch.config.report import Reporting
from tlbatch.core.text import counted
from tlbatch.core.typing import Bools, Floats
from tlbatch.evaluation.external_leaderboards import Named, placed
from tlbatch.evaluation.predictions import Predictions
from tlbatch.metrics.bootstrap import numbered
from tlbatch.metrics.calibration import calibrate, evaluate_temperature, tempered
from tlbatch.metrics.confusion import (
    Classified,
    confusion,
    score_all_with_intervals,
    score_deployed,
    score_with_intervals,
)
from tlbatch.metrics.roc import at_threshold, rank, threshold_for
from tlbatch.runs.records import SPLITS
from tlbatch.runs.report import Deployed, Estimate, OperatingPoint, Question, Scored, ScoreName, Subgroup, Thresholds

_MOST_VALUES, _MOST_CURVES = 30, 20
Fitted = tuple[float | None, bool, str]
"""A temperature, whether it is applied, and why."""
_OF_GRADES: tuple[ScoreName, ...] = ("quadratic_kappa", "linear_kappa", "grade_error")
_NO_ORDER = Estimate(value=None, undefined="the classes are not ordered")


@dataclass(frozen=True)
class ReportSettings:
    """Settings of a report."""

    metric: Metric
    reporting: Reporting
    seed: int
    columns: Mapping[str, Sequence[str]]
    """Values of columns of the labels file for each test image, readable or not."""
    ordered: bool
    """Whether the classes are grades: distances between unordered classes are meaningless."""

    def meant(self, scores: Mapping[ScoreName, Estimate]) -> dict[ScoreName, Estimate]:
        """Return the scores, with those of ordered classes undefined where the classes have no order."""
        return {name: found if self.ordered or name not in _OF_GRADES else _NO_ORDER for name, found in scores.items()}


def fit_temperature_on(tuning: Predictions) -> Fitted:
    """Fit a temperature on validation or out-of-fold predictions, and decide whether to apply it."""
    images = "validation images" if _is_val(tuning) else "out-of-fold predictions"
    tuning = tuning.where(tuning.is_read)
    return evaluate_temperature(tuning.probabilities, tuning.labels, numbered(tuning.groups), images=images)


def _is_val(tuning: Predictions) -> bool:
    return bool((tuning.splits == SPLITS.index("val")).all())


def temper(found: Predictions, fitted: Fitted) -> Predictions:
    """Apply the fitted temperature to predictions, if it is kept."""
    temperature, kept, _ = fitted
    if temperature is None or not kept:
        return found
    probabilities = found.probabilities.copy()
    read = found.is_read
    probabilities[read] = tempered(probabilities[read], temperature)
    same = probabilities.argmax(axis=1) == found.probabilities.argmax(axis=1)  # except for ties at float32 precision
    probabilities[read & ~same] = found.probabilities[read & ~same]
    return replace(found, probabilities=probabilities)


def summarise(
    found: Predictions,
    raw: Predictions,
    tuning: Predictions,
    fitted: Fitted,
    settings: ReportSettings,
    *,
    names: Sequence[str],
    thresholds: Thresholds | None,
) -> Scored:
    """Score the readable test images.

    Parameters
    ----------
    found
        Predictions at the temperature that is applied.
    raw
        The same predictions without temperature scaling.
    tuning
        Validation or out-of-fold predictions at the same temperature, on which thresholds of questions are chosen.
    fitted
        The result of `fit_temperature_on`.
    names
        Names of the test images, readable or not.
    """
    every, uncalibrated = found.of("test"), raw.of("test")
    read, uncalibrated = every.is_read, uncalibrated.where(uncalibrated.is_read)
    test, seed, reporting = every.where(read), settings.seed, settings.reporting
    decided = test.decided
    few = len(found.classes) <= _MOST_CURVES
    ranked = [
        rank(test.labels == number, test.probabilities[:, number], decided.groups, curves=few)
        for number in range(len(found.classes))
    ]
    scores, classes = score_all_with_intervals(decided, found.classes, ranked, seed=seed)
    columns = {name: np.array(values, np.object_)[read] for name, values in settings.columns.items()}
    return Scored(
        metric=settings.metric,
        score=scores[settings.metric].value,
        n=len(test.keys),
        num_groups=len(np.unique(test.groups)),
        num_errors=int((~read).sum()),
        scores=settings.meant(scores),
        classes=classes,
        confusion=confusion(decided),
        questions=tuple(
            _question(name, positive, test, tuning, settings) for name, positive in reporting.questions.items()
        ),
        calibration=calibrate(uncalibrated.probabilities, test.labels, decided.groups, fitted, seed=seed),
        thresholds=thresholds,
        deployed=_deployed(decided, found.classes, settings),
        subgroups=tuple(_subgroups(decided, columns, settings)),
        external=placed(
            Named([name for name, ok in zip(names, read, strict=True) if ok], decided, found.classes),
            settings.metric,
            reporting,
        ),
    )


def _deployed(decided: Classified, classes: Sequence[str], settings: ReportSettings) -> Deployed | None:
    prior = settings.reporting.deploy_prior
    if not prior:
        return None
    shares = np.array([prior.get(name, 0.0) for name in classes])
    shares = shares / shares.sum()
    scores = score_deployed(decided, shares, classes, seed=settings.seed)
    return Deployed(prior=tuple(shares.tolist()), scores=settings.meant(scores))


def _question(
    name: str, positive: Sequence[str], images: Predictions, tuning: Predictions, settings: ReportSettings
) -> Question:
    """Answer a question on the test images, with thresholds chosen on ``tuning``."""
    yes = np.isin(np.array(images.classes, np.object_), positive)
    tuning = tuning.where(tuning.is_read)
    (truth, scores), others = (
        (yes[some.labels], some.probabilities[:, yes].astype(np.float64).sum(axis=1)) for some in (images, tuning)
    )
    where = "validation" if _is_val(tuning) else "out-of-fold predictions"
    groups = numbered(images.groups)
    decided = yes[images.decided.y_pred]
    aim, seed = "predicted class, no threshold", settings.seed
    points = [at_threshold(truth, decided, groups, aim=aim, threshold=None, seed=seed)]
    aims = [(f"sensitivity {value:g}", value, 0.0) for value in settings.reporting.sensitivity]
    aims += [(f"specificity {value:g}", 0.0, value) for value in settings.reporting.specificity]
    for wanted, sensitivity, specificity in aims:
        threshold = threshold_for(*others, sensitivity=sensitivity, specificity=specificity)
        aim = f"{wanted} on {where}"
        if threshold is None:
            none, aim = Estimate(value=None, undefined="no threshold"), f"{aim}: positive and negative images required"
            scored = dict.fromkeys(("sensitivity", "specificity", "ppv", "npv"), none)
            points.append(OperatingPoint(aim=aim, threshold=None, counts=(0, 0, 0, 0), **scored))
            continue
        points.append(at_threshold(truth, scores >= threshold, groups, aim=aim, threshold=threshold, seed=seed))
    ranked = rank(truth, scores, groups)
    return Question(
        **dict(ranked), name=name, positive=tuple(positive), num_positive=int(truth.sum()), points=tuple(points)
    )


def _subgroups(
    decided: Classified, columns: Mapping[str, npt.NDArray[np.object_]], settings: ReportSettings
) -> list[Subgroup]:
    found = []
    for column, values in columns.items():
        for value, some in values_of(values):
            own = decided.where(some)
            scores = settings.meant(score_with_intervals(own, seed=settings.seed))
            num_groups = len(np.unique(own.groups))
            found.append(Subgroup(column=column, value=value, n=len(own.y_true), num_groups=num_groups, scores=scores))
    return found


def values_of(values: npt.NDArray[np.object_]) -> Iterator[tuple[str, Bools]]:
    """Yield the 30 most frequent values of a column (n,) in order, then the rest together, each with its mask (n,)."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    largest = sorted(names[np.argsort(-counts, kind="stable")[:_MOST_VALUES]].tolist())
    for value in largest:
        yield value, np.asarray(values == value, np.bool_)
    if len(names) > len(largest):
        yield f"({counted(len(names) - len(largest), 'less frequent value')})", ~np.isin(values.astype(str), largest)


def evaluate_thresholds(
    metric: Metric,
    cuts: tuple[Floats, Floats],
    grades: Mapping[SplitName, npt.NDArray[np.float32]],
    images: Mapping[SplitName, Predictions],
    *,
    seed: int,
) -> Thresholds:
    """Score each split with plain rounding and with the fitted thresholds.

    Parameters
    ----------
    cuts
        Thresholds of plain rounding and fitted thresholds, (num_classes - 1,) each.
    grades
        Regression output to be thresholded, NaN where an image could not be read.
    """
    scored: list[dict[SplitName, Estimate]] = []
    for cut in cuts:
        scores: dict[SplitName, Estimate] = {}
        for split, values in grades.items():
            read = images[split].is_read
            own = images[split].where(read)
            chosen = np.digitize(values[read].astype(np.float64), cut).astype(np.int64)
            decided = Classified(own.labels, chosen, numbered(own.groups), len(own.classes))
            scores[split] = score_with_intervals(decided, seed=seed)[metric]
        scored.append(scores)
    kept = not np.allclose(cuts[0], cuts[1], atol=1e-6)
    return Thresholds(fitted=tuple(cuts[1].tolist()), kept=kept, rounding=scored[0], tuned=scored[1])
