import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlbatch.config.base import Metric
from tlbatch.metrics.scores import bootstrap_scores, mean_log_loss, score


def test_an_absent_middle_grade_does_not_change_the_distances() -> None:
    assert score("quadratic_kappa", [0, 3, 4, 4], [0, 3, 4, 3]) == pytest.approx(0.95, abs=0.005)


def test_what_is_undefined_is_none_and_never_nan() -> None:
    assert score("accuracy", [], []) is None
    assert score("quadratic_kappa", [1, 1], [1, 1]) is None
    assert score("quadratic_kappa", [0, 1], [1, 1]) == 0
    assert mean_log_loss([], np.empty((0, 3))) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_quadratic_kappa_is_its_definition(pairs: list[tuple[int, int]]) -> None:
    y_true, y_pred = [t for t, _ in pairs], [p for _, p in pairs]
    observed = np.zeros((4, 4))
    np.add.at(observed, (y_true, y_pred), 1)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / observed.sum()
    weights = np.subtract.outer(np.arange(4), np.arange(4)) ** 2
    found = score("quadratic_kappa", y_true, y_pred)
    if (weights * expected).sum() == 0:
        assert found is None
    else:
        assert found == pytest.approx(1 - (weights * observed).sum() / (weights * expected).sum())


def test_the_standard_error_is_that_of_the_groups() -> None:
    """Of a proportion it is sqrt(p q / n); where all images come twice, that of half as many."""
    generator = np.random.default_rng(0)
    y_true, wrong = np.zeros(400, np.int64), (generator.random(400) < 0.2).astype(np.int64)
    every = np.arange(400)
    alone = bootstrap_scores("accuracy", y_true, [wrong, wrong], every, seed=9)
    assert np.std(alone[:, 0]) == pytest.approx(np.sqrt(wrong.mean() * (1 - wrong.mean()) / 400), rel=0.15)
    assert np.array_equal(alone[:, 0], alone[:, 1])
    twice = bootstrap_scores("accuracy", y_true, [wrong.repeat(2)[:400]], every // 2, seed=9)
    assert np.std(twice) == pytest.approx(np.sqrt(2) * np.std(alone[:, 0]), rel=0.25)
    assert np.isnan(bootstrap_scores("quadratic_kappa", y_true, [y_true], every, seed=0)).all()


@pytest.mark.parametrize("metric", ["accuracy", "quadratic_kappa"])
def test_a_redrawn_score_is_that_of_the_groups_drawn(metric: Metric) -> None:
    """As scikit-learn has it of samples that stand there as often as their group was drawn."""
    generator = np.random.default_rng(1)
    y_true, groups = generator.integers(0, 5, 90), generator.integers(0, 40, 90)
    several = [np.clip(y_true + generator.integers(-2, 3, 90), 0, 4), generator.integers(0, 5, 90), np.full(90, 2)]
    found = bootstrap_scores(metric, y_true, several, groups, seed=3)
    names, of = np.unique(groups, return_inverse=True)
    replicates = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=len(found))
    for row, draw in zip(found[:20], replicates[:20], strict=True):
        samples = np.repeat(np.arange(90), draw[of])
        expected = [score(metric, y_true[samples], y_pred[samples]) for y_pred in several]
        assert row == pytest.approx(np.array(expected, np.float64))
