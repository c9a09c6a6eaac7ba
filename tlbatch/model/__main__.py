"""List the points at which a backbone can be cut, or download its library's own weights."""

import argparse
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from tlbatch.config.model import HANDCRAFTED, Model
from tlbatch.core.errors import UserError
from tlbatch.model.backbones import build_backbone
from tlbatch.model.cut_points import Chain, last_of_layers
from tlbatch.model.weights_file import Input, write_weights


def main() -> None:
    """Run ``python -m tlbatch.model BACKBONE``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.model", description=__doc__)
    parser.add_argument("backbone", help="timm:NAME, the name of a torchvision classifier, or handcrafted")
    parser.add_argument("--size", type=int, help="input height and width in pixels")
    parser.add_argument("--all", action="store_true", help="list every cut point, not only the last of each layer")
    parser.add_argument(
        "--fetch", type=Path, metavar="FILE", help="download the library's weights to FILE, with input size"
    )
    options = parser.parse_args()
    try:
        if options.fetch:
            fetch(options.backbone, options.fetch)
        else:
            print("\n".join(listing(options.backbone, options.size, every=options.all)))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def listing(name: str, size: int | None, *, every: bool) -> list[str]:
    """Return a line per cut: layer, name, shape of an image's activation, parameters before and after, fp32 cache size.

    Nothing is computed: the network is built on the meta device. Raises UserError if there is no such backbone.
    """
    with torch.device("meta"):
        spec = build_backbone(Model(backbone=name, size=size))
        chain = Chain(spec.net)
        shapes = chain.shapes(torch.zeros(1, 3, spec.size, spec.size))
    places = chain.places
    shown = set(range(len(places))) if every else {places.index(place) for place in last_of_layers(places)}
    total = sum(parameter.numel() for parameter in spec.net.parameters())
    lines = [f"{name}: input {spec.size} x {spec.size}, mean {spec.mean}, std {spec.std}, {total:,} parameters"]
    lines.append(f"{'layer':>5}  {'cut':<36}{'activation':>16}{'frozen':>14}{'trained':>14}{'kB per image':>13}")
    for at in sorted(shown):
        place, shape = places[at], shapes[at]
        frozen = sum(parameter.numel() for parameter in chain.parameters(0, at).values())
        kilobytes = torch.Size(shape).numel() * 4 / 1e3
        cut = "pool" if at == len(places) - 1 and place.name != HANDCRAFTED else place.name
        shape_shown = "x".join(map(str, shape))
        lines.append(
            f"{place.layer:>5}  {cut:<36}{shape_shown:>16}{frozen:>14,}{total - frozen:>14,}{kilobytes:>13,.1f}"
        )
    return lines


def fetch(name: str, file: Path) -> None:
    """Download the library's own weights and write them as safetensors, with their size and normalisation.

    Raises UserError if there are none, or they cannot be downloaded.
    """
    build_backbone(Model(backbone=name))
    family, _, short = name.rpartition(":")
    try:
        tensors, stated = _of_timm(short) if family else _of_torchvision(short)
    except Exception as error:  # noqa: BLE001 (two libraries and their hubs raise what they like)
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model.weights: the library's weights for {name} cannot be downloaded ({first}); submit on a machine with "
            "internet access, or set model.weights=FILE"
        ) from None
    write_weights(file, tensors, stated)


def _of_timm(name: str) -> tuple[dict[str, torch.Tensor], Input]:
    net: Any = timm.create_model(name, pretrained=True)
    config = net.pretrained_cfg
    return net.state_dict(), Input(size=config["input_size"][-1], mean=config["mean"], std=config["std"])


def _of_torchvision(name: str) -> tuple[dict[str, torch.Tensor], Input]:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    own = build_backbone(Model(backbone=name))  # of networks that transform their own input, the values before that
    stated = Input(size=transforms.crop_size[0], mean=tuple(transforms.mean), std=tuple(transforms.std))
    if (own.mean, own.std) == ((0.5,) * 3, (0.5,) * 3):
        stated = Input(size=stated.size, mean=own.mean, std=own.std)
    return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True)), stated


if __name__ == "__main__":
    main()
