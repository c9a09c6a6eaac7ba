"""Objectives: the losses, and how the outputs of the head become class probabilities.

Every objective takes a target distribution over the classes, so that label smoothing and mixup work with all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import torch
from torch.nn.functional import log_softmax, logsigmoid, one_hot

from tlbatch.config.training import Objective

_FOCUS = 2.0
_SPREAD = 0.5
Logits = Annotated[torch.Tensor, "(n, num_outputs)"]


def targets(labels: torch.Tensor, num_classes: int, *, smoothing: float) -> torch.Tensor:
    """Return the target distribution of labels (n,), (n, num_classes); smoothing spreads a part over all classes."""
    hot = one_hot(labels, num_classes).float()
    return hot * (1 - smoothing) + smoothing / num_classes


def losses(objective: Objective, outputs: Logits, target: torch.Tensor) -> torch.Tensor:
    """Compute the loss of each sample.

    With t the target distribution, T_k its mass above class k and s the sigmoid:
    cross-entropy; focal (Lin et al. 2017) with gamma = 2; binary: cross-entropy of one sigmoid unit for the second
    class; cumulative: binary cross-entropy of s(o_k) against T_k (Cheng et al. 2008, proportional odds with a
    separate linear head for each threshold); corn: the same of s(o_k) as P(y > k | y > k-1) (Shi et al. 2023);
    regression: squared distance from the mean of t.

    Parameters
    ----------
    outputs
        Outputs of the head, (n, num_outputs).
    target
        (n, num_classes), rows that sum to one.

    Returns
    -------
    (n,).
    """
    above = target.flip(1).cumsum(1).flip(1)  # at or above each class
    match objective:
        case "cross-entropy":
            return -(target * log_softmax(outputs, 1)).sum(1)
        case "focal":
            log_p = log_softmax(outputs, 1)
            return -(target * (1 - log_p.exp()) ** _FOCUS * log_p).sum(1)
        case "regression":
            return (outputs[:, 0] - target @ _numbers(target.shape[1], target)) ** 2
        case "corn":
            return -(above[:, 1:] * logsigmoid(outputs) + target[:, :-1] * logsigmoid(-outputs)).sum(1)
        case "binary" | "cumulative":
            return -(above[:, 1:] * logsigmoid(outputs) + (1 - above[:, 1:]) * logsigmoid(-outputs)).sum(1)
        case "tags":
            raise AssertionError("the head itself computes the losses of phrases")


@dataclass(frozen=True)
class Rule:
    """What the outputs of the head mean, and which class is chosen."""

    objective: Objective
    by_mean: bool = False
    """Predict by the expected grade instead of the most probable class."""

    def num_outputs(self, num_classes: int) -> int:
        """Return the number of outputs that the head needs."""
        return {"binary": 1, "regression": 1, "corn": num_classes - 1, "cumulative": num_classes - 1}.get(
            self.objective, num_classes
        )

    @property
    def has_thresholds(self) -> bool:
        """Whether grades are cut at thresholds."""
        return self.by_mean or self.objective == "regression"

    def grades(self, outputs: Logits, num_classes: int) -> torch.Tensor:
        """Return the values that thresholds cut, (n, 1): the output of a regression, or the expected grade."""
        if self.objective == "regression":
            return outputs.float()
        return class_probabilities(self.objective, outputs, num_classes) @ _numbers(num_classes, outputs)[:, None]

    def probabilities(self, outputs: Logits, num_classes: int, thresholds: torch.Tensor) -> torch.Tensor:
        """Return the class probabilities, (n, num_classes); the highest is the predicted class.

        Where grades are cut at thresholds, (num_classes - 1,), values are rescaled so that thresholds fall midway
        between grades, and the probabilities are a normal density around the value (standard deviation 0.5 grades) at
        each grade.
        """
        if not self.has_thresholds:
            return class_probabilities(self.objective, outputs, num_classes)
        value = _regraded(self.grades(outputs, num_classes), thresholds.to(outputs.device, torch.float32))
        return (-((value - _numbers(num_classes, outputs)) ** 2) / (2 * _SPREAD**2)).softmax(1)


def class_probabilities(objective: Objective, outputs: Logits, num_classes: int) -> torch.Tensor:
    """Return the class probabilities of an objective other than regression, (n, num_classes).

    For ``corn`` and ``cumulative`` they are differences of P(y > k), made non-increasing in k.
    """
    outputs = outputs.float()
    match objective:
        case "binary":
            return torch.cat([(-outputs).sigmoid(), outputs.sigmoid()], 1)
        case "corn":
            exceeds = _running(torch.mul, outputs.sigmoid().double()).float()
        case "cumulative":
            exceeds = _running(torch.minimum, outputs.sigmoid())
        case _:
            assert outputs.shape[1] == num_classes
            return outputs.softmax(1)
    edge = torch.ones_like(exceeds[:, :1])
    return torch.cat([edge, exceeds], 1) - torch.cat([exceeds, 0 * edge], 1)


def _running(operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], columns: torch.Tensor) -> torch.Tensor:
    """Return a running product or minimum along axis 1, as ONNX has no cumprod or cummin."""
    return torch.stack(list(accumulate(columns.unbind(1), operation)), 1)


def _numbers(num_classes: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(num_classes, device=like.device, dtype=torch.float32)


def _regraded(outputs: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Rescale values by an increasing, piecewise linear map that takes threshold k to k + 1/2."""
    middles = torch.arange(len(thresholds), device=outputs.device) + 0.5
    right = torch.bucketize(outputs, thresholds).clamp(1, max(1, len(thresholds) - 1))
    if len(thresholds) == 1:
        return outputs - thresholds + middles
    low, high = thresholds[right - 1], thresholds[right]
    return middles[right - 1] + (outputs - low) / (high - low).clamp_min(1e-6)
