"""A phase at work: the model with its cut set, optimiser and schedule, spread over the ranks."""

import logging
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from tlbatch.job.config import Phase, Train
from tlbatch.model.classifier import Classifier, turned
from tlbatch.model.optim import build_optimizer, build_schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningPhase:
    """What one step of a phase needs."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    train: Train

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, turns: torch.Tensor, *, global_size: int
    ) -> torch.Tensor:
        """One optimiser step on this rank's share of a global batch.

        The shares may differ by one image, so the loss is weighted: the mean over ranks that the gradients are
        given is the mean over the batch.

        Parameters
        ----------
        images
            uint8, (n, size, size, 3).
        labels
            int64, (n,).
        turns
            uint8, (n,): see `turned`.
        global_size
            Images in the batch over all ranks.

        Returns
        -------
        The weighted loss of this rank, a scalar on its device.
        """
        device = self.accelerator.device
        logits = self.model(turned(images.to(device, non_blocking=True), turns))
        summed = cross_entropy(
            logits.float(),
            labels.to(device, non_blocking=True),
            label_smoothing=self.train.label_smoothing,
            reduction="sum",
        )
        loss: torch.Tensor = summed * (self.accelerator.num_processes / global_size)
        self.accelerator.backward(loss)
        if self.train.grad_clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.train.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def mean_over_ranks(self, value: torch.Tensor) -> float:
        """The mean of a scalar over all ranks."""
        return float(self.accelerator.reduce(value, "mean"))

    def release(self) -> None:
        """Take the distributed wrapper off again: the next phase trains other parameters."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()


def start_phase(
    accelerator: Accelerator,
    model: Classifier,
    phase: Phase,
    train: Train,
    *,
    steps_per_epoch: int,
    seed: int,
) -> RunningPhase:
    """Set the cut and spread the model over the ranks; dropout draws differently on each rank."""
    model.set_cut(phase.cut, freeze_batch_norm=phase.batch_norm == "frozen")
    optimizer = build_optimizer(model, phase.optimizer)
    schedule = build_schedule(optimizer, phase, steps_per_epoch)
    torch.manual_seed(seed + accelerator.process_index)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("cut %s: %s parameters train for %d epochs", phase.cut, f"{num_trained:,}", phase.epochs)
    return RunningPhase(accelerator, wrapped, prepared, schedule, train)
