import pytest
import timm
import torch
from torch import nn

from tlbatch.job.config import Model
from tlbatch.job.errors import UserError
from tlbatch.model.classifier import Classifier, build_classifier
from tlbatch.model.cut import freeze, frozen_to_eval


@pytest.fixture
def model() -> Classifier:
    return build_classifier(Model(backbone="timm:test_efficientnet", size=32), 3, seed=0, pretrained=False)


def trained(model: Classifier) -> set[str]:
    return {name.removeprefix("backbone.").split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("cut", "trains"),
    [("pool", {"head"}), ("none", {"conv_stem", "bn1", "blocks", "conv_head", "bn2", "head"}),
     ("conv_stem", {"bn1", "blocks", "conv_head", "bn2", "head"}), ("blocks", {"conv_head", "bn2", "head"}),
     ("bn2", {"head"})],
)  # fmt: skip
def test_what_stands_before_the_cut_is_frozen_and_what_comes_after_trains(
    model: Classifier, cut: str, trains: set[str]
) -> None:
    model.set_cut(cut, freeze_batch_norm=False)
    assert trained(model) == trains


def test_a_later_phase_can_move_the_cut_both_ways(model: Classifier) -> None:
    for cut, trains in (("pool", {"head"}), ("none", None), ("pool", {"head"})):
        model.set_cut(cut, freeze_batch_norm=False)
        assert trains is None or trained(model) == trains


def test_a_step_changes_neither_weights_nor_statistics_before_the_cut(model: Classifier) -> None:
    model.set_cut("blocks.1", freeze_batch_norm=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model(torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8)).square().sum().backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = ("backbone.conv_stem", "backbone.bn1", "backbone.blocks.0", "backbone.blocks.1.")
    assert not [key for key in changed if key.startswith(frozen)]
    assert "backbone.blocks.2.0.bn1.running_mean" in changed


def test_batch_norm_after_the_cut_can_be_frozen_too(model: Classifier) -> None:
    model.set_cut("none", freeze_batch_norm=True)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters(recurse=False))


def test_in_a_transformer_dropout_and_class_token_go_with_the_cut() -> None:
    net = timm.create_model("test_vit", proj_drop_rate=0.5, num_classes=0)
    freeze(net, "blocks.2", freeze_batch_norm=False)
    net.train()
    frozen_to_eval(net, "blocks.2", freeze_batch_norm=False)
    dropouts = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Dropout) and module.p]
    on = {name.split(".")[1] for name, module in dropouts if name.startswith("blocks") and module.training}
    assert on == {"3", "4", "5"}
    assert not net.cls_token.requires_grad
    assert net.norm.weight.requires_grad


def test_an_unknown_cut_lists_those_there_are(model: Classifier) -> None:
    with pytest.raises(UserError, match=r"phase cut 'blocks\.9': no such module .* it has pool, none, conv_stem"):
        model.set_cut("blocks.9", freeze_batch_norm=False)
