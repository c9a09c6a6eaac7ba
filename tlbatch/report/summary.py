"""All that is said of predictions: scores, classes, questions, calibration, sub-groups, other class mixes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlbatch.job.report import (
    Calibration,
    Deployed,
    Estimate,
    OperatingPoint,
    Question,
    Scored,
    ScoreName,
    Subgroup,
    Thresholds,
)
from tlbatch.job.reporting import Reporting
from tlbatch.job.section import Metric, SplitName
from tlbatch.report.calibration import calibrate, judge_temperature, tempered
from tlbatch.report.draws import numbered
from tlbatch.report.external import Named, placed
from tlbatch.report.predictions import Predictions
from tlbatch.report.ranking import answer, area, at_threshold, threshold_for
from tlbatch.report.tables import Decided, confusion, judge, judge_all, judge_deployed

_MOST_VALUES = 30
_OF_GRADES: tuple[ScoreName, ...] = ("quadratic_kappa", "linear_kappa", "grade_error")
_NO_ORDER = Estimate(value=None, undefined="the classes have no order")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """What a report is asked beside the scores."""

    metric: Metric
    reporting: Reporting
    seed: int
    columns: Mapping[str, Sequence[str]]
    """Values of columns of the labels file for each test image, readable or not."""
    ordered: bool
    """Whether the classes are grades: without an order, distances between them mean nothing."""

    def meant(self, scores: Mapping[ScoreName, Estimate]) -> dict[ScoreName, Estimate]:
        """The scores without those that the classes cannot have."""
        return (
            dict(scores) if self.ordered else {**scores, **{name: _NO_ORDER for name in _OF_GRADES if name in scores}}
        )


def temper(found: Predictions) -> tuple[Predictions, tuple[float | None, bool, str]]:
    """Predictions at the temperature that their validation images ask for, and what is said of it."""
    val = found.of("val")
    val = val.where(val.is_read)
    fitted = judge_temperature(val.probabilities, val.labels, numbered(val.groups))
    temperature, kept, _ = fitted
    if temperature is None or not kept:
        return found, fitted
    probabilities = found.probabilities.copy()
    read = found.is_read
    probabilities[read] = tempered(probabilities[read], temperature)
    same = probabilities.argmax(axis=1) == found.probabilities.argmax(axis=1)  # but for what float32 cannot tell apart
    probabilities[read & ~same] = found.probabilities[read & ~same]
    return Predictions(
        found.classes, found.keys, found.groups, found.splits, found.labels, probabilities, found.errors
    ), fitted


def summarise(
    found: Predictions,
    raw: Predictions,
    fitted: tuple[float | None, bool, str],
    asked: Asked,
    *,
    names: Sequence[str],
    thresholds: Thresholds | None,
) -> Scored:
    """Scores of the test images that could be read.

    Parameters
    ----------
    found
        Predictions at the temperature that is kept.
    raw
        The same as they were predicted.
    fitted
        What `temper` said.
    names
        Of the test images, readable or not.
    """
    every = found.of("test")
    read = every.is_read
    test, seed, reporting = every.where(read), asked.seed, asked.reporting
    decided = test.decided
    areas = [
        area(test.labels == number, test.probabilities[:, number], decided.groups)
        for number in range(len(found.classes))
    ]
    scores, classes = judge_all(decided, found.classes, areas, seed=seed)
    columns = {name: np.array(values, np.object_)[read] for name, values in asked.columns.items()}
    return Scored(
        metric=asked.metric,
        score=scores[asked.metric].value,
        n=len(test.keys),
        num_groups=len(np.unique(test.groups)),
        num_errors=int((~read).sum()),
        scores=asked.meant(scores),
        classes=classes,
        confusion=confusion(decided),
        questions=tuple(_question(name, positive, found, asked) for name, positive in reporting.questions.items()),
        calibration=_calibration(raw, fitted, seed),
        thresholds=thresholds,
        deployed=_deployed(decided, found.classes, asked),
        subgroups=tuple(_subgroups(decided, columns, asked)),
        external=placed(
            Named([name for name, ok in zip(names, read, strict=True) if ok], decided, found.classes),
            asked.metric,
            reporting,
        ),
    )


def _calibration(raw: Predictions, fitted: tuple[float | None, bool, str], seed: int) -> Calibration | None:
    test = raw.of("test")
    test = test.where(test.is_read)
    return calibrate(test.probabilities, test.labels, numbered(test.groups), fitted, seed=seed)


def _deployed(decided: Decided, classes: Sequence[str], asked: Asked) -> Deployed | None:
    prior = asked.reporting.deploy_prior
    if not prior:
        return None
    shares = np.array([prior.get(name, 0.0) for name in classes])
    shares = shares / shares.sum()
    return Deployed(prior=tuple(shares.tolist()), scores=asked.meant(judge_deployed(decided, shares, seed=asked.seed)))


def _question(name: str, positive: Sequence[str], found: Predictions, asked: Asked) -> Question:
    """Thresholds are those of validation, where there are some; what is answered is test."""
    yes = np.isin(np.arange(len(found.classes)), [found.classes.index(one) for one in positive])
    splits: dict[SplitName, tuple[Bools, npt.NDArray[np.float64], Predictions]] = {}
    for split in ("val", "test"):
        images = found.of(split)
        images = images.where(images.is_read)
        splits[split] = yes[images.labels], images.probabilities[:, yes].astype(np.float64).sum(axis=1), images
    truth, scores, images = splits["test"]
    groups = numbered(images.groups)
    decided = yes[images.decided.chosen]
    points = [at_threshold(truth, decided, groups, aim="as the classes were decided", threshold=None, seed=asked.seed)]
    aims = [("sensitivity", value) for value in asked.reporting.sensitivity]
    aims += [("specificity", value) for value in asked.reporting.specificity]
    for kind, value in aims:
        threshold = threshold_for(splits["val"][0], splits["val"][1], **{kind: value})
        aim = f"{kind} {value:g} on validation"
        if threshold is None:
            points.append(_not_found(f"{aim}: no validation images of both answers"))
        else:
            points.append(
                at_threshold(truth, scores >= threshold, groups, aim=aim, threshold=threshold, seed=asked.seed)
            )
    return answer(name, positive, truth=truth, scores=scores, groups=groups, points=tuple(points))


def _not_found(aim: str) -> OperatingPoint:
    none = Estimate(value=None, undefined="no threshold")
    return OperatingPoint(
        aim=aim, threshold=None, counts=(0, 0, 0, 0), sensitivity=none, specificity=none, ppv=none, npv=none
    )


def _subgroups(decided: Decided, columns: Mapping[str, npt.NDArray[np.object_]], asked: Asked) -> list[Subgroup]:
    """The largest 30 values of every column, in their order."""
    found = []
    for column, values in columns.items():
        names, counts = np.unique(values.astype(str), return_counts=True)
        for value in sorted(names[np.argsort(-counts, kind="stable")[:_MOST_VALUES]].tolist()):
            own = decided.where(values == value)
            scores = asked.meant(judge(own, seed=asked.seed))
            num_groups = len(np.unique(own.groups))
            found.append(Subgroup(column=column, value=value, n=len(own.truth), num_groups=num_groups, scores=scores))
    return found


def judge_thresholds(
    metric: Metric,
    cuts: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    grades: Mapping[SplitName, npt.NDArray[np.float32]],
    images: Mapping[SplitName, Predictions],
    *,
    seed: int,
) -> Thresholds:
    """The metric with plain rounding and with the cuts that decide, on validation and on test.

    Parameters
    ----------
    cuts
        Those of plain rounding and those that were fitted, (num_classes - 1,) each.
    grades
        What is cut, NaN where an image could not be read.
    """
    judged: list[dict[SplitName, Estimate]] = []
    for cut in cuts:
        scores: dict[SplitName, Estimate] = {}
        for split, values in grades.items():
            read = images[split].is_read
            own = images[split].where(read)
            chosen = np.digitize(values[read].astype(np.float64), cut).astype(np.int64)
            decided = Decided(own.labels, chosen, numbered(own.groups), len(own.classes))
            scores[split] = judge(decided, seed=seed)[metric]
        judged.append(scores)
    kept = not np.allclose(cuts[0], cuts[1], atol=1e-6)
    return Thresholds(fitted=tuple(cuts[1].tolist()), kept=kept, rounding=judged[0], tuned=judged[1])
