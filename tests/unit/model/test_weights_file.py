"""Weights as training programs write them: which are read, and that no code of a file runs."""

import argparse
import logging
import math
import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tlbatch.config.model import Model
from tlbatch.core.errors import UserError
from tlbatch.model.backbones import build_backbone, load_weights
from tlbatch.model.weights_file import read_tensors

JOB = Model(backbone="timm:test_vit")
FIRST = "patch_embed.proj.weight"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = timm.create_model("test_vit", num_classes=5).state_dict()
    return state


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def without_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def raised(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value + 1 for key, value in state.items()}


def loaded(path: Path, stored: object, entry: str = "") -> torch.Tensor:
    """Return the first tensor of the network after it was loaded from a file."""
    torch.save(stored, path)
    backbone = build_backbone(JOB)
    load_weights(backbone, path, match="name", entry=entry)
    found: torch.Tensor = backbone.net.state_dict()[FIRST]
    return found


NAMESPACE = argparse.Namespace(lr=1e-3, output=Path("runs/one"), sizes=np.array([3, 4]), best=np.float32(0.5))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda s: s, id="plain"),
        pytest.param(OrderedDict, id="ordered"),
        pytest.param(lambda s: {"model": s, "args": NAMESPACE, "epoch": 7}, id="Namespace beside"),
        pytest.param(lambda s: {"state_dict": s, "best_acc1": np.float64(81.2)}, id="numpy number beside"),
        pytest.param(lambda s: {"state_dict": s, "best_acc1": torch.tensor(81.2)}, id="tensor beside"),
        pytest.param(lambda s: {"net": s, "acc": 91.0, "criterion": {"weight": torch.ones(5)}}, id="net"),
        pytest.param(lambda s: {"semantic_net": s, "ema": raised(s)}, id="a name with the letters of ema"),
        pytest.param(
            lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"exp_avg": s[FIRST]}}}},
            id="tutorial",
        ),
        pytest.param(lambda s: {"state_dict": prefixed(s, "module.")}, id="data parallel"),
        pytest.param(lambda s: prefixed(s, "_orig_mod."), id="compiled"),
        pytest.param(
            lambda s: {"state_dict": prefixed(s, "model.") | {"criterion.weight": torch.ones(5)}, "callbacks": {}},
            id="Lightning",
        ),
        pytest.param(lambda s: {"model": {"state_dict": s}}, id="two levels"),
        pytest.param(lambda s: {"teacher": prefixed(s, "backbone.")}, id="teacher alone"),
        pytest.param(lambda s: {"module": s, "history": {"loss": [1.0]}}, id="module"),
        pytest.param(lambda s: s | {"mask_token": torch.zeros(1), "decoder.weight": torch.zeros(2, 2)}, id="decoder"),
        pytest.param(without_head, id="no classifier"),
        pytest.param(lambda s: s | {"head.weight": torch.full((5, 64), torch.nan)}, id="damaged classifier"),
        pytest.param(
            lambda s: s | {"head.weight": torch.zeros(3, 64), "head.bias": torch.zeros(3)}, id="other classes"
        ),
        pytest.param(lambda s: {"state_dict": s, "state_dict_ema": raised(s)}, id="EMA beside"),
        pytest.param(lambda s: {"model": s, "model_ema": raised(s)}, id="model_ema beside"),
    ],
)
def test_weights_are_found_where_programs_put_them(state: dict[str, torch.Tensor], tmp_path: Path, wrap: Any) -> None:
    assert torch.equal(loaded(tmp_path / "x.pth", wrap(state)), state[FIRST])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_loaded(
    state: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    found = loaded(tmp_path / "x.pth", {key: value.to(dtype) for key, value in state.items()})
    assert found.dtype == torch.float32
    assert torch.equal(found, state[FIRST].to(dtype).float())


def test_the_job_chooses_among_several_weights(
    state: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ema = raised(state)
    both = {"state_dict": state, "state_dict_ema": ema}
    assert torch.equal(loaded(tmp_path / "x.pth", both, "state_dict_ema"), state[FIRST] + 1)
    loaded(tmp_path / "x.pth", both)
    assert "reads the weights state_dict, not state_dict_ema; model.weights_entry chooses others" in caplog.text
    assert torch.equal(loaded(tmp_path / "x.pth", {"model_ema": ema}), ema[FIRST])
    assert "reads the averaged weights model_ema, as there are no others" in caplog.text
    pair = {"student": state, "teacher": ema}
    with pytest.raises(UserError, match=r"holds the weights student and teacher; set model\.weights_entry to one"):
        loaded(tmp_path / "x.pth", pair)
    assert torch.equal(loaded(tmp_path / "x.pth", pair, "teacher"), ema[FIRST])
    with pytest.raises(UserError, match=r"has no weights 'ema', but student, teacher; set model\.weights_entry=NAME"):
        loaded(tmp_path / "x.pth", pair, "ema")


def test_several_networks_in_one_state_dict_are_told_apart(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    lightning = {"state_dict": prefixed(raised(state), "ema_model.") | prefixed(state, "model.")}
    assert torch.equal(loaded(tmp_path / "x.pth", lightning), state[FIRST])
    assert torch.equal(loaded(tmp_path / "x.pth", lightning, "ema_model"), state[FIRST] + 1)
    pair = prefixed(state, "student.") | prefixed(raised(state), "teacher.")
    with pytest.raises(UserError, match=r"holds the weights student and teacher; set model\.weights_entry to one"):
        loaded(tmp_path / "x.pth", pair)
    assert torch.equal(loaded(tmp_path / "x.pth", pair, "teacher"), state[FIRST] + 1)


def test_a_deeper_network_is_another_architecture(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    deeper = {
        key.replace("blocks.0.", "blocks.99."): value for key, value in state.items() if key.startswith("blocks.0.")
    }
    with pytest.raises(UserError, match=r"another architecture: 0 tensors missing, \d+ tensors \(blocks\.99\."):
        loaded(tmp_path / "x.pth", state | deeper)
    index = {"blocks.0.attn.relative_position_index": torch.zeros(3)}
    assert torch.equal(loaded(tmp_path / "x.pth", state | index), state[FIRST])


def test_what_is_ignored_is_said_once(
    state: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loaded(
        tmp_path / "x.pth",
        {key: value for key, value in state.items() if not key.startswith("head.")} | {"mask_token": torch.zeros(1)},
    )
    assert caplog.text.count("ignored 1 tensor (mask_token) that the backbone has no place for") == 1
    assert caplog.text.count("has no classifier head, which is not needed") == 1
    loaded(tmp_path / "x.pth", state | {"head.weight": torch.full((5, 64), torch.nan)})
    assert caplog.text.count("its classifier head has values that are not finite, and is not used") == 1


def test_tensors_that_are_used_must_be_there_and_be_finite(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another architecture: 1 tensor \(patch_embed\.proj\.weight\) missing"):
        loaded(tmp_path / "x.pth", {key: value for key, value in state.items() if key != FIRST})
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight contains values that are not finite"):
        loaded(tmp_path / "x.pth", state | {FIRST: state[FIRST] * torch.nan})


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("EXECUTED",)


class Constructed:
    """Calls an allowed type with arguments of its own."""

    def __init__(self, kind: type, *arguments: object) -> None:
        self.call = kind, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    "beside",
    [
        Malicious(),
        argparse.Namespace(hook=Malicious()),
        {"a": [Malicious()]},
        np.array([Malicious()], dtype=object),
        Constructed(defaultdict, os.system),
    ],
)
def test_no_code_of_a_file_runs(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: object
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "beside": beside}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="contains code, which is not run"):
        read_tensors(tmp_path / "x.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"model": beside}))
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_tensors(tmp_path / "raw.pth")
    assert not (tmp_path / "EXECUTED").exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(UserError, match="contains code, which is not run"):
        read_tensors(tmp_path / "whole.pth")


def test_networks_run_at_every_size_that_timm_builds_and_take_weights_of_their_own(tmp_path: Path) -> None:
    for name, size in (("test_vit", 192), ("test_vit3", 192), ("test_resnet", 96), ("test_efficientnet", 96)):
        torch.manual_seed(0)
        own, other = (
            build_backbone(Model(backbone=f"timm:{name}")),
            build_backbone(Model(backbone=f"timm:{name}", size=size)),
        )
        assert other.size == size
        with torch.no_grad():
            assert other.net.eval()(torch.zeros(1, 3, size, size)).shape == (1, own.num_features)
        torch.save(own.net.state_dict(), tmp_path / "own.pth")
        load_weights(other, tmp_path / "own.pth", match="name")
        loaded_now = other.net.state_dict()
        same = [torch.equal(value, loaded_now[key]) for key, value in own.net.state_dict().items()]
        assert sum(same) >= len(same) - 1  # but for the positions


@pytest.mark.parametrize(
    ("name", "channels", "layout"),
    [("cait_xxs24_224", 192, "places"), ("pit_ti_224", 64, "first"), ("volo_d1_224", 384, "last")],
)
def test_position_embeddings_are_interpolated_for_another_size(
    tmp_path: Path, name: str, channels: int, layout: str
) -> None:
    own = build_backbone(Model(backbone=f"timm:{name}"))
    given = own.net.state_dict()
    grid = math.isqrt(given["pos_embed"].numel() // channels)
    downwards = torch.linspace(0, 1, grid)[:, None].expand(grid, grid)
    shapes = {"places": (1, grid * grid, 1), "last": (1, grid, grid, 1), "first": (1, 1, grid, grid)}
    given["pos_embed"] = downwards.reshape(shapes[layout]).expand_as(given["pos_embed"]).contiguous()
    torch.save(given, tmp_path / "own.pth")
    other = build_backbone(Model(backbone=f"timm:{name}", size=256))
    load_weights(other, tmp_path / "own.pth", match="name")
    positions = other.net.state_dict()["pos_embed"]
    assert positions.shape != given["pos_embed"].shape
    new = math.isqrt(positions.numel() // channels)
    found = {
        "places": lambda: positions[0, :, 0],
        "last": lambda: positions[0, ..., 0],
        "first": lambda: positions[0, 0],
    }
    rows = found[layout]().reshape(new, new)
    assert torch.allclose(rows, rows[:, :1].expand(new, new), atol=1e-5)
    assert (rows[1:, 0] > rows[:-1, 0]).all()


def test_a_name_may_have_the_tag_of_its_weights() -> None:
    tagged, plain = (
        build_backbone(Model(backbone="timm:resnet18.a1_in1k")),
        build_backbone(Model(backbone="timm:resnet18")),
    )
    assert tagged.net.state_dict().keys() == plain.net.state_dict().keys()
    with pytest.raises(UserError, match=r"timm has no weights 'resnet18\.a9' of resnet18; it has resnet18\."):
        build_backbone(Model(backbone="timm:resnet18.a9"))
    with pytest.raises(UserError, match="timm has no 'resnet500'; similar: "):
        build_backbone(Model(backbone="timm:resnet500"))


def test_a_size_that_a_network_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the window does not divide the size")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=r"model\.size: test_vit cannot be built for 17 x 17 pixels \(the window does"):
        build_backbone(Model(backbone="timm:test_vit", size=17))
