"""The frozen part of the network, run once: activations at several cuts in one pass."""

from collections.abc import Sequence
from importlib.metadata import version

import torch
from accelerate import Accelerator

from tlbatch.job.learning import StoredAs
from tlbatch.job.records import RunRecord
from tlbatch.model.classifier import Classifier


class Encoder:
    """Activations of images at some places of the chain, the deeper computed from the shallower.

    Parameters
    ----------
    places
        Numbers of places, increasing; the last may be where the head stands, whose pooling then belongs to it.
    """

    def __init__(self, model: Classifier, places: Sequence[int], accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._model = model.eval()
        pools = bool(places) and places[-1] == model.end and model.pool_is_fixed
        inner = places[:-1] if pools else places
        self._inner = [model.chain.segment(start, stop) for start, stop in zip((0, *inner), inner, strict=False)]
        self._ends = model.stretches(inner[-1] if inner else 0) if pools else []

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One tensor a place, on the CPU.

        Parameters
        ----------
        images
            uint8, (n, size, size, 3), on the device.
        """
        with self._accelerator.autocast():
            found = [self._model.normalised(images)]
            for stretch in self._inner:
                found.append(stretch.run(found[-1].clone(), training=False))  # what follows may work in place
            if self._ends:
                found.append(self._model.pooled(found[-1].clone(), self._ends, training=False))
        return [activations.cpu() for activations in found[1:]]


def cache_identity(record: RunRecord, model: Classifier, place: int, stored_as: StoredAs) -> dict[str, object]:
    """All that an activation depends on but the image and its view."""
    job = record.job
    library = "timm" if job.model.backbone.startswith("timm:") else "torchvision"
    pooled = place == model.end and model.pool_is_fixed
    names = [model.chain.places[at].name for at in (model.ends if pooled else (place,))]
    return {
        "backbone": job.model.backbone,
        "weights": record.weights_digest or f"random, seed {job.seed}",
        "match": job.model.match,
        "cut": names,
        "pooled": [pool.extra_repr() for pool in model.pools] if pooled else [],
        "size": model.spec.size,
        "mean": model.spec.mean,
        "std": model.spec.std,
        "precision": job.train.mixed_precision,
        "stored_as": stored_as,
        "versions": {name: version(name) for name in ("torch", library)},
    }
