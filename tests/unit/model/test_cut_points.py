"""Where networks can be cut, and that what comes before and after a cut is the whole again."""

import re

import pytest
import timm
import torch
from torch import nn

from tlbatch.config.model import Model
from tlbatch.core.errors import UserError
from tlbatch.model.backbones import build_backbone
from tlbatch.model.cut_points import Chain

SIDES = {"timm:test_vit": 160, "vit_b_16": 224, "swin_t": 64}


def chain_of(name: str) -> tuple[nn.Module, Chain, int]:
    torch.manual_seed(0)
    backbone = build_backbone(Model(backbone=name))
    return backbone.net, Chain(backbone.net), SIDES.get(name, 64 if backbone.size < 299 else 96)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("squeezenet1_0", ["features.7", "features.3.squeeze"]),
        ("resnet18", ["layer3", "layer2.0", "conv1", "maxpool"]),
        ("googlenet", ["conv2", "inception4a"]),
        ("inception_v3", ["Mixed_5d"]),
        ("densenet121", ["features.denseblock2", "features.transition1"]),
        ("convnext_tiny", ["features.3", "features.5.2"]),
        ("efficientnet_b0", ["features.4"]),
        ("mobilenet_v2", ["features.9"]),
        ("swin_t", ["features.3"]),
        ("timm:test_efficientnet", ["blocks.1", "blocks.3.0", "conv_stem", "bn2"]),
        ("timm:test_vit", ["blocks.2"]),
        ("timm:test_resnet", ["layer2"]),
        ("timm:test_convnext", ["stages.1"]),
    ],
)
def test_before_and_after_a_cut_together_are_the_network_whether_it_trains_or_not(name: str, cuts: list[str]) -> None:
    net, chain, side = chain_of(name)
    inputs, last = torch.rand(3, 3, side, side), len(chain.places) - 1
    for training in (False, True):
        net.train(training)
        with torch.no_grad():
            torch.manual_seed(1)
            whole = net(inputs)
            for cut in cuts:
                at = chain.find(cut)
                before, after = chain.segment(0, at), chain.segment(at, last)
                net.train(training)
                torch.manual_seed(1)
                found = after.run(before.run(inputs, training=training), training=training)
                assert torch.allclose(found, whole, atol=1e-4), cut


@pytest.mark.parametrize("name", ["squeezenet1_0", "timm:test_efficientnet", "timm:test_vit"])
def test_parameters_before_and_after_a_cut_are_all_parameters_and_disjoint(name: str) -> None:
    net, chain, _ = chain_of(name)
    last = len(chain.places) - 1
    every = {key for key, _ in net.named_parameters()}
    for at in range(last + 1):
        before, after = set(chain.parameters(0, at)), set(chain.parameters(at, last))
        assert before | after == every
        assert not before & after


def test_layers_of_a_vgg_are_numbered_as_its_authors_number_them() -> None:
    """Keras: input 0, block1_conv1 1, ..., block4_conv3 13, block4_pool 14, block5_conv1 15, block5_pool 18."""
    with torch.device("meta"):
        _, chain, _ = chain_of("vgg16")
    by_name = {name: place.layer for place in chain.places for name in (place.name, *place.names)}
    assert (by_name["features.0"], by_name["features.1"], by_name["features.4"]) == (1, 1, 3)
    assert (by_name["features.22"], by_name["features.23"], by_name["features.24"]) == (13, 14, 15)
    assert (by_name["features.30"], by_name["features"], by_name["classifier.0"]) == (18, 18, 20)
    assert chain.places[chain.find("layer 15")].name == "features.23"
    assert chain.find("layer 15") == chain.find("features.23")
    with pytest.raises(UserError, match=re.escape("phase cut 'layer 99': the backbone has layers 1 to 21")):
        chain.find("layer 99")


def test_a_module_inside_which_several_values_cross_is_no_cut_and_the_cuts_are_listed() -> None:
    _, chain, _ = chain_of("resnet18")
    with pytest.raises(
        UserError, match=r"phase cut 'layer2\.0\.conv1': more than one value crosses there; .*cuts are pool, none"
    ):
        chain.find("layer2.0.conv1")
    with pytest.raises(UserError, match=r"phase cut 'layer9': no such module .*; similar: .*layer4"):
        chain.find("layer9")


@pytest.mark.parametrize(("name", "size"), [("squeezenet1_0", 16), ("timm:test_vit", 33)])
def test_a_size_that_the_backbone_cannot_take_is_refused_with_its_reason(name: str, size: int) -> None:
    backbone = build_backbone(Model(backbone=name, size=None if "vit" in name else size))
    with pytest.raises(UserError, match=f"model.size: the backbone does not accept {size} x {size} pixels"):
        Chain(backbone.net).shapes(torch.zeros(1, 3, size, size))


def test_a_segment_shares_its_weights_with_the_network_and_keeps_its_batch_norm_statistics_there() -> None:
    net, chain, side = chain_of("timm:test_efficientnet")
    after = chain.segment(chain.find("blocks.1"), len(chain.places) - 1)
    activation = chain.segment(0, chain.find("blocks.1")).run(torch.rand(2, 3, side, side), training=False).detach()
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    after.run(activation, training=True).sum().backward()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert "blocks.2.0.bn1.running_mean" in changed
    assert not any(key.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1.")) for key in changed)
    assert net.get_parameter("conv_head.weight").grad is not None
    assert net.get_parameter("conv_stem.weight").grad is None


def test_a_network_that_cannot_be_traced_is_cut_at_its_ends_only() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))

    net = Branching()
    chain = Chain(net)
    inputs = torch.rand(2, 3, 8, 8)
    assert (chain.find("none"), chain.find("pool")) == (0, 1)
    assert torch.equal(chain.segment(0, 1).run(inputs, training=False), net(inputs))
    assert chain.shapes(inputs[:1]) == ((3, 8, 8), (2,))
    with pytest.raises(UserError, match="more than one value crosses there"):
        chain.find("layer")


@pytest.mark.chain
def test_most_architectures_of_timm_can_be_cut_in_many_places() -> None:
    """One small model of each of timm's families that has a test model."""
    names = [name for name in timm.list_models("test_*") if "byob" not in name]
    assert len(names) >= 6
    for name in names:
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=0)
        assert len(Chain(net).places) >= 5, name
