"""Averages of the weights of a phase, and the tensors that a phase changes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tlbatch.model.classifier import Classifier


class Average:
    """An exponential moving average of the trained parameters and statistics."""

    def __init__(self, model: Classifier, decay: float) -> None:
        self._decay = decay
        self.tensors = {key: value.detach().clone() for key, value in moving(model).items()}

    def copy(self) -> "Average":
        """Return a copy with its own tensors."""
        other = copy.copy(self)
        other.tensors = {key: value.clone() for key, value in self.tensors.items()}
        return other

    def update(self, model: Classifier) -> None:
        """Update the average with the weights after a step."""
        for key, value in moving(model).items():
            if value.is_floating_point():
                self.tensors[key].lerp_(value.detach(), 1 - self._decay)
            else:  # a count of batches
                self.tensors[key].copy_(value)

    def swap(self, model: Classifier) -> None:
        """Exchange the weights of the model and the average."""
        with torch.no_grad():
            for key, value in moving(model).items():
                own = value.detach().clone()
                value.copy_(self.tensors[key])
                self.tensors[key].copy_(own)


@contextmanager
def averaged(model: Classifier, average: Average | None) -> Iterator[None]:
    """Give the model the averaged weights within the block."""
    if average is not None:
        average.swap(model)
    try:
        yield
    finally:
        if average is not None:
            average.swap(model)


def moving(model: Classifier) -> dict[str, torch.Tensor]:
    """Return the tensors that a phase changes: trained parameters, running statistics, and all buffers of the head."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    kept = model.state_dict().keys()
    statistics = {
        name: value
        for name, value in model.named_buffers()
        if name in kept and ("running_" in name or name.startswith("head."))
    }
    return {**trained, **statistics}
