"""Pre-trained networks of timm and torchvision without their classifiers, and the loading of their weights."""

import difflib
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from tlbatch.config.base import Triple
from tlbatch.config.model import HANDCRAFTED, Model
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.model.handcrafted.features import DEFAULT_SIZE, NUM_FEATURES, Handcrafted
from tlbatch.model.weights_file import Input, Tensors, is_average, is_unused, listed, read_input, read_tensors

log = logging.getLogger(__name__)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALVES: Triple = (0.5, 0.5, 0.5)
_INCEPTIONS = {"googlenet", "inception_v3"}
"""torchvision's weights of these were trained on pixels from -1 to 1; their side heads are left out."""
_SIDE_HEADS = ("aux1.", "aux2.", "AuxLogits.")


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


def _timm_backbone(name: str, wanted: Input) -> Backbone:
    known = timm.list_models()
    architecture, _, tag = name.partition(".")
    if architecture not in known:
        raise UserError(f"model.backbone: timm has no {name!r}{_similar(name, known)}")
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")[:3]) or "none"
        raise UserError(f"model.backbone: timm has no weights {name!r} of {architecture}; it has {tags}")
    net: Any = _timm_network(name, wanted.size)
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


def _timm_network(name: str, size: int | None) -> nn.Module:
    """Build a network for an input size, if it is built for one; most convolutional networks take any."""
    if size is None:
        return timm.create_model(name, pretrained=False)
    try:
        return timm.create_model(name, pretrained=False, img_size=size)
    except TypeError:  # it takes no img_size
        return timm.create_model(name, pretrained=False)
    except (AssertionError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.size: {name} cannot be built for {size} x {size} pixels ({why}); set model.size to a multiple of "
            "its patch or window, or leave it out"
        ) from None


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


def load_weights(backbone: Backbone, path: Path, *, match: str, entry: str = "") -> None:
    """Load the weights of the network from a file, without those of the classifier.

    Raises UserError if the file cannot be read, or its tensors do not fit; the message names the first that do not.
    """
    given, wanted = read_tensors(path, entry=entry), backbone.net.state_dict()
    if match == "order":
        fitted = _by_order(given, wanted, path)
    else:
        inner = _stripped(given, wanted, path)
        fitted = _by_name(_resampled(inner, backbone.net, path), wanted, backbone.classifier, path)
    wrong = next((key for key, value in fitted.items() if not torch.isfinite(value).all()), None)
    if wrong is not None:
        raise UserError(f"{path}: {wrong} contains values that are not finite; download the file again")
    backbone.net.load_state_dict(fitted)


def _resampled(tensors: Tensors, net: nn.Module, path: Path) -> Tensors:
    """Return the tensors, those of a timm network for another input size adapted to its own.

    timm adapts most of them; position embeddings that it leaves are interpolated, bicubic with antialiasing.
    """
    wanted = net.state_dict()
    other = [key for key, value in tensors.items() if key in wanted and value.shape != wanted[key].shape]
    adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if not other:
        return tensors
    adapted = dict(tensors)
    if adapt is not None:
        with suppress(Exception):  # timm's functions may raise anything on tensors of another network
            adapted = adapt(adapted, net)
    for key in other:
        if key in adapted and key.endswith("pos_embed"):
            adapted[key] = _interpolated(adapted[key], wanted[key])
    if all(adapted[key].shape == wanted[key].shape for key in other if key in adapted):
        log.info("%s: adapted %s to the input size", path.name, listed(other))
        return adapted
    return tensors


def _interpolated(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return a position embedding for another grid: (1, places, channels), (1, h, w, channels) or (1, channels, h, w).

    It is returned as it is if the two do not fit, or have places beside those of a square.
    """
    if given.ndim == 3 and given.shape[-1] == wanted.shape[-1]:
        old, new = (math.isqrt(embedding.shape[1]) for embedding in (given, wanted))
        if (old * old, new * new) == (given.shape[1], wanted.shape[1]):
            return (
                _to_grid(given.reshape(1, old, old, -1).permute(0, 3, 1, 2), (new, new))
                .permute(0, 2, 3, 1)
                .flatten(1, 2)
            )
    if given.ndim == 4 and given.shape[3] == wanted.shape[3] and given.shape[1] != wanted.shape[1]:
        return _to_grid(given.permute(0, 3, 1, 2), wanted.shape[1:3]).permute(0, 2, 3, 1)
    if given.ndim == 4 and given.shape[1] == wanted.shape[1]:
        return _to_grid(given, wanted.shape[2:])
    return given


def _to_grid(given: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    resized = nn.functional.interpolate(given.float(), tuple(size), mode="bicubic", antialias=True)
    return resized.to(given.dtype)


def _by_name(inner: Tensors, wanted: Tensors, classifier: str, path: Path) -> dict[str, torch.Tensor]:
    left_out = (f"{classifier}.", *_SIDE_HEADS)
    body = {key: value for key, value in inner.items() if not key.startswith(left_out)}
    missing = [key for key in wanted if key not in body and not key.endswith("num_batches_tracked")]
    extra = [key for key in body if key not in wanted]
    if missing or _has_more_blocks(extra, wanted):
        raise UserError(
            f"{path}: weights of another architecture: {listed(missing)} missing, {listed(extra)} not in the backbone; "
            "name the backbone they belong to, or set model.match=order if only the names differ"
        )
    if extra:
        log.info("%s: ignored %s that the backbone has no place for", path.name, listed(extra))
    if classifier and (unused := is_unused(inner, classifier)):
        log.info("%s: %s", path.name, unused)
    for key, value in body.items():
        if key in wanted and value.shape != wanted[key].shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(value.shape)}, the backbone {tuple(wanted[key].shape)}; "
                "name the backbone that they belong to, or leave out model.size if they are of another input size"
            )
    return {**wanted, **{key: body[key] for key in wanted if key in body}}


def _stripped(tensors: Tensors, wanted: Tensors, path: Path) -> Tensors:
    """Return the tensors under the prefix that most of the wanted ones share, without it."""
    first = next(iter(wanted))
    prefixes = {"", *(key.removesuffix(first) for key in tensors if key.endswith(f".{first}"))}
    counts = {prefix: sum(f"{prefix}{key}" in tensors for key in wanted) for prefix in sorted(prefixes)}
    most = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    usual = [prefix for prefix in most if not is_average(prefix)] or most
    if len(usual) > 1 and counts[usual[0]]:
        names = " and ".join(prefix.removesuffix(".") or "the file itself" for prefix in usual)
        raise UserError(f"{path}: holds the weights {names}; set model.weights_entry to one of them")
    best = usual[0]
    outside = [key for key in tensors if not key.startswith(best)]
    if outside:
        log.info("%s: ignored %s outside %s*", path.name, listed(outside), best)
    return {key.removeprefix(best): value for key, value in tensors.items() if key.startswith(best)}


def _has_more_blocks(extra: list[str], wanted: Tensors) -> bool:
    """Return whether tensors are of modules that the backbone lacks, inside of one that it has, as its blocks are."""
    modules = {".".join(key.split(".")[:depth]) for key in wanted for depth in range(1, key.count(".") + 1)}
    return any(key.rpartition(".")[0] not in modules and key.partition(".")[0] in modules for key in extra)


def _by_order(tensors: Tensors, wanted: Tensors, path: Path) -> dict[str, torch.Tensor]:
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
