import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from tlbatch.metrics.confusion import Classified
from tlbatch.metrics.paired import compare


def pair(*, n: int = 800, better: float = 0.0, seed: int = 0) -> tuple[Classified, Classified]:
    """Two networks that err on mostly the same images; the first mends a share of the other's errors."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, 5, n)
    other = np.clip(y_true + rng.integers(-1, 2, n), 0, 4)
    first = np.where(rng.random(n) < 0.1, np.clip(y_true + rng.integers(-1, 2, n), 0, 4), other)
    first = np.where(rng.random(n) < better, y_true, first)
    groups = np.arange(n) // 2
    return Classified(y_true, first, groups, 5), Classified(y_true, other, groups, 5)


def test_equal_networks_are_called_not_different_and_a_better_one_better() -> None:
    first, other = pair()
    assert compare("quadratic_kappa", first, other, name="x", seed=0).verdict == "not different"
    first, other = pair(better=0.3)
    assert compare("quadratic_kappa", first, other, name="x", seed=0).verdict == "better"
    found = compare("quadratic_kappa", other, first, name="x", seed=0)
    assert found.verdict == "worse"
    assert found.difference.value == pytest.approx(
        cohen_kappa_score(other.y_true, other.y_pred, weights="quadratic")
        - cohen_kappa_score(first.y_true, first.y_pred, weights="quadratic")
    )


def test_a_run_against_itself_differs_by_nothing() -> None:
    first, _ = pair()
    found = compare("accuracy", first, first, name="x", seed=0)
    assert (found.difference.value, found.p_value, found.verdict) == (0, 1, "not different")


def test_the_interval_of_a_difference_is_that_of_redrawn_pairs_of_groups() -> None:
    first, other = pair(n=300, better=0.1)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        groups = rng.integers(0, 150, 150)
        images = np.concatenate([2 * groups, 2 * groups + 1])
        drawn.append(np.mean(first.y_pred[images] == first.y_true[images]))
        drawn[-1] -= np.mean(other.y_pred[images] == other.y_true[images])
    found = compare("accuracy", first, other, name="x", seed=0).difference
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, (0.025, 0.975)).tolist(), abs=0.006)


def test_a_pair_is_compared_more_sharply_than_two_strangers() -> None:
    """Drawn together, what is hard for both cancels out."""
    first, other = pair(better=0.05)
    together = compare("accuracy", first, other, name="x", seed=0).difference
    errors = [np.std(one.y_pred == one.y_true) / np.sqrt(400) for one in (first, other)]
    assert together.low is not None
    assert together.high is not None
    assert together.high - together.low < 0.6 * 2 * 1.96 * np.hypot(*errors)


def test_mcnemar_counts_images_that_one_alone_has_right() -> None:
    y_true = np.zeros(30, np.int64)
    first, other = y_true.copy(), y_true.copy()
    first[:2], other[10:22] = 1, 1
    found = compare(
        "accuracy",
        Classified(y_true, first, np.arange(30), 2),
        Classified(y_true, other, np.arange(30), 2),
        name="x",
        seed=0,
    )
    assert (found.only_first, found.only_other) == (12, 2)
    assert found.p_value == pytest.approx(binomtest(12, 14).pvalue)


def test_without_images_nothing_is_claimed() -> None:
    nothing = Classified(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), 2)
    found = compare("accuracy", nothing, nothing, name="x", seed=0)
    assert (found.difference.value, found.verdict, found.n) == (None, "undecided", 0)


@pytest.mark.parametrize(("num_groups", "verdict"), [(5, "undecided"), (6, "better")])
def test_a_difference_that_every_draw_shows_counts_where_groups_are_many_enough(num_groups: int, verdict: str) -> None:
    """The sign test: all of five groups are not unlikely by chance, all of six are."""
    groups, y_true = np.arange(2 * num_groups) // 2, np.tile([0, 1], num_groups)
    right, constant = Classified(y_true, y_true, groups, 2), Classified(y_true, np.zeros_like(y_true), groups, 2)
    found = compare("quadratic_kappa", right, constant, name="x", seed=0)
    assert (found.difference.value, found.difference.low, found.verdict) == (1, None, verdict)
    other = compare("accuracy", constant, right, name="x", seed=0)
    assert (other.difference.value, other.verdict) == (-0.5, verdict.replace("better", "worse"))
