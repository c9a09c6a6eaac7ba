"""Losses against the libraries' own where there is one, and decisions that agree with what was learned."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tlbatch.metrics.thresholds import fit_thresholds
from tlbatch.model.objectives import Rule, _running, losses, targets

ALL = ["cross-entropy", "focal", "corn", "cumulative", "regression"]


def probabilities(objective: str, given_: torch.Tensor, classes: int, *, by_mean: bool = False) -> torch.Tensor:
    return Rule(objective, by_mean=by_mean).probabilities(given_, classes, torch.arange(classes - 1) + 0.5)


def outputs(objective: str, n: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(n, Rule(objective).num_outputs(classes), generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 4, 2, 1, 3, 4])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    given_ = outputs("cross-entropy")
    wanted = functional.cross_entropy(given_, LABELS, label_smoothing=smoothing, reduction="none")
    assert torch.allclose(losses("cross-entropy", given_, targets(LABELS, 5, smoothing=smoothing)), wanted)


def test_binary_is_torchs_and_agrees_with_its_probabilities() -> None:
    given_, labels = outputs("binary"), LABELS % 2
    wanted = functional.binary_cross_entropy_with_logits(given_[:, 0], labels.float(), reduction="none")
    assert torch.allclose(losses("binary", given_, targets(labels, 2, smoothing=0)), wanted)
    found = probabilities("binary", given_, 2)
    assert torch.allclose(-found[torch.arange(6), labels].log(), wanted)


def test_focal_without_focus_would_be_cross_entropy_and_easy_samples_count_less() -> None:
    target = targets(torch.tensor([0, 0]), 2, smoothing=0)
    easy, hard = losses("focal", torch.tensor([[4.0, 0.0], [0.0, 1.0]]), target)
    plain = losses("cross-entropy", torch.tensor([[4.0, 0.0], [0.0, 1.0]]), target)
    assert easy / plain[0] < 0.001
    assert hard / plain[1] > 0.3


def test_corn_is_the_likelihood_of_its_own_probabilities() -> None:
    """-log P(label) of the chain of conditional probabilities is the sum of the binary losses."""
    given_ = outputs("corn")
    found = probabilities("corn", given_, 5)
    wanted = -found[torch.arange(6), LABELS].log()
    assert torch.allclose(losses("corn", given_, targets(LABELS, 5, smoothing=0)), wanted, atol=1e-5)


def test_cumulative_is_a_binary_loss_a_threshold() -> None:
    given_ = outputs("cumulative")
    above = (LABELS[:, None] > torch.arange(4)).float()
    wanted = functional.binary_cross_entropy_with_logits(given_, above, reduction="none").sum(1)
    assert torch.allclose(losses("cumulative", given_, targets(LABELS, 5, smoothing=0)), wanted, atol=1e-6)


def test_regression_is_the_squared_distance_from_the_grade() -> None:
    given_ = outputs("regression")
    wanted = (given_[:, 0] - LABELS) ** 2
    assert torch.allclose(losses("regression", given_, targets(LABELS, 5, smoothing=0)), wanted)


@pytest.mark.parametrize("objective", ALL)
def test_probabilities_sum_to_one_and_are_not_negative(objective: str) -> None:
    found = probabilities(objective, 5 * outputs(objective), 5)
    assert found.shape == (6, 5)
    assert torch.allclose(found.sum(1), torch.ones(6), atol=1e-5)
    assert (found >= 0).all()


@pytest.mark.parametrize("objective", [*ALL, "binary"])
def test_descent_on_the_loss_leads_to_the_right_decisions(objective: str) -> None:
    classes = 2 if objective == "binary" else 5
    labels = torch.arange(60) % classes
    features = functional.one_hot(labels, classes).float() + 0.02 * torch.randn(
        60, classes, generator=torch.Generator().manual_seed(1)
    )
    layer = torch.nn.Linear(classes, Rule(objective).num_outputs(classes))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        losses(objective, layer(features), targets(labels, classes, smoothing=0)).mean().backward()
        optimizer.step()
    chosen = probabilities(objective, layer(features).detach(), classes).argmax(1)
    assert (chosen == labels).float().mean() > 0.95


@given(
    st.lists(st.floats(-3, 8), min_size=1, max_size=20), st.lists(st.floats(-1, 6), min_size=4, max_size=4, unique=True)
)
def test_the_decision_of_a_regression_is_the_one_its_thresholds_make(values: list[float], edges: list[float]) -> None:
    thresholds = np.sort(np.array(edges))
    if np.diff(thresholds).min() < 0.01:
        return
    given_ = np.array([value for value in values if np.abs(value - thresholds).min() > 1e-3])
    tensor = torch.from_numpy(given_)[:, None].float()
    found = Rule("regression").probabilities(tensor, 5, torch.from_numpy(thresholds)).argmax(1)
    assert found.tolist() == np.digitize(given_, thresholds).tolist()


def test_thresholds_are_fitted_where_they_gain_and_left_where_they_do_not() -> None:
    generator = np.random.default_rng(0)
    grades = generator.integers(0, 5, 400)
    exact = grades + generator.normal(0, 0.1, 400)
    every = np.arange(400)
    assert fit_thresholds(exact, grades, every, num_classes=5).tolist() == [0.5, 1.5, 2.5, 3.5]
    shrunk = 1 + 0.5 * grades + generator.normal(0, 0.05, 400)
    fitted = fit_thresholds(shrunk, grades, every, num_classes=5)
    assert (np.digitize(shrunk, fitted) == grades).mean() > 0.98
    assert fit_thresholds(shrunk[:10], grades[:10], every[:10], num_classes=5).tolist() == [0.5, 1.5, 2.5, 3.5]


@pytest.mark.chain
def test_views_of_an_image_are_no_witnesses_for_each_other() -> None:
    """In four views each, a few images tempt free thresholds; judged by whole images these seldom gain."""
    kept = 0
    for seed in range(6):
        generator = np.random.default_rng(seed)
        grades = generator.integers(0, 5, 60).repeat(4)
        values = (grades[::4] + generator.normal(0, 0.7, 60)).repeat(4) + generator.normal(0, 0.02, 240)
        apart, together = (
            fit_thresholds(values, grades, groups, num_classes=5)
            for groups in (np.arange(240), np.arange(60).repeat(4))
        )
        kept += (together.tolist() != [0.5, 1.5, 2.5, 3.5]) - (apart.tolist() != [0.5, 1.5, 2.5, 3.5])
    assert kept < 0


def test_running_products_and_minima_are_those_of_torch_to_the_last_bit() -> None:
    shares = (3 * torch.randn(500, 6, generator=torch.Generator().manual_seed(0))).sigmoid()
    assert torch.equal(_running(torch.mul, shares.double()).float(), shares.cumprod(1))
    assert torch.equal(_running(torch.minimum, shares), shares.cummin(1).values)
