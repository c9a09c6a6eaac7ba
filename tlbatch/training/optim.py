"""Optimiser and learning-rate schedule of a phase."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tlbatch.config.training import Optimizer, Phase
from tlbatch.model.classifier import Classifier


def build_optimizer(model: Classifier, settings: Optimizer) -> torch.optim.Optimizer:
    """Build the optimiser of all trained parameters: own rates for head and backbone layers, decay on weights only.

    If the backbone decays toward its starting weights, `Anchor` does that instead of the optimiser.
    """
    backbone_lr = settings.backbone_lr or settings.lr / 10
    kept = 0.0 if settings.decay_to == "start" else settings.weight_decay
    head = (*model.head.parameters(), *model.pools.parameters())
    rated = [(parameter, settings.lr, settings.weight_decay) for parameter in head]
    rated += [(weight, backbone_lr * settings.layer_decay**depth, kept) for weight, depth in model.trained()]
    return optimizer_over(rated, settings)


def optimizer_over(rated: Iterable[tuple[nn.Parameter, float, float]], settings: Optimizer) -> torch.optim.Optimizer:
    """Build the optimiser of some parameters, each with its rate and, unless it is a bias or norm, its decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter, lr, decay in rated:
        groups[lr, decay if parameter.ndim > 1 else 0.0].append(parameter)
    chosen = [{"params": some, "lr": lr, "weight_decay": decay} for (lr, decay), some in groups.items()]
    match settings.name:
        case "sgd":
            return torch.optim.SGD(chosen, momentum=settings.momentum, nesterov=settings.nesterov)
        case "adam":
            return torch.optim.Adam(chosen)
        case "adamw":
            return torch.optim.AdamW(chosen)
        case "rmsprop":
            return torch.optim.RMSprop(chosen, momentum=settings.momentum)
        case "adadelta":
            return torch.optim.Adadelta(chosen)


class Anchor:
    """Decay of the backbone toward its weights at the start of the phase (L2-SP, Li et al. 2018)."""

    def __init__(self, model: Classifier, settings: Optimizer) -> None:
        self._strength = settings.weight_decay if settings.decay_to == "start" else 0.0
        self._weights = [weight for weight, _ in model.trained() if weight.ndim > 1] if self._strength else []
        self.start = [weight.detach().clone() for weight in self._weights]

    def pull(self) -> None:
        """Add the gradient of strength / 2 * |w - start|^2; call it after clipping."""
        for weight, start in zip(self._weights, self.start, strict=True):
            if weight.grad is not None:
                weight.grad.add_(weight.detach() - start, alpha=self._strength)


def build_schedule(optimizer: torch.optim.Optimizer, phase: Phase, steps_per_epoch: int) -> LambdaLR:
    """Build the schedule of a phase: linear warm-up, then constant, step decay, or half a cosine to zero."""
    total = phase.epochs * steps_per_epoch
    warmup = round(phase.warmup * total if phase.warmup < 1 else phase.warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        match phase.schedule:
            case "constant":
                return 1.0
            case "step":
                return float(phase.step_factor ** (step // (phase.step_epochs * steps_per_epoch)))
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, factor)
