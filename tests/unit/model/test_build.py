"""The published systems as job files: their networks have the published numbers of weights."""

from pathlib import Path

import pytest
import torch

from tlbatch.config.load import load_job
from tlbatch.model.build import build_classifier
from tlbatch.model.classifier import Classifier


def phases_of(jobs: Path, name: str, num_classes: int) -> tuple[Classifier, list[int]]:
    """The model of a job, and how many of its weights train in each phase."""
    labels = ["data.labels=y"] if name.startswith("retinopathy") else []
    job = load_job([jobs / f"{name}.toml"], ["data.images=x", *labels])
    found = []
    with torch.device("meta"):  # shapes only
        model = build_classifier(job, num_classes)
        for phase in job.phase:
            model.set_cut(phase.cut, freeze_batch_norm=phase.batch_norm == "frozen")
            found.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    return model, found


@pytest.mark.parametrize(
    ("name", "num_classes", "total", "trained"),
    [
        ("retinopathy_vgg16_lr1", 5, 14_714_688 + 5 * 25_089, [5 * 25_089]),
        ("retinopathy_vgg16_dl1", 5, 21_138_757, [6_424_069]),
        ("retinopathy_vgg16_dl2", 5, 14_714_688 + 6_456_325, [6_456_325]),
        ("retinopathy_vgg16_ft1", 5, 21_138_757, [13_503_493]),
        ("retinopathy_vgg16_ft2", 5, 21_138_757, [13_503_493]),
        ("flowers17_vgg16", 17, 14_714_688 + 6_427_153, [6_427_153, 7_079_424 + 6_427_153]),
        ("dogs_vs_cats_vgg16", 2, 134_260_544 + 4_097, [4_097]),
    ],
)
def test_the_networks_have_the_published_numbers_of_weights(
    jobs: Path, name: str, num_classes: int, total: int, trained: list[int]
) -> None:
    model, found = phases_of(jobs, name, num_classes)
    assert (model.num_parameters(), found) == (total, trained)


def test_two_ways_to_the_same_head_load_one_anothers_weights(jobs: Path) -> None:
    """FT#2 begins with the head of DL#1."""
    dl1, ft2 = (phases_of(jobs, f"retinopathy_vgg16_{name}", 5)[0].head.state_dict() for name in ("dl1", "ft2"))
    assert {key: value.shape for key, value in dl1.items()} == {key: value.shape for key, value in ft2.items()}


def test_of_googlenet_all_but_two_layers_of_the_input_side_train(jobs: Path) -> None:
    model, (trained,) = phases_of(jobs, "retinopathy_googlenet", 5)
    frozen = {name for name, p in model.backbone.named_parameters() if not p.requires_grad and ".bn." not in name}
    assert frozen == {"conv1.conv.weight", "conv2.conv.weight"}
    assert trained > 5_000_000
