"""The classifier: normalisation, backbone, and a new head."""

import torch
from accelerate import Accelerator
from torch import nn

from tlbatch.job.config import Model, Triple
from tlbatch.job.paths import weights_file
from tlbatch.model.backbones import Backbone, build_backbone, load_weights
from tlbatch.model.cut import freeze, frozen_to_eval


class Classifier(nn.Module):
    """From uint8 images of shape (n, size, size, 3) to logits of shape (n, num_classes)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.spec = backbone
        self.backbone = backbone.net
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(backbone.num_features, num_classes))
        self.register_buffer("mean", _scaled(backbone.mean), persistent=False)
        self.register_buffer("std", _scaled(backbone.std), persistent=False)
        self._cut = "none"
        self._freeze_batch_norm = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise on the device, where it costs nothing, and classify."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        features = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        logits: torch.Tensor = self.head(features)
        return logits

    def set_cut(self, cut: str, *, freeze_batch_norm: bool) -> None:
        """Begin a phase: freeze the backbone up to the cut."""
        self._cut, self._freeze_batch_norm = cut, freeze_batch_norm
        freeze(self.backbone, cut, freeze_batch_norm=freeze_batch_norm)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":  # noqa: FBT001, FBT002 (torch's signature)
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        if mode:
            frozen_to_eval(self.backbone, self._cut, freeze_batch_norm=self._freeze_batch_norm)
        return self


def build_classifier(model: Model, num_classes: int, *, seed: int, pretrained: bool) -> Classifier:
    """The job's backbone with a new head, the same on every rank.

    Raises
    ------
    UserError
        When there is no such backbone, or the weights do not fit it.
    """
    torch.manual_seed(seed)
    backbone = build_backbone(model)
    file = weights_file(model.weights) if pretrained else None
    if file is not None:
        load_weights(backbone, file, match=model.match)
    torch.manual_seed(seed)
    classifier = Classifier(backbone, num_classes, dropout=model.dropout)
    classifier.to(memory_format=torch.channels_last)
    return classifier


def turned(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Apply to each image its symmetry of the square: mirrored left to right if odd, then turned by half of it.

    Parameters
    ----------
    images
        (n, size, size, 3), of any type, on any device.
    turns
        (n,), 0 to 7 on the CPU: 2 * quarter turns + mirrored.

    Returns
    -------
    Tensor like ``images``.
    """
    for turn in set(turns.tolist()) - {0}:
        chosen = (turns == turn).nonzero()[:, 0].to(images.device)
        some = images[chosen]
        if turn % 2:
            some = some.flip(2)
        images = images.index_copy(0, chosen, some.rot90(turn // 2, (1, 2)))
    return images


@torch.inference_mode()
def probabilities(model: Classifier, images: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Class probabilities in eval mode, without the distributed wrapper: no rank waits for another.

    Parameters
    ----------
    images
        uint8, (n, size, size, 3).

    Returns
    -------
    float32 tensor of shape (n, num_classes) on the CPU.
    """
    model.eval()
    with accelerator.autocast():
        logits: torch.Tensor = model(images.to(accelerator.device, non_blocking=True))
    return logits.float().softmax(dim=1).cpu()


def _scaled(triple: Triple) -> torch.Tensor:
    return torch.tensor(triple).mul(255).view(1, 3, 1, 1)
