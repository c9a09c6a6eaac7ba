"""Whether a challenger takes the place of the champion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlbatch.config.base import Metric
from tlbatch.config.nightly import Nightly
from tlbatch.metrics.confusion import Decided, point_scores
from tlbatch.metrics.paired import compare, difference, lower_bound
from tlbatch.promotion.registry import Guarded, Rule, Weighed
from tlbatch.runs.report import SCORES


@dataclass(frozen=True)
class Evidence:
    """What both decided on the same test images."""

    metric: Metric
    challenger: Decided
    champion: Decided
    name: str
    """Of the champion's run."""
    classes: Sequence[str]
    questions: Mapping[str, Sequence[str]]
    """Yes-or-no questions, and the classes that mean yes."""
    seed: int


@dataclass(frozen=True)
class Circumstances:
    """What is known beside the decisions."""

    look: int
    """How often the champion has been challenged, this time included."""
    num_train: int
    champion_num_train: int
    lost: float
    """By promotions for more data, less the lower bounds of later gains."""
    leaks: Sequence[str]
    """What the audit found across splits."""


def level_of(terms: Nightly, look: int) -> float:
    """Probability that this look promotes a model that is no better.

    With ``spend`` it is alpha / (k (k + 1)), which adds up to alpha over any number of looks, so that by Bonferroni's
    inequality all nights of a champion together promote a model that is no better with a probability of alpha.
    """
    return terms.alpha / (look * (look + 1)) if terms.looks == "spend" else terms.alpha


def weigh(terms: Nightly, evidence: Evidence, known: Circumstances) -> Weighed:
    """Apply the job's rule."""
    metric, first, other = evidence.metric, evidence.challenger, evidence.champion
    comparison = compare(metric, first, other, name=evidence.name, seed=evidence.seed)
    value, draws = difference(metric, first, other, seed=evidence.seed)
    level = level_of(terms, known.look)
    lower = lower_bound(value, draws, level)
    guards = tuple(_guarded(name, bound, evidence) for name, bound in terms.guards.items())
    slack = max(0.0, terms.margin - known.lost) if _has_more(terms, known) else 0.0
    rule, why = _by_bound(terms, lower, slack, known)
    against = [
        *_against(terms, len(first.truth), known.leaks),
        *(_fallen(guard) for guard in guards if not guard.holds),
    ]
    bound = "undefined" if lower is None else f"{lower:.4f}"
    gain = "undefined" if value is None else f"{value:.4f}"
    told = f"gain {gain} in {metric} on {len(first.truth)} test images, lower bound {bound} at level {level:.2g}"
    if rule != "none" and against:
        rule, why = "none", f"it would have been promoted ({why})"
    lost = 0.0
    if rule == "gain":
        lost = max(0.0, known.lost - (lower or 0.0))
    elif rule == "more data":
        lost = known.lost + max(0.0, -(value or 0.0))
    return Weighed(
        rule=rule,
        reasons=(told, why, *against),
        comparison=comparison,
        level=level,
        lower=lower,
        slack=slack,
        guards=guards,
        lost=lost,
    )


def first_of(terms: Nightly, num_images: int, leaks: Sequence[str]) -> tuple[Rule, tuple[str, ...]]:
    """What becomes of a run where there is no champion."""
    against = _against(terms, num_images, leaks)
    return ("none", tuple(against)) if against else ("first", ("there was no champion",))


def _has_more(terms: Nightly, known: Circumstances) -> bool:
    return known.num_train >= known.champion_num_train * (1 + terms.more_data) > 0


def _by_bound(terms: Nightly, lower: float | None, slack: float, known: Circumstances) -> tuple[Rule, str]:
    if lower is None:
        return "none", "the test images say nothing about the gain"
    if lower > terms.min_gain:
        return "gain", f"it is above min_gain = {terms.min_gain:g}"
    more = f"{known.num_train} training images, the champion had {known.champion_num_train}"
    if slack and lower > -slack:
        return "more data", f"it is above -{slack:g}, what is left of margin = {terms.margin:g}, with {more}"
    left = f", nor above -{slack:g} with more data ({more})" if slack else ""
    return "none", f"it is not above min_gain = {terms.min_gain:g}{left}"


def _against(terms: Nightly, num_images: int, leaks: Sequence[str]) -> list[str]:
    found = [f"the audit found a leak: {leak}" for leak in leaks]
    if num_images < terms.min_samples:
        found.append(f"{num_images} test images are fewer than min_samples = {terms.min_samples}")
    return found


def _fallen(guard: Guarded) -> str:
    if guard.champion is None or guard.challenger is None:
        return f"the guard {guard.name} is undefined: no test images of it"
    fall = guard.champion - guard.challenger
    return (
        f"the guard {guard.name} fell by {fall:.4f}, more than {guard.bound:g} "
        f"(from {guard.champion:.4f} to {guard.challenger:.4f})"
    )


def _guarded(name: str, bound: float, evidence: Evidence) -> Guarded:
    before, now = (_guard_score(name, one, evidence) for one in (evidence.champion, evidence.challenger))
    holds = before is not None and now is not None and before - now <= bound + 1e-12
    return Guarded(name=name, champion=before, challenger=now, bound=bound, holds=holds)


def _guard_score(name: str, decided: Decided, evidence: Evidence) -> float | None:
    """A score, or a share of the images of a class or question; None where there are none."""
    kind, _, of = name.partition(".")
    known = next((score for score in SCORES if score == name), None)
    if known is not None:
        value = point_scores(decided)[known]
        return None if np.isnan(value) else value
    positive = evidence.questions[of] if kind in ("sensitivity", "specificity") else (of,)
    numbers = [evidence.classes.index(one) for one in positive]
    truth, chosen = np.isin(decided.truth, numbers), np.isin(decided.chosen, numbers)
    if kind == "specificity":
        truth, chosen = ~truth, ~chosen
    among = chosen if kind == "precision" else truth
    return float((truth & chosen)[among].mean()) if among.any() else None
