"""The classifier with its cut set: what is frozen stays as it was, what is cached gives the same as what is not."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tlbatch.activations.encoder import Encoder, Tap, tap_shape, taps_of
from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.model.build import build_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.model.heads import KernelMap


def make(num_classes: int = 3, **sections: object) -> Classifier:
    tree = {
        "data": {"images": "x"},
        "model": {"backbone": "timm:test_efficientnet", "size": 32},
        "phase": [{"cut": "pool"}],
        **sections,
    }
    return build_classifier(Job.model_validate(tree), num_classes)


def images(n: int = 4, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 255, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(model: Classifier) -> set[str]:
    return {name.removeprefix("backbone.").split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("cut", "trains"),
    [("pool", {"head"}), ("none", {"conv_stem", "bn1", "blocks", "conv_head", "bn2", "head"}),
     ("conv_stem", {"bn1", "blocks", "conv_head", "bn2", "head"}), ("blocks", {"conv_head", "bn2", "head"}),
     ("bn2", {"head"})],
)  # fmt: skip
def test_what_stands_before_the_cut_is_frozen_and_what_comes_after_trains(cut: str, trains: set[str]) -> None:
    model = make()
    model.set_cut(cut, freeze_batch_norm=False)
    assert trained(model) == trains


def test_the_head_stays_in_float32_under_autocast_and_halves_from_the_cache_are_taken_without() -> None:
    model = make().eval()
    model.head = nn.Sequential(KernelMap(50, 256), nn.Linear(50, 3))
    features = torch.randn(4, 256)
    model.head[0].points.copy_(torch.randn(50, 256))
    model.head[0].whitening.copy_(1e3 * torch.randn(50, 50))
    model.set_cut("pool", freeze_batch_norm=True)
    plain = model(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(features), plain)
    model = make().eval()
    model.set_cut("blocks.2", freeze_batch_norm=True)
    activations = model.to_cut(images())
    assert torch.allclose(model(activations.bfloat16()), model(activations), atol=0.05)


def test_a_later_phase_can_move_the_cut_both_ways_and_what_is_frozen_stays_in_eval_mode() -> None:
    model = make()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for cut, training in (("pool", 0), ("none", len(norms)), ("blocks", 1), ("pool", 0)):
        model.set_cut(cut, freeze_batch_norm=False)
        for _ in range(2):  # train() after a validation must freeze again
            model.eval()
            model.train()
            assert sum(norm.training for norm in norms) == training, cut
            assert sum(norm.weight.requires_grad for norm in norms) == training


@pytest.mark.parametrize("cut", ["blocks.1", "pool"])
def test_a_step_changes_neither_weights_nor_statistics_before_the_cut(cut: str) -> None:
    model = make()
    model.set_cut(cut, freeze_batch_norm=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model(images()).square().sum().backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    if cut == "pool":
        assert {key.split(".")[0] for key in changed} == {"head"}
        return
    frozen = ("backbone.conv_stem", "backbone.bn1", "backbone.blocks.0", "backbone.blocks.1.")
    assert not [key for key in changed if key.startswith(frozen)]
    assert "backbone.blocks.2.0.bn1.running_mean" in changed


def test_batch_norm_after_the_cut_can_be_frozen_too() -> None:
    model = make()
    model.set_cut("none", freeze_batch_norm=True)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters(recurse=False))


@pytest.mark.parametrize("pool", ["auto", "avg", "max", "avgmax", "gem", "attention", "flatten"])
@pytest.mark.parametrize("cut", ["none", "blocks.2", "pool"])
def test_activations_at_the_cut_give_the_outputs_of_the_images(pool: str, cut: str) -> None:
    model = make(head={"pool": pool, "widths": [8], "dropout": 0.5, "batch_norm": True})
    model.set_cut(cut, freeze_batch_norm=False)
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(0)
        whole = model(images())
        torch.manual_seed(0)
        assert torch.allclose(model(model.to_cut(images())), whole, atol=1e-5)
        assert whole.shape == (4, 3)
    assert model.to_cut(images()).shape[1:] == model.shape_at(model.cut)


def test_a_head_can_stand_on_an_inner_module_and_nothing_behind_it_is_used() -> None:
    model = make(head={"after": "blocks.2"})
    assert model.head[-1].in_features == 32
    assert model.chain.places[model.end].name == "blocks.2"
    assert model.num_parameters() < make().num_parameters()
    model.set_cut("blocks.1", freeze_batch_norm=False)
    assert trained(model) == {"blocks", "head"}
    model(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(UserError, match=r"'blocks\.3': it lies after head\.after = blocks\.2"):
        model.set_cut("blocks.3", freeze_batch_norm=False)
    with pytest.raises(UserError, match=r"head\.after 'blocks\.9': no such module"):
        make(head={"after": "blocks.9"})


def test_the_cut_flatten_puts_the_head_on_the_flattened_last_map() -> None:
    model = make(
        model={"backbone": "timm:test_efficientnet", "size": 64}, phase=[{"cut": "flatten"}, {"cut": "blocks.3"}]
    )
    assert model.head[-1].in_features == 256 * 2 * 2
    vgg = make(model={"backbone": "vgg11", "size": 64}, phase=[{"cut": "flatten"}])
    assert vgg.head[-1].in_features == 512 * 7 * 7  # after its adaptive pooling
    assert vgg.spec.num_features == 4096


def test_features_of_a_transformer_are_pooled_over_its_tokens() -> None:
    model = make(model={"backbone": "timm:test_vit"}, head={"after": "blocks.2"})
    model.set_cut("pool", freeze_batch_norm=False)
    assert model.to_cut(images(2, 160)).shape == (2, 64)


def test_the_head_is_the_same_whatever_was_drawn_before() -> None:
    heads = []
    for _ in range(2):
        torch.rand(3)
        heads.append(make(seed=3).head[-1].weight)
    assert torch.equal(heads[0], heads[1])


def test_binary_is_for_two_classes() -> None:
    assert make(2, objective="binary").head[-1].out_features == 1
    with pytest.raises(UserError, match="binary is for two classes, not 3"):
        make(3, objective="binary")


@pytest.mark.chain
def test_compiling_changes_nothing_but_the_time() -> None:
    plain, compiled = make(), make(train={"compile": True})
    compiled._compiled = True
    for model in (plain, compiled):
        model.set_cut("blocks.3", freeze_batch_norm=True)
        model.eval()
    assert torch.allclose(plain(images()), compiled(images()), atol=1e-4)


def test_stored_activations_are_not_overwritten_by_what_works_in_place_after_them() -> None:
    """ReLU in a VGG overwrites its input, which may be what another cut stores."""
    vgg = {"backbone": "vgg11", "size": 64}
    model = make(model=vgg, phase=[{"cut": "features.0"}], head={"after": ["features.3", "pool"]})
    taps = [*taps_of(model, model.find("features.0")), *taps_of(model, model.find("pool"))]
    assert taps == [(model.find("features.0"), -1), (model.find("features.3"), 0), (model.find("pool"), 1)]
    together = Encoder(model, taps, Accelerator(cpu=True)).encode(images(2, 64))
    for tap, found in zip(taps, together, strict=True):
        (alone,) = Encoder(model, [tap], Accelerator(cpu=True)).encode(images(2, 64))
        assert found.shape[1:] == tap_shape(model, tap)
        assert torch.equal(found, alone)
    assert together[0].min() < 0


@pytest.mark.parametrize("backbone", ["timm:tf_efficientnet_lite0", "resnet18", "densenet121", "vgg11"])
def test_the_encoder_gives_what_the_network_gives_without_its_batch_norms(backbone: str) -> None:
    """A densenet normalises before its convolutions too, a VGG not at all; neither is folded wrongly."""
    model = make(model={"backbone": backbone, "size": 64})
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.backbone.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            low = 0.5 if name.endswith("var") else -0.5
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + low)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_cut("pool", freeze_batch_norm=True)
    model.eval()
    (found,) = Encoder(model, [Tap(model.end)], Accelerator(cpu=True)).encode(images(10, 64))
    with torch.inference_mode():
        wanted = model.to_cut(images(10, 64))
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    whole = model.chain.folded(0, model.end)
    norms = [module for module in whole.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == {"densenet121": 62, "vgg11": 0}.get(backbone, 0)


def test_features_of_several_places_stand_side_by_side() -> None:
    model = make(head={"after": ["blocks.3", "blocks.1", "pool"], "pool": "avgmax"})
    alone = [make(head={"after": name, "pool": "avgmax"}) for name in ("blocks.1", "blocks.3", "pool")]
    model.set_cut("pool", freeze_batch_norm=False)
    model.eval()
    parts = []
    for one in alone:
        one.backbone.load_state_dict(model.backbone.state_dict())
        one.set_cut("pool", freeze_batch_norm=False)
        one.eval()
        parts.append(one.to_cut(images()))
    assert torch.allclose(model.to_cut(images()), torch.cat(parts, 1), atol=1e-5)
    assert model.head[-1].in_features == sum(part.shape[1] for part in parts)
    with pytest.raises(UserError, match=r"it lies after head\.after = blocks\.1"):
        model.set_cut("blocks.2", freeze_batch_norm=False)
