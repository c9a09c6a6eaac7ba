import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tlbatch.config.nightly import Nightly
from tlbatch.core.errors import UserError
from tlbatch.metrics import bootstrap
from tlbatch.metrics.confusion import Classified
from tlbatch.metrics.paired import difference, lower_bound
from tlbatch.promotion.rule import Context, PairedTest, RuleResult, apply_rule, first_of, level_of

GRADES = ("0", "1", "2", "3", "4")


def decided(y_true: npt.NDArray[np.int64], y_pred: npt.NDArray[np.int64]) -> Classified:
    return Classified(y_true, y_pred, np.arange(len(y_true)), 5)


def graded(rng: np.random.Generator, num: int) -> npt.NDArray[np.int64]:
    """Draw labels with the grade distribution of retinopathy."""
    return rng.choice(5, num, p=[0.5, 0.12, 0.24, 0.08, 0.06])


def read_by(rng: np.random.Generator, signal: npt.NDArray[np.float64], noise: float) -> npt.NDArray[np.int64]:
    """Return grades from a common signal with independent noise."""
    return np.clip(np.rint(signal + rng.normal(0, noise, len(signal))), 0, 4).astype(np.int64)


def pair(rng: np.random.Generator, num: int = 733, better: float = 0.0) -> tuple[Classified, Classified]:
    """Return challenger and champion with correlated errors."""
    y_true = graded(rng, num)
    signal = y_true + rng.normal(0, 0.6, num)
    return decided(y_true, read_by(rng, signal, 0.5 - better)), decided(y_true, read_by(rng, signal, 0.5))


def judged(terms: Mapping[str, Any], both: tuple[Classified, Classified], *, look: int = 1, **known: Any) -> RuleResult:
    evidence = PairedTest(
        metric="quadratic_kappa", challenger=both[0], champion=both[1], name="before", classes=GRADES,
        questions={"referable": ("2", "3", "4")}, seed=0,
    )  # fmt: skip
    around = {"look": look, "num_train": 1000, "champion_num_train": 1000, "lost": 0.0, "leaks": ()}
    return apply_rule(Nightly(**terms), evidence, Context(**{**around, **known}))


