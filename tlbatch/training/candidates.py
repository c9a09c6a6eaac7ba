"""Candidates of strategy = auto, and how one of them is chosen."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlbatch.config.job import Job
from tlbatch.config.training import Fit
from tlbatch.model.build import build_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.model.cut_points import stages
from tlbatch.runs.paths import decided
from tlbatch.runs.strategy import Strategy, Trial
from tlbatch.training.search import NotCachedError, Study
from tlbatch.training.trial_scores import Candidate, CandidatePredictions

log = logging.getLogger(__name__)
_LARGE = 1000
"""Number of training images from which a data set counts as large."""
_HALF_POINT = 0.005
_DECIDED = {"head", "objective", "decision", "phase", "train"}
_PLAIN = {"augment": "none", "crop_scale": 1.0, "random_views": 0, "every_view": False, "tta": False}
_BOLD, _GENTLE = {"lr": 1e-3, "backbone_lr": 5e-4}, {"lr": 1e-4, "backbone_lr": 1e-4}
"""Learning rates of fine-tuning; the squared error is unbounded and diverges at the first pair."""
Settings = dict[str, Any]


def choose(study: Study) -> Strategy:
    """Probe the stages of the backbone, try the short list if the strategy is auto, and choose."""
    job = study.record.job
    model = build_classifier(decided(job, {"phase": [{}]}), study.num_classes)
    places = _places(model)
    table = study.table(_profile(study, places))
    _show("probes", table)
    best = int(np.reshape([_known(trial.score) for trial in table], (2, len(places))).max(axis=0).argmax())
    middle = places[min(max(best - 1, 0), len(places) // 2)]
    kind, scenario_why = _scenario(len(study.labels), table[: len(places)])
    short_list: tuple[Trial, ...] = ()
    if job.strategy == "phases":
        chosen, why = f"cut {middle}", f"{places[best]} classifies best; the layers after {middle} are trained"
        phases = [one.model_copy(update={"cut": middle}) if one.cut == "auto" else one for one in job.phase]
        settings: Settings = {"phase": [one.model_dump(mode="json") for one in phases]}
    else:
        results = _try(study, places, places[best], middle, unlike="unlike" in kind)
        short_list = study.table(results)
        _show("short list, the cheapest first", short_list)
        at = _preferred(short_list, unlike="unlike" in kind)
        chosen, why = short_list[at].name, _why(short_list, at)
        settings = _final(results[at].candidate.job).model_dump(mode="json", include=_DECIDED)
    log.info("chosen: %s, %s; %s (%s)", chosen, why, kind, scenario_why)
    return Strategy(
        chosen=chosen,
        why=why,
        scenario=kind,
        scenario_why=scenario_why,
        metric=job.metric,
        num_train=len(study.labels),
        profile=table,
        short_list=short_list,
        left_out=tuple(study.left_out),
        settings=settings,
    )


def _preferred(trials: Sequence[Trial], *, unlike: bool) -> int:
    """Return the first trial within one standard error of the best and at most half a point behind it.

    The half point matters on few images, where a standard error is more than a user would give up. If the images are
    unlike those of the backbone, fine-tuned candidates come first: on few images the best of many heads scores higher
    than it deserves, and fine-tuning gains more from the images that each fold leaves out.
    """
    order = sorted(range(len(trials)), key=lambda at: unlike and trials[at].cut == "pool")
    close = [one.behind is not None and one.behind <= min(one.behind_error, _HALF_POINT) for one in trials]
    return next((at for at in order if close[at]), 0)


def _try(study: Study, places: Sequence[str], best: str, middle: str, *, unlike: bool) -> list[CandidatePredictions]:
    """Score the short list, cheapest first; try the longest training only if it is likely to gain something."""
    job, num_train = study.record.job, len(study.labels)
    results = _probes(study, places, best)
    top = max(_known(trial.score) for trial in study.table(results))
    for cut in (middle, "none"):
        if cut == middle or unlike or _known(study.table(results)[-1].score) > top:
            tuned = study.train(_tuned(job, cut, num_train=num_train))
            results += [tuned] if tuned else []
    return results


def _places(model: Classifier) -> list[str]:
    """Return the names of the backbone's stages, without the map whose mean is pool."""
    names = [place.name for place in stages(model.chain.places, model.shapes)]
    shapes = {place.name: shape for place, shape in zip(model.chain.places, model.shapes, strict=True)}
    same = len(names) > 1 and model.widths[0] in shapes[names[-2]] and shapes[names[-2]] != shapes[names[-1]]
    return [*names[: -2 if same else -1], "pool"]


def _profile(study: Study, places: Sequence[str]) -> list[CandidatePredictions]:
    """Score ridge regression, then nearest neighbours, on the pooled output of every stage, from one encoding."""
    job = study.record.job
    objective: Settings = {"objective": "regression"} if _is_ordered(job) else {}
    whole = _probe(job, "all stages", places, "ridge", objective).job
    widths = build_classifier(whole, study.num_classes).widths
    columns = np.split(study.vectors(whole), np.cumsum(widths)[:-1], axis=1)
    kinds: tuple[tuple[Fit, Settings], ...] = (("ridge", objective), ("neighbours", {}))
    return [
        study.probe(_probe(job, place, [place], fit, settings), features)
        for fit, settings in kinds
        for place, features in zip(places, columns, strict=True)
    ]


