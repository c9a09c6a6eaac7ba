"""Encoder: activations at several layers of the frozen part of the network, in one forward pass."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import torch
import xxhash
from accelerate import Accelerator
from torch import nn

from tlbatch.config.model import HANDCRAFTED
from tlbatch.config.training import StoredAs
from tlbatch.model.classifier import Classifier
from tlbatch.model.handcrafted.features import VERSION
from tlbatch.runs.records import RunRecord

_AT_ONCE = 8
"""Images per forward pass on a CPU: the activations of more do not fit its cache."""


class Tap(NamedTuple):
    """What is stored for an image: the activation at a place of the chain, or the vector pooled from it."""

    place: int
    pool: int = -1
    """Index of the pooling layer; -1: no pooling."""


def taps_of(model: Classifier, cut: int) -> tuple[Tap, ...]:
    """Return what to store for a phase with this cut: one pooled vector per head input if everything is frozen."""
    if cut == model.end and model.pool_is_fixed:
        return tuple(Tap(place, number) for number, place in enumerate(model.ends))
    return (Tap(cut),)


def tap_shape(model: Classifier, tap: Tap) -> tuple[int, ...]:
    """Return the shape of what a tap stores per image."""
    return model.shape_at(tap.place) if tap.pool < 0 else (model.widths[tap.pool],)


class Encoder:
    """Computes the activations of several taps, the deeper ones from the shallower ones."""

    def __init__(self, model: Classifier, taps: Sequence[Tap], accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._model = model.eval()
        self._taps = taps
        self._places = sorted({tap.place for tap in taps})
        pairs = zip((0, *self._places), self._places, strict=False)
        self._stretches = [model.chain.folded(start, stop) for start, stop in pairs]

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one tensor per tap, on the CPU.

        Parameters
        ----------
        images
            uint8, (n, size, size, 3), on the device.
        """
        at_once = _AT_ONCE if images.device.type == "cpu" else len(images)
        parts = [images[start : start + at_once] for start in range(0, len(images), at_once)]
        with self._accelerator.autocast():
            return [torch.cat(of_tap) for of_tap in zip(*map(self._encoded, parts), strict=True)]

    def _encoded(self, images: torch.Tensor) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        activations = self._model.normalised(images)
        for place, stretch in zip(self._places, self._stretches, strict=True):
            activations = stretch(activations.clone())  # the next layers may work in place
            found[place] = activations
        pools = [self._model.pools[tap.pool] if tap.pool >= 0 else nn.Identity() for tap in self._taps]
        return [pool(found[tap.place]).cpu() for pool, tap in zip(pools, self._taps, strict=True)]


def cache_identity(record: RunRecord, model: Classifier, tap: Tap, dtype: StoredAs) -> dict[str, object]:
    """Return everything that the output of a tap depends on, except the image and its view.

    Only the values of the weights before the tap count, so a fine-tuned network shares cached activations of the layers
    that it has in common with its pre-trained network.
    """
    job = record.job
    by_hand = job.model.backbone == HANDCRAFTED
    library = "timm" if job.model.backbone.startswith("timm:") else "torchvision"
    libraries = ("scikit-image", "scipy", "numpy", "pillow") if by_hand else ("torch", library)
    versions = {name: version(name) for name in libraries}
    return {
        "backbone": job.model.backbone,
        "weights": _digest_of_weights(model, tap.place),
        "cut": model.chain.places[tap.place].name,
        "pooled": repr(model.pools[tap.pool]) if tap.pool >= 0 else "",
        "size": model.spec.size,
        "mean": model.spec.mean,
        "std": model.spec.std,
        "precision": "no" if by_hand else job.train.mixed_precision,
        "stored_as": dtype,
        "versions": versions | {"features": str(VERSION)} if by_hand else versions,
    }


def _digest_of_weights(model: Classifier, place: int) -> str:
    """Hash the names and values of the parameters and buffers before a place of the chain."""
    found = xxhash.xxh3_128()
    for name, tensor in (model.chain.parameters(0, place) | model.chain.buffers(0, place)).items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
