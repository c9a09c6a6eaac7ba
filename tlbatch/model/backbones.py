"""Pre-trained networks of timm and torchvision without their classifiers, and the loading of their weights."""

import difflib
import logging
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from pydantic import BaseModel, ValidationError
from torch import nn

from tlbatch.config.base import Triple
from tlbatch.config.model import HANDCRAFTED, Model
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file
from tlbatch.core.text import counted
from tlbatch.model.handcrafted.features import DEFAULT_SIZE, NUM_FEATURES, Handcrafted

log = logging.getLogger(__name__)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALVES: Triple = (0.5, 0.5, 0.5)
_INCEPTIONS = {"googlenet", "inception_v3"}
"""torchvision's weights of these were trained on pixels from -1 to 1; their side heads are left out."""
_SIDE_HEADS = ("aux1.", "aux2.", "AuxLogits.")
_TRANSFORMERS = ("vit_", "deit", "swin", "beit", "eva")
"""Networks that are built for one input size; convolutional networks take any."""
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Backbone:
    """A network that turns normalised images (n, 3, size, size) into features (n, num_features)."""

    net: nn.Module
    num_features: int
    classifier: str
    """Prefix of the classifier's parameters in a weights file, which are left out."""
    size: int
    mean: Triple
    std: Triple


class Input(BaseModel):
    """Input size and normalisation that weights were trained with, as stored in their file."""

    size: int | None = None
    mean: Triple | None = None
    std: Triple | None = None


def build_backbone(model: Model, weights: Path | None = None) -> Backbone:
    """Build the network of the job with random weights.

    Parameters
    ----------
    weights
        File whose size and normalisation to use where the job sets none.

    Raises
    ------
    UserError
        When there is no such backbone; the message names similar ones.
    """
    if model.backbone == HANDCRAFTED:
        size = model.size or DEFAULT_SIZE
        return Backbone(Handcrafted(), NUM_FEATURES, "", size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    family, _, name = model.backbone.rpartition(":")
    if family not in ("", "timm"):
        raise UserError(
            f"model.backbone: {model.backbone!r} must be timm:NAME or the name of a torchvision classifier; "
            "choose another"
        )
    wanted = read_input(weights) if weights else Input()
    wanted = Input(size=model.size or wanted.size, mean=model.mean or wanted.mean, std=model.std or wanted.std)
    return _timm_backbone(name, wanted) if family else _torchvision_backbone(name, wanted)


def read_input(file: Path) -> Input:
    """Read the input size and normalisation that a .safetensors file states."""
    if file.suffix != ".safetensors":
        return Input()
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return Input.model_validate_json((opened.metadata() or {}).get("input", "{}"))
    except (OSError, ValidationError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{file}: cannot be read as weights ({error}); give a .safetensors or .pth state dict"
        ) from None


def write_weights(path: Path, tensors: Tensors, stated: Input) -> None:
    """Write tensors as safetensors, with the input size and normalisation of their network."""
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(whole, metadata={"input": stated.model_dump_json()}))


def _timm_backbone(name: str, wanted: Input) -> Backbone:
    known = timm.list_models()
    if name not in known:
        raise UserError(f"model.backbone: timm has no {name!r}{_similar(name, known)}")
    fixed_size: dict[str, Any] = {"img_size": wanted.size} if wanted.size and name.startswith(_TRANSFORMERS) else {}
    net: Any = timm.create_model(name, pretrained=False, **fixed_size)
    config = net.pretrained_cfg
    classifier = config["classifier"]
    net.reset_classifier(0)
    return Backbone(
        net=net,
        num_features=getattr(net, "head_hidden_size", net.num_features),
        classifier=classifier if isinstance(classifier, str) else classifier[0],
        size=wanted.size or config["input_size"][-1],
        mean=wanted.mean or config["mean"],
        std=wanted.std or config["std"],
    )


