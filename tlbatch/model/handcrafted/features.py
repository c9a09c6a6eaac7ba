"""Handcrafted features: classical image descriptors, as a baseline for networks."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tlbatch.core.typing import Floats

VERSION = 1
"""Increase it with any change of a value: the cache then recomputes the features."""
NUM_FEATURES = 1860
DEFAULT_SIZE = 256


class Handcrafted(nn.Module):
    """A backbone without parameters: maps pixels (n, 3, side, side), 0..1, to features (n, d).

    Images are distributed over as many threads as torch uses; each is computed separately, on the CPU.
    """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute features, float32, on the device of the pixels."""
        if pixels.device.type == "meta":
            return pixels.new_empty(len(pixels), NUM_FEATURES)
        images = (pixels.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            rows = list(threads.map(features, list(images)))
        return torch.from_numpy(np.stack(rows)).to(pixels.device)


def features(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Compute all features of an image uint8 (side, side, 3), (1860,)."""
    return np.concatenate(list(groups(image).values())).astype(np.float32, copy=False)


def groups(image: npt.NDArray[np.uint8]) -> dict[str, Floats]:
    """Compute the features of an image by group, each float32 (n,)."""
    from tlbatch.model.handcrafted import descriptors, lesions, planes  # noqa: PLC0415 (scikit-image takes a second)

    of = planes.planes_of(image)
    return {
        "gradients": descriptors.gradients(of.grey),
        "patterns": descriptors.patterns(of.grey),
        "cooccurrences": np.concatenate([descriptors.cooccurrences(of.grey), descriptors.cooccurrences(of.equal)]),
        "edges": descriptors.edges(of.grey, of.equal),
        "colours": descriptors.colours(of.small, of.hsv, of.lab),
        "layout": descriptors.layout(of.lab),
        "lesions": lesions.lesions(of.green, of.disc),
    }