def _probes(study: Study, places: Sequence[str], best: str) -> list[CandidatePredictions]:
    """Score heads on the best stage, the last three and all; then the better head of each on the mean of views."""
    job = study.record.job
    kinds: tuple[tuple[Fit, Settings], ...] = (("logistic", {}), ("kernel-ridge", {}))
    if _is_ordered(job):
        kinds = ("ridge", {"objective": "regression"}), ("kernel-logistic", {"decision": "expected-grade"})
    sets = {best: [best], "the last three stages": places[-3:], "all stages": places}
    found: list[CandidatePredictions] = []
    for name, some in sets.items():
        candidates = [_probe(job, f"{fit} on {name}", some, fit, settings) for fit, settings in kinds]
        features = study.vectors(candidates[0].job)
        found.extend(study.probe(candidate, features) for candidate in candidates)
    if job.train.augment == "none":
        return found
    scores = np.reshape([_known(trial.score) for trial in study.table(found)], (len(sets), len(kinds)))
    means: list[CandidatePredictions] = []
    for at, kind in reversed(list(enumerate(scores.argmax(axis=1)))):  # the encoding of all stages serves the others
        mean = _mean_of_views(job, found[at * len(kinds) + int(kind)].candidate)
        try:
            means.append(study.probe(mean, study.vectors(mean.job)))
        except NotCachedError:
            study.leave_out(mean, "its views do not fit in the cache")
    return found + means[::-1]


def _probe(job: Job, name: str, after: Sequence[str], fit: Fit, sections: Settings) -> Candidate:
    """Make the candidate of a head that is fitted on frozen vectors of the upright squares."""
    settings = {
        "head": {"after": after},
        "phase": [{"cut": "pool", "fit": fit}],
        "train": {**job.train.model_dump(), **_PLAIN},
        "objective": "cross-entropy",
        "decision": "most-probable",
    }
    return Candidate(name, decided(job, settings | sections))


def _mean_of_views(job: Job, probe: Candidate) -> Candidate:
    """Make the same candidate on the mean over the symmetries that the user's job trains on."""
    train = probe.job.train.model_copy(update={"augment": job.train.augment})
    head = probe.job.head.model_copy(update={"view_mean": True})
    return Candidate(f"{probe.name}, mean of views", probe.job.model_copy(update={"train": train, "head": head}))


def _tuned(job: Job, cut: str, *, num_train: int) -> Candidate:
    """Make the candidate that fits the head, then fine-tunes it with the layers after the cut, longer on small sets."""
    ordered = _is_ordered(job)
    tuned = {
        "cut": cut,
        "epochs": 10 if num_train >= _LARGE else 15,
        "warmup": 0.2,
        "label_smoothing": 0.0 if ordered else 0.1,
        "optimizer": {**(_GENTLE if ordered else _BOLD), "decay_to": "start"},
    }
    phases = [{"cut": "pool", "fit": "ridge" if ordered else "logistic"}, tuned]
    settings: Settings = {"phase": phases, "objective": "regression" if ordered else "cross-entropy"}
    settings["train"] = {**job.train.model_dump(), "tta": False}
    name = "fine-tuned, all of it" if cut == "none" else f"fine-tuned after {cut}"
    return Candidate(name, decided(job, settings))


def _final(job: Job) -> Job:
    """Return the job for the final training: early stopping, and weight averages and TTA where validation gains."""
    phases = [phase if phase.fit else phase.model_copy(update={"patience": 5, "average": True}) for phase in job.phase]
    tuned = not phases[-1].fit and job.train.augment != "none"
    train = job.train.model_copy(update={"tta": tuned})
    return job.model_copy(update={"phase": tuple(phases), "train": train})


def _is_ordered(job: Job) -> bool:
    return job.metric == "quadratic_kappa"


def _known(score: float | None) -> float:
    return -np.inf if score is None else score


def _scenario(num_train: int, profile: Sequence[Trial]) -> tuple[Any, str]:
    """Return which of the four classical cases of transfer learning this is, and the figures behind it."""
    best = max(profile, key=lambda trial: _known(trial.score))
    top = profile[-1]
    size = "large" if num_train >= _LARGE else "small"
    unlike = top.behind is not None and top.behind > 2 * top.behind_error
    figures = f"{num_train} training images; the top of the backbone scores {_number(top.score)}"
    figures += f", its best stage {best.name} {_number(best.score)}" if best is not top else ", the best of its stages"
    return f"{size} and {'unlike' if unlike else 'like'}", figures


def _why(trials: Sequence[Trial], at: int) -> str:
    best = max(trials, key=lambda trial: _known(trial.score))
    mine = trials[at]
    if mine is best:
        return f"the best of {len(trials)}: {_number(mine.score)} +- {mine.standard_error:.4f}"
    kind = "fine-tuned" if mine.cut != "pool" and best.cut == "pool" else "cheapest"
    return (
        f"the {kind} within one standard error and half a point of the best: {_number(mine.score)}, "
        f"{mine.behind:.4f} +- {mine.behind_error:.4f} behind {best.name}"
    )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _show(title: str, table: Sequence[Trial]) -> None:
    log.info("%s, scored on %d training images:", title, table[0].num_images)
    for trial in table:
        log.info(
            "  %-60s %s +- %.4f  %6.1f s", f"{trial.name} ({trial.fit})", _number(trial.score), trial.standard_error,
            trial.seconds,
        )  # fmt: skip
