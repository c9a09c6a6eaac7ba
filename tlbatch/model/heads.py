"""Heads, which map the features of the backbone to the outputs of the objective."""

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import nn

from tlbatch.config.model import Head, Pool

Shape = tuple[int, ...]
_AT_ONCE = 1024


class Pooling(nn.Module):
    """Pools a map (n, c, h, w) or (n, h, w, c), or tokens (n, t, c), into a vector.

    gem is the generalised mean with a learned exponent (Radenovic et al. 2018); attention weights positions by the
    softmax of a learned linear score (as ABMIL, Ilse et al. 2018, without its hidden layer).
    """

    def __init__(self, kind: Pool, shape: Shape) -> None:
        super().__init__()
        self.kind = kind
        self._places = spatial_axes(shape)
        (channels,) = (length for axis, length in enumerate(shape) if axis not in self._places)
        self.num_features = {"flatten": torch.Size(shape).numel(), "avgmax": 2 * channels}.get(kind, channels)
        if kind == "gem":
            self.exponent = nn.Parameter(torch.tensor(3.0))
        if kind == "attention":
            self.score = nn.Linear(channels, 1)

    def extra_repr(self) -> str:
        """Return the text for ``repr``."""
        return self.kind

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool over all positions."""
        places = [axis + 1 for axis in self._places]
        pooled: torch.Tensor
        match self.kind:
            case "flatten":
                return features.contiguous().flatten(1)
            case "attention":
                (channels,) = set(range(1, features.ndim)) - set(places)
                tokens = features.permute(0, *places, channels).flatten(1, -2)
                pooled = (self.score(tokens).softmax(1) * tokens).sum(1)
            case "gem":
                pooled = features.clamp_min(1e-6).pow(self.exponent).mean(places).pow(1 / self.exponent)
            case "avgmax":
                pooled = torch.cat([features.mean(places), features.amax(places)], 1)
            case "max":
                pooled = features.amax(places)
            case "avg" | "auto":
                pooled = features.mean(places)
            case _:
                assert_never(self.kind)
        return pooled


def spatial_axes(shape: Shape) -> tuple[int, ...]:
    """Return the spatial axes: images are square, so of three axes the one of another length holds the channels."""
    if len(shape) == 2:
        return (0,)
    assert len(shape) == 3, f"no map: {shape}"
    return (0, 1) if shape[0] == shape[1] != shape[2] else (1, 2)


def is_map(shape: Shape) -> bool:
    """Return whether an activation has several spatial positions."""
    return len(shape) in (2, 3) and max(shape[axis] for axis in spatial_axes(shape)) > 1


class KernelMap(nn.Module):
    """Whitened radial basis functions around points of the training set: a linear layer on them is a kernel machine.

    exp(-gamma |x - p|^2) of standardised features, times the pseudo-inverse square root of that kernel between points
    (Williams and Seeger 2001, as scikit-learn's Nystroem).
    """

    def __init__(self, num_points: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("gamma", torch.ones(()))
        self.register_buffer("points", torch.zeros(num_points, width))
        self.register_buffer("whitening", torch.zeros(num_points, num_points))

    mean: torch.Tensor
    scale: torch.Tensor
    gamma: torch.Tensor
    points: torch.Tensor
    whitening: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, width) to (n, num_points)."""
        standardised = (features.float() - self.mean) / self.scale
        return torch.exp(-self.gamma * _distances(standardised, self.points).square()) @ self.whitening.T


class Neighbours(nn.Module):
    """Class frequencies among the nearest standardised vectors of the training set, as log probabilities."""

    def __init__(self, num_points: int, width: int, *, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("points", torch.zeros(num_points, width))
        self.register_buffer("classes", torch.zeros(num_points, num_classes))
        self.register_buffer("number", torch.ones((), dtype=torch.int64))
        self._pinned = 0

    mean: torch.Tensor
    scale: torch.Tensor
    points: torch.Tensor
    classes: torch.Tensor
    number: torch.Tensor

    def pin(self) -> None:
        """Fix the number of neighbours: an exported graph cannot read it from a tensor."""
        self._pinned = int(self.number)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, width) to (n, num_classes)."""
        standardised = (features.float() - self.mean) / self.scale
        number = self._pinned or int(self.number)
        # In parts, as each vector needs a distance to every point.
        parts = (standardised,) if self._pinned else torch.split(standardised, _AT_ONCE)
        nearest = [_distances(some, self.points).topk(number, largest=False).indices for some in parts]
        return (self.classes[torch.cat(nearest)].mean(1) + 1 / (len(self.points) + 1)).log()


def _distances(vectors: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return all pairwise distances, (n, num_points), by matrix products: a graph cannot branch on n."""
    return torch.cdist(vectors, points, compute_mode="use_mm_for_euclid_dist")


def head_like(tensors: Mapping[str, torch.Tensor], head: nn.Sequential) -> nn.Sequential:
    """Return the head for the tensors of a checkpoint: the given one, unless it was fitted on training vectors."""
    points = tensors.get("head.0.points")
    if points is None:
        return head
    if "head.0.classes" in tensors:
        return nn.Sequential(Neighbours(*points.shape, num_classes=tensors["head.0.classes"].shape[1]))
    outputs = tensors["head.1.weight"].shape[0]
    return nn.Sequential(KernelMap(*points.shape), nn.Linear(len(points), outputs))


def build_head(head: Head, num_features: int, num_outputs: int) -> nn.Sequential:
    """Build a linear layer, or an MLP with ReLU."""
    layers: list[nn.Module] = []
    width = num_features
    for number, wide in enumerate(head.widths):
        if number and head.dropout:
            layers.append(nn.Dropout(head.dropout))
        layers += [nn.Linear(width, wide), nn.ReLU()]
        if head.batch_norm:
            layers.append(nn.BatchNorm1d(wide))
        width = wide
    if head.dropout:
        layers.append(nn.Dropout(head.dropout))
    return nn.Sequential(*layers, nn.Linear(width, num_outputs))