def _torchvision_backbone(name: str, wanted: Input) -> Backbone:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"model.backbone: torchvision has no classifier {name!r}{_similar(name, known)}")
    no_side_heads = {"aux_logits": False, "init_weights": False} if name in _INCEPTIONS else {}
    net = torchvision.models.get_model(name, weights=None, **no_side_heads)
    last = [key for key, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    classifier = net.get_submodule(last)
    num_features = classifier.in_channels if isinstance(classifier, nn.Conv2d) else classifier.in_features
    assert isinstance(num_features, int)
    net.set_submodule(last, nn.Identity())
    mean, std = (HALVES, HALVES) if name in _INCEPTIONS else (IMAGENET_MEAN, IMAGENET_STD)
    size = wanted.size or (299 if name == "inception_v3" else 224)
    return Backbone(net, num_features, last, size, wanted.mean or mean, wanted.std or std)


def _similar(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; similar: {', '.join(close)}" if close else f"; there are {len(known)}, e.g. {known[0]}"


def load_weights(backbone: Backbone, path: Path, *, match: str) -> None:
    """Load the weights of the network from a file, without those of the classifier.

    Raises UserError if the file cannot be read, or its tensors do not fit; the message names the first that do not.
    """
    given, wanted = read_tensors(path), backbone.net.state_dict()
    fit = _by_order if match == "order" else _by_name
    fitted = fit(given, wanted, backbone.classifier, path)
    wrong = next((key for key, value in fitted.items() if not torch.isfinite(value).all()), None)
    if wrong is not None:
        raise UserError(f"{path}: {wrong} contains values that are not finite; download the file again")
    backbone.net.load_state_dict(fitted)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from a torch file without running any code in it."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(action="ignore"):  # errors are reported below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (torch raises half a dozen kinds for a bad file)
        # messages of the unpickler are cryptic, or advise running the code in the file
        riddle = isinstance(error, (pickle.UnpicklingError, LookupError, EOFError))
        why = "not a state dict, or one that contains code, which is not run" if riddle else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as weights ({why}); give a .safetensors or .pth state dict") from None
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path}: contains no state dict (tensors by name); export one with model.state_dict()")
    return state


def _by_name(tensors: Tensors, wanted: Tensors, classifier: str, path: Path) -> dict[str, torch.Tensor]:
    inner = _stripped(tensors, wanted, path)
    left_out = (f"{classifier}.", *_SIDE_HEADS)
    body = {key: value for key, value in inner.items() if not key.startswith(left_out)}
    missing = [key for key in wanted if key not in body and not key.endswith("num_batches_tracked")]
    extra = [key for key in body if key not in wanted]
    if missing or extra:
        raise UserError(
            f"{path}: weights of another architecture: {counted(len(missing), 'tensor')} missing{_first(missing)}, "
            f"{len(extra)} not in the backbone{_first(extra)}; name the backbone they belong to, or "
            "model.match=order if only the names differ"
        )
    for key, value in body.items():
        if value.shape != wanted[key].shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(value.shape)}, the backbone {tuple(wanted[key].shape)}; "
                "name the backbone that the weights belong to"
            )
    return {**wanted, **body}


def _stripped(tensors: Tensors, wanted: Tensors, path: Path) -> Tensors:
    """Return the tensors under the prefix that most of the wanted ones share, without it."""
    first = next(iter(wanted))
    prefixes = {"", *(key.removesuffix(first) for key in tensors if key.endswith(f".{first}"))}
    best = max(sorted(prefixes), key=lambda prefix: sum(f"{prefix}{key}" in tensors for key in wanted))
    outside = [key for key in tensors if not key.startswith(best)]
    if outside:
        log.info("%s: ignored %s outside %s*%s", path.name, counted(len(outside), "tensor"), best, _first(outside))
    return {key.removeprefix(best): value for key, value in tensors.items() if key.startswith(best)}


def _by_order(tensors: Tensors, wanted: Tensors, _classifier: str, path: Path) -> dict[str, torch.Tensor]:
    given = [(k, v) for k, v in tensors.items() if not k.endswith("num_batches_tracked")]
    places = [key for key in wanted if not key.endswith("num_batches_tracked")]
    if len(given) < len(places):
        raise UserError(
            f"{path}: {counted(len(given), 'tensor')}, the backbone has {len(places)}; name the backbone they belong to"
        )
    filled = dict(wanted)
    for place, (key, value) in zip(places, given, strict=False):
        if value.shape != wanted[place].shape:
            raise UserError(
                f"{path}: weights of another architecture: {key} has shape {tuple(value.shape)}, {place} of the "
                f"backbone {tuple(wanted[place].shape)}; name the backbone that the weights belong to"
            )
        filled[place] = value
    return filled


def _first(keys: list[str]) -> str:
    return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""