@pytest.mark.chain
def test_equal_models_are_rarely_promoted_unlike_by_the_higher_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated nights: 250 challengers that are exactly as good as the champion on 733 images."""
    monkeypatch.setattr(bootstrap, "REPLICATES", 2000)
    rng = np.random.default_rng(1)
    by_score = by_rule = 0
    for _ in range(250):
        one, two = pair(rng)
        value, draws = difference("quadratic_kappa", one, two, seed=0)
        assert value is not None
        lower = lower_bound(value, draws, 0.025)
        by_score += value > 0
        by_rule += lower is not None and lower > 0
    assert by_score > 0.35 * 250
    assert by_rule <= 0.06 * 250


@pytest.mark.chain
def test_spending_bounds_false_promotions_over_thirty_nights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "REPLICATES", 2000)
    rng, promoted = np.random.default_rng(2), {"spend": 0, "each": 0}
    for _ in range(20):
        nights = [difference("quadratic_kappa", *pair(rng, 200), seed=0) for _ in range(30)]
        for looks in promoted:
            terms = Nightly(looks=looks)
            lower = [lower_bound(*night, level_of(terms, number)) for number, night in enumerate(nights, start=1)]
            promoted[looks] += any(one is not None and one > 0 for one in lower)
    assert promoted["spend"] <= 3
    assert promoted["each"] >= 10


def test_levels_of_all_challenges_sum_to_alpha() -> None:
    spent = math.fsum(level_of(Nightly(alpha=0.05), look) for look in range(1, 100_000))
    assert spent == pytest.approx(0.05, abs=1e-6)
    assert level_of(Nightly(alpha=0.05, looks="each"), 9) == 0.05


def test_bound_in_the_far_tail_is_no_tighter_than_the_normal_one() -> None:
    draws = np.random.default_rng(0).normal(1, 0.1, 10_000)
    assert lower_bound(1.0, draws, 0.025) == pytest.approx(1 - 1.96 * 0.1, abs=0.01)
    assert lower_bound(1.0, draws, 1e-5) == pytest.approx(1 - 4.265 * 0.1, abs=0.02)
    assert lower_bound(1.0, np.ones(10_000), 0.025) is None
    assert lower_bound(None, draws, 0.025) is None


def test_real_gain_is_promoted_unless_below_min_gain() -> None:
    both = pair(np.random.default_rng(3), better=0.4)
    found = judged({}, both)
    assert found.rule == "gain"
    assert found.lower is not None
    assert found.lower > 0
    assert judged({}, both, lost=0.5).lost == pytest.approx(0.5 - found.lower)  # the lower bound recovers losses
    assert judged({}, both, lost=0.001).lost == 0.0
    assert judged({"min_gain": 0.2}, both).rule == "none"
    assert "not above min_gain = 0.2" in judged({"min_gain": 0.2}, both).reasons[1]


def test_model_within_the_margin_is_promoted_only_with_more_data_and_losses_add_up() -> None:
    both = pair(np.random.default_rng(5))
    terms = {"margin": 0.08}
    assert judged(terms, both).rule == "none"
    found = judged(terms, both, num_train=1100)
    assert found.rule == "more data"
    assert found.lost == pytest.approx(max(0.0, -(found.comparison.difference.value or 0)))
    assert judged(terms, both, num_train=1099).rule == "none"
    spent = judged(terms, both, num_train=1100, lost=0.08)
    assert (spent.rule, spent.slack, spent.lost) == ("none", 0.0, 0.0)
    assert judged(terms, both, num_train=1100, lost=0.06).slack == pytest.approx(0.02)


def test_failed_guard_keeps_the_champion() -> None:
    one, two = pair(np.random.default_rng(3), better=0.4)
    y_pred = one.y_pred.copy()
    y_pred[one.y_true == 4] = 3  # near enough for kappa, but no grade 4 is found any more
    blind = decided(one.y_true, y_pred)
    found = judged({"guards": {"recall.4": 0.05, "sensitivity.referable": 0.05}}, (blind, two))
    assert found.rule == "none"
    recall, sensitivity = found.guards
    assert (recall.challenger, recall.holds, sensitivity.holds) == (0.0, False, True)
    assert recall.champion == pytest.approx((two.y_pred[two.y_true == 4] == 4).mean())
    assert sensitivity.champion == pytest.approx((two.y_pred[two.y_true >= 2] >= 2).mean())
    assert found.reasons[1].startswith("it would have been promoted")
    assert found.reasons[2].startswith("the guard recall.4 fell by ")
    assert judged({"guards": {"specificity.referable": 0.05, "precision.4": 1.0}}, (one, two)).rule == "gain"


def test_guard_without_images_fails() -> None:
    one, two = pair(np.random.default_rng(3), better=0.4)
    some = one.y_true != 4
    found = judged({"guards": {"recall.4": 0.05}}, (one.where(some), two.where(some)))
    assert found.rule == "none"
    assert "the guard recall.4 is undefined" in found.reasons[2]


def test_few_images_and_leaks_keep_the_champion() -> None:
    both = pair(np.random.default_rng(3), better=0.4)
    assert judged({"min_samples": 734}, both).reasons[2] == "733 test images, fewer than min_samples = 734"
    leaked = judged({}, both, leaks=("3 images of test in train",))
    assert (leaked.rule, leaked.reasons[2]) == ("none", "the audit found a leak: 3 images of test in train")


def test_first_run_needs_enough_images_and_no_leak() -> None:
    terms = Nightly(min_samples=50)
    assert first_of(terms, 50, ())[0] == "first"
    assert first_of(terms, 49, ()) == ("none", ("49 test images, fewer than min_samples = 50",))
    assert first_of(terms, 50, ("x",)) == ("none", ("the audit found a leak: x",))


def test_equal_decisions_are_no_gain() -> None:
    one, _ = pair(np.random.default_rng(3))
    found = judged({}, (one, one))
    assert (found.rule, found.lower) == ("none", None)


def test_guards_of_unknown_classes_and_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'hits\.4' must be recall\.CLASS"):
        Nightly(guards={"hits.4": 0.1})
    terms = Nightly(guards={"recall.5": 0.1})
    with pytest.raises(UserError, match=r"^nightly\.guards\.recall\.5: unknown '5'; known: 0, 1, 2, 3, 4$"):
        terms.check(GRADES, ())
    with pytest.raises(UserError, match=r"unknown 'x'; known: none; set report\.questions"):
        Nightly(guards={"sensitivity.x": 0.1}).check(GRADES, ())
    Nightly(guards={"recall.4": 0.1, "sensitivity.x": 0.1, "mcc": 0.1}).check(GRADES, ("x",))
