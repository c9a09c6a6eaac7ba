"""What is shown of a network is what is in it: its activations, its filters, the evidence for a class."""

import numpy as np
import pytest
import torch
from torch import nn

from tlbatch.config.job import Job
from tlbatch.config.model import Head
from tlbatch.config.training import Objective
from tlbatch.core.errors import UserError
from tlbatch.model.backbones import Backbone
from tlbatch.model.build import build_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.model.interpret import activation_maps, features, first_filters, flat_map, grad_cam, telling_places
from tlbatch.model.objectives import Rule

CNN, VIT = {"backbone": "timm:test_efficientnet", "size": 64}, {"backbone": "timm:test_vit"}


def make(model: dict[str, object], num_classes: int = 3, **sections: object) -> Classifier:
    tree = {"data": {"images": "x"}, "model": model, "phase": [{"cut": "pool"}], **sections}
    return build_classifier(Job.model_validate(tree), num_classes)


def images(n: int, side: int) -> torch.Tensor:
    return torch.randint(0, 255, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Corner(nn.Module):
    """Sees how bright the upper left quarter is, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4, bias=False)
        self.act = nn.ReLU(inplace=True)
        nn.init.constant_(self.conv.weight, 0.01)
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :4, :4] = 1
        self.mask = nn.Buffer(mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.act(self.conv(x)) * self.mask).mean((2, 3))


class Untraceable(Corner):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class NoSlope(nn.Module):
    """Stands for a head of nearest neighbours, which only counts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x < 1).sum(1), (x >= 1).sum(1)], 1).float()


def on(net: nn.Module, num_features: int = 4, objective: Objective = "cross-entropy") -> Classifier:
    """A classifier on a network of one's own for images of 32 pixels, whose last output grows with every feature."""
    spec = Backbone(net, num_features, "fc", 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    model = Classifier(spec, Head(), pool="auto", rule=Rule(objective), num_classes=2)
    nn.init.zeros_(model.head[-1].bias)
    nn.init.constant_(model.head[-1].weight, -1)
    nn.init.constant_(model.head[-1].weight[-1], 1)
    return model


@pytest.mark.parametrize("model", [CNN, {"backbone": "vgg11", "size": 32}], ids=["timm", "works in place"])
def test_maps_are_what_a_hook_sees(model: dict[str, object]) -> None:
    classifier = make(model)
    size = classifier.spec.size
    names = ("conv_stem", "blocks.1", "bn2") if model is CNN else ("features.0", "features.1", "features.20")
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> None:
        classifier.backbone.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output: seen.update({name: output.clone()})
        )

    for name in names:
        keep(name)
    image = images(1, size)
    classifier.eval()
    with torch.no_grad():
        classifier.backbone(classifier.normalised(image))
    expected = {name: value[0].numpy() for name, value in seen.items()}
    found = activation_maps(classifier, image[0], names[::-1])
    assert list(found) == list(names[::-1])
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_maps_of_tokens_are_left_out_and_unknown_places_named() -> None:
    model = make(VIT)
    assert list(activation_maps(model, images(1, 160)[0], ["patch_embed.proj", "blocks.1"])) == ["patch_embed.proj"]
    with pytest.raises(UserError, match=r"'blocks\.99': no such module"):
        activation_maps(model, images(1, 160)[0], ["blocks.99"])
    early = make(CNN, head={"after": "blocks.1"})
    maps = activation_maps(early, images(1, 64)[0], ["pool", "blocks.1"])
    assert np.array_equal(maps["pool"], maps["blocks.1"])
    assert activation_maps(model, images(1, 160)[0], []) == {}


def test_telling_places_are_the_last_of_their_resolution_from_fine_to_coarse() -> None:
    for sections in ({}, {"head": {"pool": "gem"}}):
        model = make(CNN, **sections)
        names = telling_places(model)
        maps = activation_maps(model, images(1, 64)[0], names)
        assert [values.shape[1] for values in maps.values()] == [32, 16, 4, 2], "not 8, so that there are four"
        assert names[-1] == "bn2"
    assert telling_places(make(VIT)) == ("patch_embed",)
    short = telling_places(make(CNN, head={"after": "blocks.1"}))
    assert len(short) == 2
    assert short[-1] == "blocks.1"


def test_first_filters_are_the_weights_scaled_each_for_itself() -> None:
    model = make(CNN)
    weight = model.backbone.conv_stem.weight
    with torch.no_grad():
        weight[1] = 7
    found = first_filters(model)
    assert found.shape == (weight.shape[0], 3, 3, 3)
    assert (found[1] == 0.5).all()
    rest = np.delete(found, 1, axis=0)
    assert (rest.min((1, 2, 3)) == 0).all()
    assert (rest.max((1, 2, 3)) == 1).all()
    first = weight[0].detach().permute(1, 2, 0).numpy()
    assert np.corrcoef(first.ravel(), found[0].ravel())[0, 1] == pytest.approx(1)
    assert first_filters(on(nn.Flatten(), 3072)).shape == (0, 1, 1, 3)


