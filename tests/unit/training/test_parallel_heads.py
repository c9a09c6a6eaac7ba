"""Heads trained side by side are the heads that would be trained alone, and the folds judge what they have not seen."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tlbatch.config.training import Optimizer, Phase
from tlbatch.core.errors import UserError
from tlbatch.model.fitted_head import FittedHead, Vectors, best_of
from tlbatch.model.folds import folds_of
from tlbatch.model.objectives import losses, targets
from tlbatch.training.optim import build_schedule, optimizer_over
from tlbatch.training.parallel_heads import Epochs, train_heads

WEIGHTS = torch.tensor([0.5, 1.0, 2.0])


def vectors() -> Vectors:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = generator.normal(0, 1, (60, 5)) + 2 * np.eye(5)[labels]
    return Vectors(features, labels, np.array([f"g{number // 2}" for number in range(60)]), 3)


def batches(epoch: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng(epoch).permutation(60)
    yield from (order[start : start + 7] for start in range(0, 60, 7))


EPOCHS = Epochs(batches, lambda epoch: WEIGHTS if epoch < 2 else torch.ones(3), steps=9)


def head() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def phase(*rates: float, name: str = "adamw", epochs: int = 4) -> Phase:
    return Phase(
        epochs=epochs,
        lr_grid=rates,
        label_smoothing=0.1,
        grad_clip=0.5,
        optimizer=Optimizer(name=name, weight_decay=0.1),  # type: ignore[arg-type]
    )


def trained(given: Vectors, settings: Phase) -> FittedHead:
    return train_heads(head(), settings, given, EPOCHS, objective="cross-entropy", seed=0)


def alone(settings: Phase, rate: float) -> nn.Sequential:
    """The plain loop."""
    found, given = head(), vectors()
    optimizer = optimizer_over([(weight, rate, 0.1) for weight in found.parameters()], settings.optimizer)
    schedule = build_schedule(optimizer, settings, 9)
    for epoch in range(settings.epochs):
        for rows in batches(epoch):
            wanted = targets(torch.from_numpy(given.labels[rows]), 3, smoothing=0.1)
            each = losses("cross-entropy", found(torch.from_numpy(given.features[rows]).float()), wanted)
            optimizer.zero_grad()
            ((each * (wanted @ EPOCHS.class_weights(epoch))).sum() / len(rows)).backward()
            nn.utils.clip_grad_norm_(found.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    return found


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_head_beside_others_takes_the_steps_it_would_take_alone(name: str) -> None:
    settings = phase(1e-4, 0.05, name=name)
    together, apart = trained(vectors(), settings), alone(settings, 0.05)
    assert best_of(together.scores) == "0.05"
    for own, other in zip(together.head.parameters(), apart.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-4 if name == "sgd" else 2e-3)


def test_the_rate_that_tells_unseen_vectors_apart_is_chosen_and_one_that_diverges_is_not() -> None:
    fitted = trained(vectors(), phase(1e-6, 0.1, 1e30, name="sgd"))
    assert best_of(fitted.scores) == "0.1"
    assert sorted(fitted.scored) == list(range(60))
    assert (fitted.outputs.argmax(1) == vectors().labels[fitted.scored]).mean() > 0.7
    assert not fitted.head.training
    with pytest.raises(UserError, match=r"phase\.N\.lr_grid: the loss is not finite with any of its rates"):
        trained(vectors(), phase(1e30, name="sgd"))


def test_what_is_judged_has_not_been_seen() -> None:
    given = vectors()
    into, out = folds_of(given.labels, given.groups, 0)[0]
    spoiled = given.features.copy()
    spoiled[out[0]] += 100
    before, after = (trained(one, phase(0.05)) for one in (given, replace(given, features=spoiled)))
    same = np.isclose(before.outputs, after.outputs, atol=1e-5).all(1)
    rest = np.isin(before.scored, out[1:])
    assert same[rest].all()
    assert not same[np.isin(before.scored, into)].all()
