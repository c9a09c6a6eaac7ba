"""Heads: from the features of the backbone to the outputs of the objective."""

import torch
from torch import nn

from tlbatch.job.learning import Head, Pool

Shape = tuple[int, ...]


class Pooling(nn.Module):
    """From a map (n, c, h, w), (n, h, w, c) or tokens (n, t, c) to a vector.

    gem is the generalised mean (Radenovic et al. 2018), its exponent learned; attention weighs the places by the
    softmax of a learned linear score (as ABMIL, Ilse et al. 2018, without its hidden layer).
    """

    def __init__(self, kind: Pool, shape: Shape) -> None:
        super().__init__()
        self.kind = kind
        self._places = _spatial(shape)
        (channels,) = (length for axis, length in enumerate(shape) if axis not in self._places)
        self.num_features = {"flatten": int(torch.tensor(shape).prod()), "avgmax": 2 * channels}.get(kind, channels)
        if kind == "gem":
            self.exponent = nn.Parameter(torch.tensor(3.0))
        if kind == "attention":
            self.score = nn.Linear(channels, 1)

    def extra_repr(self) -> str:
        """What torch shows of it."""
        return self.kind

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool over all places."""
        if self.kind == "flatten":
            return features.contiguous().flatten(1)
        places = [axis + 1 for axis in self._places]
        if self.kind == "attention":
            tokens = features.permute(0, *places, _other(places, features.ndim)).flatten(1, -2)
            weights: torch.Tensor = self.score(tokens).softmax(1)
            return (weights * tokens).sum(1)
        if self.kind == "gem":
            pooled: torch.Tensor = features.clamp_min(1e-6).pow(self.exponent).mean(places).pow(1 / self.exponent)
            return pooled
        if self.kind == "avgmax":
            return torch.cat([features.mean(places), features.amax(places)], 1)
        return features.amax(places) if self.kind == "max" else features.mean(places)


def _other(places: list[int], ndim: int) -> int:
    return next(axis for axis in range(1, ndim) if axis not in places)


def _spatial(shape: Shape) -> tuple[int, ...]:
    """The axes of the places: images are square, so the odd one out of three is that of the channels."""
    if len(shape) == 2:
        return (0,)
    assert len(shape) == 3, f"no map: {shape}"
    return (0, 1) if shape[0] == shape[1] != shape[2] else (1, 2)


def is_map(shape: Shape) -> bool:
    """Whether an activation has several places."""
    return len(shape) in (2, 3) and max(shape[axis] for axis in _spatial(shape)) > 1


def build_head(head: Head, num_features: int, num_outputs: int) -> nn.Sequential:
    """A linear layer, or one after hidden layers with ReLU."""
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