@pytest.mark.parametrize("objective", ["cross-entropy", "binary", "regression", "corn", "cumulative", "focal"])
def test_the_evidence_lies_where_the_network_looks(objective: Objective) -> None:
    model = on(Corner(), objective=objective)
    white = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
    found = grad_cam(model, white, torch.tensor([1, 0]))
    assert found is not None
    assert found.shape == (2, 8, 8)
    assert (found[0, :4, :4] == 1).all()
    assert found[0].sum() == 16
    assert (found[1] == 0).all(), "nothing speaks for the other class"


def test_a_head_on_several_places_is_explained_at_the_last_of_them() -> None:
    model = make(CNN, head={"after": ["blocks.1", "blocks.2"]}).eval()
    some = images(1, 64)
    found = grad_cam(model, some, torch.tensor([1]))
    middle, last = (model.chain.segment(0, end).run(model.normalised(some), training=False) for end in model.ends)
    last = last.detach().requires_grad_()
    logits = model.head(torch.cat([middle.mean((2, 3)), last.mean((2, 3))], 1))
    (slope,) = torch.autograd.grad(logits.log_softmax(1)[0, 1], last)
    expected = (slope.mean((2, 3), keepdim=True) * last).sum(1).relu().detach()
    assert found is not None
    np.testing.assert_allclose(found, (expected / expected.max()).numpy(), atol=1e-4)
    assert telling_places(model)[-1] == "blocks.2"


def test_the_evidence_follows_what_is_in_the_image() -> None:
    spot = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    spot[:, 4:8, 8:12] = 200
    spot[:, 20:24, 20:24] = 255
    found = grad_cam(on(Corner()), spot, torch.tensor([1]))
    assert found is not None
    assert np.argwhere(found[0]).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("model", "sections", "side"),
    [(CNN, {}, 2), (CNN, {"head": {"pool": "gem"}}, 2), (CNN, {"head": {"after": "blocks.1"}}, 16),
     (CNN, {"head": {"after": ["blocks.1", "blocks.2", "pool"]}}, 2),
     (VIT, {}, 10),
     (VIT, {"head": {"pool": "avg"}}, 10), ({"backbone": "timm:test_efficientnet", "size": 32}, {}, 2)],
)  # fmt: skip
def test_maps_and_square_tokens_give_evidence_between_0_and_1(
    model: dict[str, object], sections: dict[str, object], side: int
) -> None:
    classifier = make(model, **sections)
    some = images(3, classifier.spec.size)
    found = grad_cam(classifier, some, torch.tensor([0, 1, 2]))
    assert found is not None
    assert found.shape == (3, side, side)
    assert found.min() >= 0
    assert found.max() == 1
    with torch.inference_mode():
        again = grad_cam(classifier, some, torch.tensor([0, 1, 2]))
    assert np.array_equal(found, again)
    for parameter in classifier.parameters():
        assert parameter.grad is None


def test_without_a_map_there_is_no_evidence_to_show() -> None:
    some = images(1, 32)
    assert grad_cam(on(Untraceable()), some, torch.tensor([1])) is None
    assert grad_cam(on(nn.Flatten(), 3072), some, torch.tensor([1])) is None
    assert telling_places(on(Untraceable())) == ()
    nearest = on(Corner())
    nearest.head = nn.Sequential(NoSlope())
    assert grad_cam(nearest, some, torch.tensor([1])) is None


@pytest.mark.parametrize(
    "head", [{"pool": "auto"}, {"pool": "gem"}, {"pool": "flatten"}, {"after": ["blocks.1", "blocks.3"]}]
)
def test_features_are_what_the_head_turns_into_outputs(head: dict[str, object]) -> None:
    model = make(CNN, head=head).eval()
    some = images(3, 64)
    found = features(model, some)
    with torch.no_grad():
        torch.testing.assert_close(model.head(torch.from_numpy(found)), model(some))


def test_looking_changes_nothing() -> None:
    model = make(CNN)
    model.set_cut("blocks.2", freeze_batch_norm=False)
    model.train()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    some = images(2, 64)
    grad_cam(model, some, torch.tensor([0, 1]))
    features(model, some)
    activation_maps(model, some[0], telling_places(model))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("each", "width"), [(3, 20), (30, 20), (30, 200), (30, 1)])
def test_the_plane_keeps_two_clusters_apart(each: int, width: int) -> None:
    rows = np.random.default_rng(0).normal(size=(2 * each, width)).astype(np.float32)
    rows[each:] += 20
    plane = flat_map(rows, 1)
    assert plane.shape == (2 * each, 2)
    assert np.isfinite(plane).all()
    centres = plane[:each].mean(0), plane[each:].mean(0)
    nearer = np.linalg.norm(plane[:, None] - np.array(centres), axis=2).argmin(1)
    assert nearer.tolist() == [0] * each + [1] * each
    assert np.array_equal(plane, flat_map(rows, 1))


@pytest.mark.parametrize("n", [0, 1, 2, 9, 10, 30])
def test_few_or_equal_rows_have_a_place_too(n: int) -> None:
    assert (flat_map(np.ones((n, 5), np.float32), 0) == 0).all()
    plane = flat_map(np.arange(5 * n, dtype=np.float32).reshape(n, 5) ** 0.5, 0)
    assert plane.shape == (n, 2)
    assert np.isfinite(plane).all()
