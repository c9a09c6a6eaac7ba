"""Optimisers, schedules, balance, mixing and averages of a phase."""

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

from tlbatch.config.job import Job
from tlbatch.config.training import Optimizer, Phase
from tlbatch.data.sampler import class_balanced
from tlbatch.model.average import Average, averaged
from tlbatch.model.build import build_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.training.optim import Anchor, build_optimizer, build_schedule
from tlbatch.training.step import RunningPhase, class_weights, mixed, start_phase


def make(cut: str = "blocks.1", **phase: object) -> tuple[Classifier, Phase]:
    tree = {
        "data": {"images": "x"},
        "model": {"backbone": "timm:test_efficientnet", "size": 32},
        "phase": [{"cut": cut, **phase}],
    }
    job = Job.model_validate(tree)
    model = build_classifier(job, 3)
    model.set_cut(cut, freeze_batch_norm=True)
    return model, job.phase[0]


IMAGES = torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def step(running: RunningPhase, **options: object) -> float:
    settings = {"global_size": 8, "class_weights": torch.ones(3)} | options
    running.model.train()
    return float(running.step(IMAGES, LABELS, torch.zeros(8, dtype=torch.uint8), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adadelta"])
def test_every_optimiser_lowers_the_loss(name: str) -> None:
    lr = {"adadelta": 10.0, "sgd": 1.0, "rmsprop": 1e-3}.get(name, 1e-2)
    model, phase = make(optimizer={"name": name, "lr": lr, "backbone_lr": lr}, warmup=0, grad_clip=0)
    running = start_phase(Accelerator(cpu=True), model, phase, steps_per_epoch=30, seed=0)
    found = [step(running) for _ in range(15)]
    assert found[-1] < found[0] - 0.01


def test_rates_fall_from_the_head_down_by_the_layer() -> None:
    model, _ = make("none")
    settings = Optimizer(lr=1e-2, backbone_lr=1e-3, layer_decay=0.5)
    groups = build_optimizer(model, settings).param_groups
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rate[id(model.head[-1].weight)] == 1e-2
    net = model.backbone
    downwards = ("conv_head.weight", "blocks.4.0.conv_pwl.weight", "blocks.0.0.conv.weight", "conv_stem.weight")
    by_depth = [rate[id(net.get_parameter(name))] for name in downwards]
    assert by_depth == sorted(by_depth, reverse=True)
    assert len(set(by_depth)) == 4
    assert by_depth[0] == 1e-3
    assert set(rate) == {id(p) for p in model.parameters() if p.requires_grad}
    decays = {parameter.ndim > 1: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {True: 0.01, False: 0.0}


def test_what_is_frozen_has_no_state_in_the_optimiser() -> None:
    model, phase = make("blocks.3")
    running = start_phase(Accelerator(cpu=True), model, phase, steps_per_epoch=5, seed=0)
    step(running)
    states = running.optimizer.state_dict()["state"]
    assert len(states) == sum(parameter.requires_grad for parameter in model.parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith("backbone.blocks.1."))


def test_decay_toward_the_start_pulls_the_backbone_back_and_leaves_the_head() -> None:
    model, _ = make("blocks.3")
    settings = Optimizer(name="sgd", weight_decay=0.1, decay_to="start")
    anchor, optimizer = Anchor(model, settings), build_optimizer(model, settings)
    weight = model.backbone.get_parameter("conv_head.weight")
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 2
    weight.grad = torch.zeros_like(weight)
    anchor.pull()
    assert torch.allclose(weight.grad, torch.full_like(weight, 0.2), atol=1e-5)
    assert torch.allclose(weight - start, torch.full_like(weight, 2.0), atol=1e-5)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert (decays[id(weight)], decays[id(model.head[-1].weight)]) == (0.0, 0.1)


@pytest.mark.parametrize(
    ("phase", "wanted"),
    [
        ({"schedule": "constant", "warmup": 0}, [1] * 8),
        ({"schedule": "constant", "warmup": 3}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 0.25}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.5, "warmup": 0}, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
        ({"schedule": "cosine", "warmup": 0}, [1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ],
)  # fmt: skip
def test_the_rate_follows_the_schedule(phase: dict[str, object], wanted: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, Phase(epochs=4, **phase), 2)
    found = []
    for _ in range(8):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(wanted, abs=1e-4)


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    weights = []
    for accumulate in (1, 3):
        model, phase = make(accumulate=accumulate, optimizer={"name": "sgd", "lr": 0.1}, warmup=0)
        step(start_phase(Accelerator(cpu=True), model, phase, steps_per_epoch=5, seed=0))
        weights.append(model.state_dict())
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])


def test_class_weights_make_rare_classes_weigh_as_much_and_average_to_one() -> None:
    counts = torch.tensor([60, 30, 10])
    full = class_weights(counts, strength=1.0)
    assert torch.allclose(full * counts, torch.full((3,), 100 / 3))
    assert class_weights(counts, strength=0.0).tolist() == [1, 1, 1]
    assert float((class_weights(counts, strength=0.4) * counts).sum()) == pytest.approx(100)
    model, phase = make("pool", warmup=0)
    running = start_phase(Accelerator(cpu=True), model, phase, steps_per_epoch=5, seed=0)
    assert step(running, class_weights=torch.zeros(3)) == 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 5))
def test_a_balanced_epoch_has_the_length_of_the_split_and_the_asked_for_mix(
    labels: list[int], strength: float, epoch: int
) -> None:
    import numpy as np

    array = np.array(labels)
    picked = class_balanced(array, strength=strength, seed=1, epoch=epoch)
    assert len(picked) == len(labels)
    assert (picked == class_balanced(array, strength=strength, seed=1, epoch=epoch)).all()
    classes, counts = np.unique(array, return_counts=True)
    wanted = (1 - strength) * counts + strength * len(labels) / len(classes)
    found = np.array([(array[picked] == name).sum() for name in classes])
    assert (np.abs(found - wanted) <= 1).all()
    for name, count in zip(classes, counts, strict=True):  # in turn: none twice more than another
        taken = np.bincount(picked[array[picked] == name], minlength=len(labels))[array == name]
        assert taken.max(initial=0) - taken.min() <= 1 or count == 0
    if strength == 0:
        assert sorted(picked) == list(range(len(labels)))


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_mixed_images_are_wanted_in_the_shares_they_are_mixed_in(kind: type[v2.Transform]) -> None:
    torch.manual_seed(0)
    images = torch.stack([torch.full((8, 8, 3), value, dtype=torch.uint8) for value in (0, 100, 200)])
    found, wanted = mixed(kind(alpha=1.0), images, torch.eye(3))
    assert (found.dtype, found.shape) == (torch.uint8, (3, 8, 8, 3))
    means = found.float().mean((1, 2, 3))
    assert torch.allclose(means, wanted @ torch.tensor([0.0, 100.0, 200.0]), atol=1)
    assert torch.allclose(wanted.sum(1), torch.ones(3))


def test_an_average_follows_the_weights_and_is_taken_on_and_off() -> None:
    model, _ = make("blocks.3")
    weight = model.head[-1].weight
    moving = Average(model, 0.75)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    moving.update(model)
    with averaged(model, moving):
        assert torch.allclose(weight, start + 0.25)
    assert torch.allclose(weight, start + 1)
    with averaged(model, None):
        assert torch.allclose(weight, start + 1)
