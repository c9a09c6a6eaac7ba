"""Exported graphs of networks, heads, objectives and views, with random weights."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tlbatch.config.job import Job
from tlbatch.deploy.graph import ExportModule, program_of, reason_of, run_onnx, run_pt2, to_onnx, to_pt2
from tlbatch.metrics.calibration import tempered
from tlbatch.model.build import build_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.model.heads import KernelMap, Neighbours
from tlbatch.model.symmetries import apply_symmetries, apply_symmetry

pytestmark = pytest.mark.chain


def build(num_classes: int = 4, *, cut: str = "pool", **sections: Any) -> Classifier:
    torch.manual_seed(0)
    model = {"backbone": "timm:test_efficientnet", "size": 32}
    tree = {"data": {"source": "phantom"}, "model": model, "phase": [{"cut": cut}], **sections}
    built = build_classifier(Job.model_validate(tree), num_classes).eval()
    with torch.no_grad():  # else all outputs are nearly equal
        for name, parameter in built.head.named_parameters():
            parameter.mul_(200 if name.endswith("weight") else 1)
    built.set_cut(cut, freeze_batch_norm=False)
    return built


def with_points(kind: str) -> Classifier:
    """Return a model with a head fitted to fewer than 26 points, for which torch computes distances in another way."""
    built = build()
    with torch.inference_mode():
        points = built.to_cut(images(20, seed=1)).clone()
    width = points.shape[1]
    fitted: KernelMap | Neighbours
    if kind == "kernel":
        fitted = KernelMap(20, width)
        fitted.gamma.fill_(1 / width)
        fitted.whitening.normal_()
        built.head = nn.Sequential(fitted, nn.Linear(20, 4)).eval()
    else:
        fitted = Neighbours(20, width, num_classes=4)
        fitted.classes.copy_(torch.eye(4)[torch.arange(20) % 4])
        fitted.number.fill_(3)
        built.head = nn.Sequential(fitted).eval()
    fitted.mean.copy_(points.mean(0))
    fitted.scale.copy_(points.std(0))
    fitted.points.copy_((points - fitted.mean) / fitted.scale)
    return built


def images(number: int, seed: int = 0) -> torch.Tensor:
    """Return coloured noise with a darker part."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 100, (number, 32, 32, 3), generator=generator)
    drawn += torch.randint(0, 156, (number, 1, 1, 3), generator=generator)
    drawn[:, :, 20:] //= 3
    return drawn.to(torch.uint8)


@pytest.mark.parametrize(
    "made",
    [
        lambda: build(objective="focal"),
        lambda: build(2, objective="binary"),
        lambda: build(objective="corn"),
        lambda: build(objective="cumulative", head={"pool": "gem"}, cut="blocks.1"),
        lambda: build(objective="regression"),
        lambda: build(2, objective="regression"),
        lambda: build(objective="corn", decision="expected-grade"),
        lambda: build(head={"pool": "attention"}, cut="none"),
        lambda: build(head={"group_mean": True}),
        lambda: build(head={"after": ["blocks.2", "pool"], "widths": [8], "batch_norm": True, "dropout": 0.2}),
        lambda: build(head={"pool": "flatten"}),
        lambda: with_points("kernel"),
        lambda: with_points("neighbours"),
    ],
)
def test_graph_matches_its_classifier_for_any_batch_size(made: Callable[[], Classifier]) -> None:
    model = made()
    some = images(9)
    with torch.inference_mode():
        expected = model.probabilities(model(some)).numpy()
    assert expected.std(axis=0).max() > 1e-3
    program = program_of(ExportModule(model, symmetry=(0,), of_vectors=False, temperature=None))
    for make, run in ((to_onnx, run_onnx), (to_pt2, run_pt2)):
        data = make(program)
        assert np.abs(run(data, some) - expected).max() < 1e-5
        assert np.abs(run(data, some[:1]) - expected[:1]).max() < 1e-5


@pytest.mark.parametrize(("of_vectors", "temperature"), [(False, 0.5), (True, 3.0)])
def test_views_and_temperature_are_in_the_graph(*, of_vectors: bool, temperature: float) -> None:
    model, some = build(), images(5)
    with torch.inference_mode():
        views = [apply_symmetries(some, torch.full((5,), turn, dtype=torch.uint8)) for turn in (0, 3, 6)]
        if of_vectors:
            plain = model.probabilities(model(torch.stack([model.to_cut(view) for view in views]).mean(0)))
        else:
            plain = torch.stack([model.probabilities(model(view)) for view in views]).mean(0)
    expected = tempered(plain.numpy(), temperature)
    assert np.abs(expected - plain.numpy()).max() > 1e-3
    answering = ExportModule(model, symmetry=(0, 3, 6), of_vectors=of_vectors, temperature=temperature)
    with torch.inference_mode():
        assert np.abs(answering(some).numpy() - expected).max() < 1e-5
    assert np.abs(run_onnx(to_onnx(program_of(answering)), some) - expected).max() < 1e-5


def test_one_symmetry_for_all_images_equals_one_per_image() -> None:
    some = images(3)
    for turn in range(8):
        assert torch.equal(
            apply_symmetry(some, turn), apply_symmetries(some, torch.full((3,), turn, dtype=torch.uint8))
        )
    assert torch.equal(apply_symmetry(some, 1), some.flip(2))
    assert torch.equal(apply_symmetry(some, 5), some.flip(2).flip(1, 2))
    assert torch.equal(apply_symmetry(some, 2), some.transpose(1, 2).flip(1))
    mixed = apply_symmetries(some, torch.tensor([0, 3, 6], dtype=torch.uint8))
    assert [
        torch.equal(mixed[at], apply_symmetry(some[at : at + 1], turn)[0]) for at, turn in enumerate((0, 3, 6))
    ] == [True] * 3


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ([ValueError("one\ntwo")], "ValueError: one"),
        ([RuntimeError("long story"), ValueError("\x1b[96mno aten.x\x1b[0m")], "ValueError: no aten.x"),
        ([ValueError("\n\n")], "ValueError"),
    ],
)
def test_reason_is_the_innermost_cause(errors: Sequence[Exception], says: str) -> None:
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    assert reason_of(errors[0]) == says
