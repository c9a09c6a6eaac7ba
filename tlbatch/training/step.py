"""A running phase: the model with its cut set, optimiser and schedule, wrapped for distributed training."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms import v2

from tlbatch.config.training import Phase
from tlbatch.core.text import counted
from tlbatch.model.classifier import Classifier
from tlbatch.model.objectives import losses, targets
from tlbatch.model.phrase_decoder import PhraseDecoder
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.training.optim import Anchor, build_optimizer, build_schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningPhase:
    """Everything that a step of a phase needs."""

    accelerator: Accelerator
    model: torch.nn.Module
    """The classifier in its distributed wrapper."""
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    anchor: Anchor
    phase: Phase
    trained: list[torch.nn.Parameter]
    mix: v2.Transform | None

    def step(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        symmetry: torch.Tensor,
        *,
        global_size: int,
        class_weights: torch.Tensor,
    ) -> torch.Tensor:
        """Take one optimiser step on this rank's share of a global batch.

        The shares may differ by one image, so the loss is weighted: the gradients, averaged over ranks, are those of
        the mean over the batch.

        Parameters
        ----------
        inputs
            As in `Classifier.forward`.
        labels
            int64, (n,); for a model that writes phrases (n, tags).
        symmetry
            uint8, (n,): see `apply_symmetries`.
        global_size
            Samples in the batch over all ranks.
        class_weights
            (num_classes,).

        Returns
        -------
        The weighted loss of this rank, a scalar on its device.
        """
        device = self.accelerator.device
        inputs = apply_symmetries(inputs.to(device, non_blocking=True), symmetry)
        wanted = labels.to(device, non_blocking=True)
        if not self.writes_phrases:
            wanted = targets(wanted, self.classifier.num_classes, smoothing=self.phase.label_smoothing)
        if self.mix is not None:
            inputs, wanted = mixed(self.mix, inputs, wanted)
        total = torch.zeros((), device=device)
        parts = list(zip(inputs.chunk(self.phase.accumulate), wanted.chunk(self.phase.accumulate), strict=True))
        for number, (some, target) in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                each = self._losses(some, target, class_weights.to(device))
                loss = each.sum() * (self.accelerator.num_processes / global_size)
                self.accelerator.backward(loss)
            total += loss.detach()
        if self.phase.grad_clip:
            self.accelerator.clip_grad_norm_(self.trained, self.phase.grad_clip)
        else:
            self.accelerator.unscale_gradients()  # of fp16, before the anchor adds its own
        self.anchor.pull()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    @property
    def writes_phrases(self) -> bool:
        """Whether labels are rows of tags, for which the model itself returns the losses."""
        return self.classifier.rule.objective == "tags"

    def _losses(self, inputs: torch.Tensor, wanted: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted losses of some samples, (n,)."""
        if self.writes_phrases:
            found: torch.Tensor = self.model(inputs, wanted).float()
            return found
        each = losses(self.classifier.rule.objective, self.model(inputs).float(), wanted)
        return each * (wanted @ class_weights)

    def release(self) -> None:
        """Remove the distributed wrapper: the next phase trains other parameters."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.classifier).pop("_is_accelerate_prepared", None)  # else the next phase would run without autocast
        self.accelerator.free_memory()


def mixed(mix: v2.Transform, images: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the images of a batch and their targets.

    Parameters
    ----------
    images
        uint8, (n, size, size, 3).
    wanted
        (n, num_classes): distributions over the classes.
    """
    pixels, wanted = mix(images.permute(0, 3, 1, 2).float(), wanted)
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), wanted


def class_weights(counts: torch.Tensor, *, strength: float) -> torch.Tensor:
    """Return the weight of each class in the loss, (num_classes,), with mean 1 over all images.

    With strength 1 all classes weigh the same, with 0 all images do.
    """
    balanced = counts.sum() / (len(counts) * counts.clamp_min(1).float())
    return strength * balanced + (1 - strength)


def start_phase(
    accelerator: Accelerator, model: Classifier, phase: Phase, *, steps_per_epoch: int, seed: int
) -> RunningPhase:
    """Set the cut and wrap the model for distributed training; dropout masks differ between ranks."""
    model.to(accelerator.device)
    model.set_cut(phase.cut, freeze_batch_norm=phase.batch_norm == "frozen")
    if isinstance(model.head, PhraseDecoder):
        model.head.smoothing = phase.label_smoothing
    optimizer = build_optimizer(model, phase.optimizer)
    schedule = build_schedule(optimizer, phase, steps_per_epoch)
    anchor = Anchor(model, phase.optimizer)
    torch.manual_seed(seed + accelerator.process_index)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)
    log.info("cut %s: training %s for %s", phase.cut, counted(num_trained, "parameter"), counted(phase.epochs, "epoch"))
    kinds = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, phase.mixup), (v2.CutMix, phase.cutmix)) if alpha]
    mix = v2.RandomChoice(kinds) if kinds else None
    return RunningPhase(accelerator, wrapped, model, prepared, schedule, anchor, phase, trained, mix)
