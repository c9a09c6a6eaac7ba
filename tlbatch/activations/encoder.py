"""The frozen part of the network, run once: activations at several places in one pass."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import torch
import xxhash
from accelerate import Accelerator

from tlbatch.config.model import HANDCRAFTED
from tlbatch.config.training import StoredAs
from tlbatch.model.classifier import Classifier
from tlbatch.model.handcrafted.features import VERSION
from tlbatch.runs.records import RunRecord

_AT_ONCE = 8
"""Images in one pass on a CPU, whose cache holds the activations of few."""


class Tap(NamedTuple):
    """What is stored of an image: the activation at a place of the chain, or the vector that is pooled from it."""

    place: int
    pool: int = -1
    """Number of the pooling; -1: none."""


def taps_of(model: Classifier, cut: int) -> tuple[Tap, ...]:
    """What has to be stored for a phase that is cut at a place: where all is frozen, a vector an end of the head."""
    if cut == model.end and model.pool_is_fixed:
        return tuple(Tap(place, number) for number, place in enumerate(model.ends))
    return (Tap(cut),)


def tap_shape(model: Classifier, tap: Tap) -> tuple[int, ...]:
    """Shape of what is stored of one image."""
    return model.shape_at(tap.place) if tap.pool < 0 else (model.widths[tap.pool],)


class Encoder:
    """What some taps give, the deeper computed from the shallower."""

    def __init__(self, model: Classifier, taps: Sequence[Tap], accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._model = model.eval()
        self._taps = taps
        self._places = sorted({tap.place for tap in taps})
        pairs = zip((0, *self._places), self._places, strict=False)
        self._stretches = [model.chain.folded(start, stop) for start, stop in pairs]

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One tensor a tap, on the CPU.

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
            activations = stretch(activations.clone())  # what follows may work in place
            found[place] = activations
        return [self._given(tap, found[tap.place]).cpu() for tap in self._taps]

    def _given(self, tap: Tap, activations: torch.Tensor) -> torch.Tensor:
        if tap.pool < 0:
            return activations
        pooled: torch.Tensor = self._model.pools[tap.pool](activations)
        return pooled


def cache_identity(record: RunRecord, model: Classifier, tap: Tap, dtype: StoredAs) -> dict[str, object]:
    """All that what a tap gives depends on but the image and its view.

    Of the weights only those before the tap count, by their values, so that a network shares what it has in common with
    the one that it was fine-tuned from.
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
    """Of names and values before a place of the chain."""
    found = xxhash.xxh3_128()
    for name, tensor in (model.chain.parameters(0, place) | model.chain.buffers(0, place)).items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
