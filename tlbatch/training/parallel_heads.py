"""Many heads on the same vectors, trained in parallel in one process: one for each learning rate and fold.

The linear evaluation of DINOv2 (Oquab et al. 2024) trains a head per learning rate in this way; here each rate has a
head on all vectors, and one for each fold of the cross-validation that chooses the rate.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from tlbatch.config.training import Objective, Phase
from tlbatch.core.errors import UserError
from tlbatch.core.typing import Ints
from tlbatch.model.fitted_head import FittedHead, Vectors, best_of
from tlbatch.model.folds import folds_to_score
from tlbatch.model.objectives import losses, targets
from tlbatch.training.optim import build_schedule, optimizer_over


@dataclass(frozen=True)
class Epochs:
    """The samples of a phase, the same as in a phase with a single learning rate."""

    batches: Callable[[int], Iterable[Ints]]
    """Returns the rows of `Vectors` in every batch of an epoch."""
    class_weights: Callable[[int], torch.Tensor]
    """Returns the class weights of an epoch, (num_classes,)."""
    steps: int
    """Number of batches in an epoch."""


def train_heads(
    head: nn.Sequential, phase: Phase, vectors: Vectors, epochs: Epochs, *, objective: Objective, seed: int
) -> FittedHead:
    """Train a head for each of the phase's rates, and choose the rate by cross-validation over groups.

    Rates are compared by the out-of-fold loss of the objective.

    Parameters
    ----------
    head
        The initial weights of all heads, on the device to train on.

    Raises
    ------
    UserError
        When there are too few groups for two folds, or all rates diverge.
    """
    folds = folds_to_score(vectors.labels, vectors.groups, seed)
    fitted_on = np.ones((1 + len(folds), len(vectors.labels)), bool)
    for number, (_, out) in enumerate(folds, start=1):
        fitted_on[number, out] = False
    many = _Many(head, phase, vectors, epochs, objective=objective, seed=seed, fitted_on=fitted_on)
    many.run()
    scored = np.concatenate([out for _, out in folds])
    parts = {
        rate: np.concatenate([many.outputs(heads[number], out) for number, (_, out) in enumerate(folds, start=1)])
        for rate, heads in many.heads.items()
    }
    wanted = targets(torch.from_numpy(vectors.labels[scored]), vectors.num_classes, smoothing=0.0)
    scores = {rate: float(losses(objective, torch.from_numpy(found), wanted).mean()) for rate, found in parts.items()}
    best = best_of(scores)
    if not np.isfinite(scores[best]):
        raise UserError("phase.N.lr_grid: the loss is not finite with any of its rates; lower them")
    return FittedHead(many.heads[best][0].cpu(), parts[best], scored, scores)


class _Many:
    """Heads by learning rate: the first on all vectors, then one per fold; gradients are clipped per head."""

    def __init__(
        self, head: nn.Sequential, phase: Phase, vectors: Vectors, epochs: Epochs, *, objective: Objective, seed: int,
        fitted_on: np.ndarray,
    ) -> None:  # fmt: skip
        self._phase, self._vectors, self._epochs, self._objective = phase, vectors, epochs, objective
        self._device = next(head.parameters()).device
        self.heads = {f"{rate:g}": [copy.deepcopy(head) for _ in fitted_on] for rate in phase.lr_grid}
        self._flat = [one for heads in self.heads.values() for one in heads]
        self._fitted_on = torch.from_numpy(np.tile(fitted_on, (len(phase.lr_grid), 1))).to(self._device)
        self._features = torch.from_numpy(vectors.features).float().to(self._device)
        self._labels = torch.from_numpy(vectors.labels).to(self._device)
        rates = [rate for rate in phase.lr_grid for _ in fitted_on]
        decay = phase.optimizer.weight_decay
        rated = (
            (weight, rate, decay) for one, rate in zip(self._flat, rates, strict=True) for weight in one.parameters()
        )
        self._optimizer = optimizer_over(rated, phase.optimizer)
        self._schedule = build_schedule(self._optimizer, phase, epochs.steps)
        torch.manual_seed(seed)

    def run(self) -> None:
        """Run all epochs of the phase."""
        for one in self._flat:
            one.train()
        for epoch in range(self._phase.epochs):
            weights = self._epochs.class_weights(epoch).to(self._device)
            for rows in self._epochs.batches(epoch):
                self._step(torch.from_numpy(rows).to(self._device), weights)
        for one in self._flat:
            one.eval()

    def _step(self, rows: torch.Tensor, class_weights: torch.Tensor) -> None:
        wanted = targets(self._labels[rows], self._vectors.num_classes, smoothing=self._phase.label_smoothing)
        stacked = {
            name: torch.stack([one.get_parameter(name) for one in self._flat])
            for name, _ in self._flat[0].named_parameters()
        }

        def of_one(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            outputs: torch.Tensor = functional_call(self._flat[0], parameters, (self._features[rows],))
            return losses(self._objective, outputs.float(), wanted)

        each = torch.vmap(of_one, randomness="different")(stacked)
        weights = (wanted @ class_weights) * self._fitted_on[:, rows]
        loss = (each * weights).sum(1) / self._fitted_on[:, rows].sum(1).clamp_min(1)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss.sum())
        for one in self._flat:
            if self._phase.grad_clip:
                nn.utils.clip_grad_norm_(one.parameters(), self._phase.grad_clip)
        self._optimizer.step()
        self._schedule.step()

    @torch.inference_mode()
    def outputs(self, head: nn.Sequential, rows: Ints) -> np.ndarray:
        """Return the outputs of a head on some vectors, (m, num_outputs)."""
        return np.asarray(head(self._features[torch.from_numpy(rows).to(self._device)]).float().cpu().numpy())
