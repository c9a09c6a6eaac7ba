"""Optimiser and learning-rate schedule of a phase."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from tlbatch.job.config import Optimizer, Phase
from tlbatch.model.classifier import Classifier


def build_optimizer(model: Classifier, settings: Optimizer) -> torch.optim.Optimizer:
    """Make the optimiser over what trains: head and backbone with their own rates, decay on weights only."""
    backbone_lr = settings.backbone_lr or settings.lr / 10
    groups = []
    for module, lr in ((model.head, settings.lr), (model.backbone, backbone_lr)):
        for decayed in (True, False):
            chosen = [p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == decayed]
            if chosen:
                groups.append({"params": chosen, "lr": lr, "weight_decay": settings.weight_decay if decayed else 0.0})
    match settings.name:
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum)
        case "adam":
            return torch.optim.Adam(groups)
        case "adamw":
            return torch.optim.AdamW(groups)
        case "rmsprop":
            return torch.optim.RMSprop(groups, momentum=settings.momentum)


def build_schedule(optimizer: torch.optim.Optimizer, phase: Phase, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then constant or half a cosine to zero, over the steps of the phase."""
    total = phase.epochs * steps_per_epoch
    warmup = round(phase.warmup * total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if phase.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, factor)
