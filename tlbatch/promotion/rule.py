"""The promotion rule: whether a challenger replaces the champion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlbatch.config.base import Metric
from tlbatch.config.nightly import Nightly
from tlbatch.core.text import counted
from tlbatch.metrics.confusion import Classified, point_scores
from tlbatch.metrics.paired import compare, difference, lower_bound
from tlbatch.promotion.records import Guarded, Rule, RuleResult
from tlbatch.runs.report import SCORES


@dataclass(frozen=True)
class PairedTest:
    """Predicted classes of both models on the same test images."""

    metric: Metric
    challenger: Classified
    champion: Classified
    name: str
    """Name of the champion's run."""
    classes: Sequence[str]
    questions: Mapping[str, Sequence[str]]
    """Yes-or-no questions and their positive classes."""
    seed: int


@dataclass(frozen=True)
class Context:
    """What the rule uses in addition to the predictions."""

    look: int
    """How many times the champion has been challenged, including this time."""
    num_train: int
    champion_num_train: int
    lost: float
    """Losses accepted by promotions for more data, less the lower bounds of later gains."""
    leaks: Sequence[str]
    """Leaks between splits found by the audit."""


def level_of(nightly: Nightly, look: int) -> float:
    """Return the significance level of a challenge: the probability of promoting a model that is no better.

    With ``spend`` the k-th challenge of a champion has level alpha / (k (k + 1)). These levels sum to at most alpha, so
    by Bonferroni's inequality all challenges of a champion together promote a model that is no better with a
    probability of at most alpha.
    """
    return nightly.alpha / (look * (look + 1)) if nightly.looks == "spend" else nightly.alpha


def apply_rule(nightly: Nightly, paired: PairedTest, known: Context) -> RuleResult:
    """Apply the job's promotion rule."""
    metric, first, other = paired.metric, paired.challenger, paired.champion
    comparison = compare(metric, first, other, name=paired.name, seed=paired.seed)
    value, draws = difference(metric, first, other, seed=paired.seed)
    level = level_of(nightly, known.look)
    lower = lower_bound(value, draws, level)
    guards = tuple(_guarded(name, bound, paired) for name, bound in nightly.guards.items())
    has_more_data = known.num_train >= known.champion_num_train * (1 + nightly.more_data) > 0
    slack = max(0.0, nightly.margin - known.lost) if has_more_data else 0.0
    rule, why = _by_bound(nightly, lower, slack, known)
    against = [
        *_against(nightly, len(first.y_true), known.leaks),
        *(_fallen(guard) for guard in guards if not guard.holds),
    ]
    bound = "undefined" if lower is None else f"{lower:.4f}"
    gain = "undefined" if value is None else f"{value:.4f}"
    num_images = counted(len(first.y_true), "test image")
    figures = f"gain {gain} in {metric} on {num_images}, lower bound {bound} at level {level:.2g}"
    if rule != "none" and against:
        rule, why = "none", f"it would have been promoted ({why})"
    lost = 0.0
    if rule == "gain":
        lost = max(0.0, known.lost - (lower or 0.0))
    elif rule == "more data":
        lost = known.lost + max(0.0, -(value or 0.0))
    return RuleResult(
        rule=rule,
        reasons=(figures, why, *against),
        comparison=comparison,
        level=level,
        lower=lower,
        slack=slack,
        guards=guards,
        lost=lost,
    )


def first_of(nightly: Nightly, num_images: int, leaks: Sequence[str]) -> tuple[Rule, tuple[str, ...]]:
    """Return rule and reasons for a run when there is no champion."""
    against = _against(nightly, num_images, leaks)
    return ("none", tuple(against)) if against else ("first", ("there was no champion",))


def _by_bound(nightly: Nightly, lower: float | None, slack: float, known: Context) -> tuple[Rule, str]:
    if lower is None:
        return "none", "the gain cannot be estimated from these test images"
    if lower > nightly.min_gain:
        return "gain", f"the bound is above min_gain = {nightly.min_gain:g}"
    more = f"{known.num_train} training images, the champion had {known.champion_num_train}"
    if slack and lower > -slack:
        return "more data", f"the bound is above -{slack:g}, the rest of margin = {nightly.margin:g}, with {more}"
    left = f", nor above -{slack:g} with more data ({more})" if slack else ""
    return "none", f"the bound is not above min_gain = {nightly.min_gain:g}{left}"


def _against(nightly: Nightly, num_images: int, leaks: Sequence[str]) -> list[str]:
    found = [f"the audit found a leak: {leak}" for leak in leaks]
    if num_images < nightly.min_samples:
        found.append(f"{counted(num_images, 'test image')}, fewer than min_samples = {nightly.min_samples}")
    return found


def _fallen(guard: Guarded) -> str:
    if guard.champion is None or guard.challenger is None:
        return f"the guard {guard.name} is undefined: it has no test images"
    fall = guard.champion - guard.challenger
    return (
        f"the guard {guard.name} fell by {fall:.4f}, more than {guard.bound:g} "
        f"(from {guard.champion:.4f} to {guard.challenger:.4f})"
    )


def _guarded(name: str, bound: float, paired: PairedTest) -> Guarded:
    before, now = (_guard_score(name, one, paired) for one in (paired.champion, paired.challenger))
    holds = before is not None and now is not None and before - now <= bound + 1e-12
    return Guarded(name=name, champion=before, challenger=now, bound=bound, holds=holds)


def _guard_score(name: str, decided: Classified, paired: PairedTest) -> float | None:
    """Return a score, or recall, precision, sensitivity or specificity of a class or question; None if undefined."""
    kind, _, of = name.partition(".")
    known = next((score for score in SCORES if score == name), None)
    if known is not None:
        value = point_scores(decided)[known]
        return None if np.isnan(value) else value
    positive = paired.questions[of] if kind in ("sensitivity", "specificity") else (of,)
    numbers = [paired.classes.index(one) for one in positive]
    y_true, y_pred = np.isin(decided.y_true, numbers), np.isin(decided.y_pred, numbers)
    if kind == "specificity":
        y_true, y_pred = ~y_true, ~y_pred
    among = y_pred if kind == "precision" else y_true
    return float((y_true & y_pred)[among].mean()) if among.any() else None
