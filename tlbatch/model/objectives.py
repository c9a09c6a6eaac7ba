"""What is minimised, and how the outputs of the head become class probabilities.

Every objective takes a target distribution over the classes, so that label smoothing and mixed images work in all.
"""

from typing import Annotated

import torch
from torch.nn.functional import log_softmax, logsigmoid, one_hot

from tlbatch.job.learning import Objective

_FOCUS = 2.0
_SPREAD = 0.5
Logits = Annotated[torch.Tensor, "(n, num_outputs)"]


def num_outputs(objective: Objective, num_classes: int) -> int:
    """Outputs that the head needs."""
    match objective:
        case "binary" | "regression":
            return 1
        case "corn" | "cumulative":
            return num_classes - 1
    return num_classes


def targets(labels: torch.Tensor, num_classes: int, *, smoothing: float) -> torch.Tensor:
    """Distribution over the classes, (n, num_classes), of labels (n,): smoothing spreads a share over all of them."""
    hot = one_hot(labels, num_classes).float()
    return hot * (1 - smoothing) + smoothing / num_classes


def losses(objective: Objective, outputs: Logits, target: torch.Tensor) -> torch.Tensor:
    """The loss of every sample.

    With t the target distribution, T_k its mass above class k and s the sigmoid:
    cross-entropy; focal (Lin et al. 2017) with gamma = 2; binary: cross-entropy of one sigmoid unit for the second
    class; cumulative: binary cross-entropy of s(o_k) against T_k (Cheng et al. 2008, proportional odds with a linear
    head of its own a threshold); corn: of s(o_k) as P(y > k | y > k-1) (Shi et al. 2023); regression: squared
    distance from the mean of t.

    Parameters
    ----------
    outputs
        Of the head, (n, num_outputs).
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
            return (outputs[:, 0] - target @ _grades(target)) ** 2
        case "corn":
            return -(above[:, 1:] * logsigmoid(outputs) + target[:, :-1] * logsigmoid(-outputs)).sum(1)
        case "binary" | "cumulative":
            return -(above[:, 1:] * logsigmoid(outputs) + (1 - above[:, 1:]) * logsigmoid(-outputs)).sum(1)


def probabilities(
    objective: Objective, outputs: Logits, num_classes: int, *, thresholds: torch.Tensor | None = None
) -> torch.Tensor:
    """Class probabilities, (n, num_classes).

    The class with the highest one is the decision. For ``corn`` and ``cumulative`` they are differences of P(y > k),
    made to fall with k; for ``regression`` a normal density around the output (standard deviation 0.5 grades) at each
    grade, once the thresholds, (num_classes - 1,), have been moved to the middles between grades.
    """
    outputs = outputs.float()
    match objective:
        case "cross-entropy" | "focal":
            return outputs.softmax(1)
        case "binary":
            return torch.cat([(-outputs).sigmoid(), outputs.sigmoid()], 1)
        case "regression":
            grades = torch.arange(num_classes, device=outputs.device, dtype=torch.float32)
            value = outputs if thresholds is None else _regraded(outputs, thresholds.to(outputs))
            return (-((value - grades) ** 2) / (2 * _SPREAD**2)).softmax(1)
        case "corn":
            exceeds = outputs.sigmoid().cumprod(1)
        case "cumulative":
            exceeds = outputs.sigmoid().cummin(1).values
    edge = torch.ones_like(exceeds[:, :1])
    return torch.cat([edge, exceeds], 1) - torch.cat([exceeds, 0 * edge], 1)


def _grades(target: torch.Tensor) -> torch.Tensor:
    return torch.arange(target.shape[1], device=target.device, dtype=target.dtype)


def _regraded(outputs: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Piecewise linear, increasing: threshold k goes to k + 1/2."""
    middles = torch.arange(len(thresholds), device=outputs.device) + 0.5
    right = torch.bucketize(outputs, thresholds).clamp(1, max(1, len(thresholds) - 1))
    if len(thresholds) == 1:
        return outputs - thresholds + middles
    low, high = thresholds[right - 1], thresholds[right]
    return middles[right - 1] + (outputs - low) / (high - low).clamp_min(1e-6)
