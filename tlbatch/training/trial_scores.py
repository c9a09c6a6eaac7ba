"""Candidates of strategy = auto: their predictions on held-out images, and the scores computed from these."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tlbatch.config.job import Job
from tlbatch.core.typing import Ints
from tlbatch.metrics.scores import bootstrap_scores, score
from tlbatch.metrics.thresholds import fit_thresholds, rounding
from tlbatch.model.objectives import Rule
from tlbatch.runs.strategy import Trial

Folds = Sequence[tuple[Ints, Ints]]
Outputs = npt.NDArray[np.float32]
Groups = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Candidate:
    """A training strategy: its name, and the user's job with its settings."""

    name: str
    job: Job


@dataclass(frozen=True)
class CandidatePredictions:
    """Predictions of a candidate on the images it is scored on."""

    candidate: Candidate
    classes: Ints
    """Predicted classes, (divisions, m), in the order of the images."""
    seconds: float


def decide(
    job: Job, folds: Folds, outputs: Sequence[Outputs], labels: Ints, groups: Groups, *, num_classes: int
) -> Ints:
    """Return the classes predicted from each fold's outputs, in the order of the labels; thresholds fit other folds."""
    rule = Rule(job.objective, by_mean=job.decision == "expected-grade")
    found = [torch.from_numpy(some) for some in outputs]
    decided = np.empty(len(labels), np.int64)
    plain = torch.from_numpy(rounding(num_classes)).float()
    if not rule.has_thresholds:
        for (_, out), own in zip(folds, found, strict=True):
            decided[out] = rule.probabilities(own, num_classes, plain).argmax(1).numpy()
        return decided
    grades = [rule.grades(some, num_classes)[:, 0].double().numpy() for some in found]
    for this, (_, out) in enumerate(folds):
        others = [at for at in range(len(folds)) if at != this]
        values = np.concatenate([np.empty(0), *(grades[at] for at in others)])
        rows = np.concatenate([np.empty(0, np.int64), *(folds[at][1] for at in others)])
        fitted = fit_thresholds(values, labels[rows], groups[rows], num_classes=num_classes, search=False)
        decided[out] = np.digitize(grades[this], fitted)
    return decided


def trials_of(results: Sequence[CandidatePredictions], job: Job, truth: Ints, groups: Groups) -> tuple[Trial, ...]:
    """Return the scores of candidates and how far each is behind the best, with standard errors."""
    points = [_mean_score(job, truth, one.classes) for one in results]
    decisions = [classes for one in results for classes in one.classes]
    every = bootstrap_scores(job.metric, truth, decisions, groups, seed=job.seed)
    ends = np.cumsum([len(one.classes) for one in results])[:-1]
    drawn = np.stack([times.mean(axis=1) for times in np.split(every, ends, axis=1)], axis=1)
    known = [-np.inf if point is None else point for point in points]
    best = int(np.argmax(known))
    return tuple(
        Trial(
            name=one.candidate.name,
            after=one.candidate.job.head.after,
            cut=one.candidate.job.phase[-1].cut,
            fit=str(one.candidate.job.phase[0].fit),
            score=point,
            standard_error=_deviation(own),
            num_images=len(truth),
            behind=None if point is None else known[best] - point,
            behind_error=_deviation(drawn[:, best] - own),
            seconds=one.seconds,
        )
        for one, point, own in zip(results, points, drawn.T, strict=True)
    )


def _mean_score(job: Job, truth: Ints, decisions: Ints) -> float | None:
    points = [score(job.metric, truth, classes) for classes in decisions]
    known = [point for point in points if point is not None]
    return float(np.mean(known)) if known else None


def _deviation(values: npt.NDArray[np.float64]) -> float:
    return float(np.nan_to_num(np.nanstd(values))) if np.isfinite(values).any() else 0.0
