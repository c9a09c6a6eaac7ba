import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from tlbatch.metrics.roc import area, at_threshold, rank, threshold_for


def simulated(*, n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    return positive, rng.normal(size=n) + positive


def test_the_interval_of_an_area_is_that_of_redrawn_groups() -> None:
    positive, scores = simulated()
    positive, scores, groups = positive.repeat(2), scores.repeat(2), np.arange(1200) // 2
    found = area(positive, scores, groups)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(1500):
        images = np.repeat(rng.integers(0, 600, 600) * 2, 2)
        drawn.append(roc_auc_score(positive[images], scores[images]))
    assert found.value == roc_auc_score(positive, scores)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, (0.025, 0.975)).tolist(), abs=0.008)


def test_the_interval_of_an_area_holds_the_truth_as_often_as_it_says() -> None:
    """The area of two normal densities one deviation apart is .7602."""
    held = 0
    for seed in range(400):
        found = area(*simulated(n=150, seed=seed), np.arange(150))
        assert found.low is not None
        assert found.high is not None
        held += found.low < 0.7602 < found.high
    assert 0.92 <= held / 400 <= 0.98


def test_an_area_without_both_answers_is_undefined_and_a_perfect_one_has_no_interval() -> None:
    yes = np.ones(3, np.bool_)
    assert area(yes, np.arange(3.0), np.arange(3)).undefined == "positive and negative images required"
    assert area(yes[:0], np.arange(0.0), np.arange(0)).undefined == "no images"
    perfect = area(np.array([False, False, True]), np.arange(3.0), np.arange(3))
    assert (perfect.value, perfect.low) == (1, None)
    alone = area(np.array([False, True, False, True]), np.array([0, 1, 2, 0.5]), np.array([0, 1, 2, 1]))
    assert alone.undefined == "no interval: positive or negative images in one group only"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60), st.sampled_from([0.5, 0.9, 1.0]))
def test_a_threshold_reaches_what_it_was_asked_for_on_its_own_images(
    rows: list[tuple[bool, int]], wanted: float
) -> None:
    positive, scores = np.array([row[0] for row in rows]), np.array([row[1] / 8 for row in rows])
    high = threshold_for(positive, scores, sensitivity=wanted)
    low = threshold_for(positive, scores, specificity=min(wanted, 0.99))
    if positive.all() or not positive.any():
        assert high is None
        assert low is None
        return
    assert high is not None
    assert low is not None
    assert (scores[positive] >= high).mean() >= wanted
    assert not (scores[positive] >= np.nextafter(high, 2)).mean() >= wanted or high == 1
    assert (scores[~positive] < low).mean() >= min(wanted, 0.99) or (low == 1 and scores.max() == 1)


def test_an_operating_point_has_the_counts_and_rates_of_its_table() -> None:
    positive, scores = simulated()
    answers = scores > 0.5
    found = at_threshold(positive, answers, np.arange(600), aim="x", threshold=0.5, seed=0)
    (tn, fp), (fn, tp) = confusion_matrix(positive, answers).tolist()
    assert found.counts == (tp, fp, fn, tn)
    rates = [found.sensitivity.value, found.specificity.value, found.ppv.value, found.npv.value]
    assert rates == pytest.approx([tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)])
    for rate in (found.sensitivity, found.specificity, found.ppv, found.npv):
        assert rate.low is not None
        assert rate.high is not None
        assert rate.low < (rate.value or 0) < rate.high


def test_a_rate_of_all_or_none_has_wilsons_interval_of_its_groups() -> None:
    positive = np.array([True] * 20 + [False] * 20)
    found = at_threshold(positive, positive, np.arange(40) // 2, aim="x", threshold=0.5, seed=0)
    assert found.sensitivity.value == 1
    assert found.sensitivity.low == pytest.approx(0.7225, abs=1e-4)  # of 10 of 10
    never = at_threshold(positive, ~positive & positive, np.arange(40), aim="x", threshold=None, seed=0)
    assert never.ppv.undefined == "no positive predictions"
    nothing = at_threshold(positive[:0], positive[:0], np.arange(0), aim="x", threshold=None, seed=0)
    assert nothing.sensitivity.value is None


def test_curves_have_few_points_and_the_area_of_all() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(20_000) < 0.2
    scores = rng.normal(size=20_000) + positive
    found = rank(positive, scores, np.arange(20_000))
    assert len(found.roc.x) <= 101
    assert np.trapezoid(found.roc.y, found.roc.x) == pytest.approx(roc_auc_score(positive, scores), abs=1e-3)
    assert (found.pr.x[0], found.pr.x[-1]) == (0, 1)
    assert found.average_precision == average_precision_score(positive, scores)
    nothing = rank(positive[:0], scores[:0], np.arange(0))
    assert (nothing.roc.x, nothing.pr.x, nothing.average_precision) == ((), (), None)
    assert rank(positive, scores, np.arange(20_000), curves=False).roc.x == ()


def test_an_area_whose_groups_do_not_differ_has_no_interval() -> None:
    positive, groups = np.arange(100) % 2 == 0, np.arange(100)
    found = area(positive, np.full(100, 0.3), groups)
    assert (found.value, found.low, found.undefined) == (0.5, None, "no interval: no variance between groups")
    pairs = area(np.array([True, False, True, False]), np.array([0.9, 0.8, 0.3, 0.1]), np.array([0, 0, 1, 1]))
    assert (pairs.value, pairs.low) == (0.75, None)


def test_a_specificity_is_reached_in_spite_of_rounding_and_by_no_answer_at_all() -> None:
    scores = np.concatenate([np.linspace(0.1, 0.9, 25), [0.95]])
    positive = np.arange(26) == 25
    threshold = threshold_for(positive, scores, specificity=0.68)
    assert threshold is not None
    assert (scores[:25] >= threshold).sum() == 8
    never = threshold_for(np.array([True, False, False]), np.array([0.5, 1, 0.2]), specificity=0.99)
    assert never is not None
    assert never > 1
