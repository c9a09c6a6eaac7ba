"""The classifier: normalisation, the backbone before and after the cut, and a new head."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlbatch.config.base import Triple
from tlbatch.config.model import Decoder, Head, Pool
from tlbatch.config.training import ALL_FROZEN
from tlbatch.core.errors import UserError
from tlbatch.metrics.thresholds import rounding
from tlbatch.model.backbones import Backbone
from tlbatch.model.cut_points import Chain, Segment
from tlbatch.model.handcrafted.features import Handcrafted
from tlbatch.model.heads import Pooling, build_head, is_map
from tlbatch.model.objectives import Rule
from tlbatch.model.phrase_decoder import PhraseDecoder
from tlbatch.model.symmetries import apply_symmetries


class Classifier(nn.Module):
    """Maps images, or their activations at the cut, to the outputs of the objective.

    Attributes
    ----------
    shapes
        Shape of one image's activation at each cut point of the chain.
    ends
        Numbers of the cut points whose activations the head reads, increasing.
    pools
        The pooling of the activation at each of them into a vector.
    paired
        Whether the head reads two vectors side by side, that of an image and that of the rest of its group.
    thresholds
        (num_classes - 1,): thresholds between the grades of a regression, or on the mean grade.
    """

    mean: torch.Tensor
    std: torch.Tensor
    thresholds: torch.Tensor

    def __init__(
        self,
        spec: Backbone,
        head: Head,
        *,
        pool: Pool,
        rule: Rule,
        num_classes: int,
        decoder: Decoder | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = spec.net
        self.chain = Chain(spec.net)
        self.rule = rule
        self.num_classes = num_classes
        self.shapes = self.chain.shapes(torch.zeros(1, 3, spec.size, spec.size))
        self.ends = _ends(self.chain, self.shapes, head, pool)
        shapes = [self.shapes[end] for end in self.ends]
        kind: Pool = "avg" if pool == "auto" else pool
        self.pools = nn.ModuleList(Pooling(kind, shape) if is_map(shape) else nn.Flatten() for shape in shapes)
        self.paired = head.group_mean
        width = sum(self.widths) * (1 + self.paired)
        self.head: nn.Module = (
            PhraseDecoder(decoder, width, num_classes)
            if decoder is not None
            else build_head(head, width, rule.num_outputs(num_classes))
        )
        self.register_buffer("mean", _scaled(spec.mean), persistent=False)
        self.register_buffer("std", _scaled(spec.std), persistent=False)
        self.register_buffer("thresholds", torch.from_numpy(rounding(num_classes)).float())
        self._compiled = compiled
        self._frozen: set[nn.Module] = set()
        self.set_cut("none", freeze_batch_norm=False)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the outputs of the head, (n, num_outputs); for phrase heads see `PhraseHead.forward`.

        Parameters
        ----------
        inputs
            Images, uint8 (n, size, size, 3); or their activations from `to_cut`.
        labels
            For a head that writes phrases, int64, (n, tags).
        """
        found = self.to_cut(inputs) if inputs.dtype == torch.uint8 else inputs
        if not torch.is_autocast_enabled(found.device.type):  # cached activations may be fp16
            found = found.float()
        if not self._pools_before:
            found = self.pooled(found, self._after, training=self.training)
        if self.paired and found.shape[1] == sum(self.widths):  # from images, each treated as a group of one
            found = torch.cat([found, found], 1)
        with torch.autocast(found.device.type, enabled=False):  # fp16 is too coarse for a kernel, and not faster
            outputs: torch.Tensor = self.head(found.float(), *(() if labels is None else (labels,)))
        return outputs

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images for the backbone, (n, 3, size, size), on the device, where it is cheap."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return pixels.contiguous(memory_format=torch.channels_last)

    def to_cut(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the activations at the cut."""
        found = self.normalised(images)
        if self.cut == 0:
            return found
        with torch.no_grad():
            if self._pools_before:
                return self.pooled(found, self._before, training=False)
            for stretch in self._before:
                found = stretch.run(found, training=False)
            return found

    def pooled(self, activations: torch.Tensor, stretches: Sequence[Segment], *, training: bool) -> torch.Tensor:
        """Compute the input of the head, (n, num_features), from activations where ``stretches`` start."""
        parts = []
        for stretch, pool in zip(stretches, self.pools, strict=True):
            activations = stretch.run(activations, training=training)
            parts.append(pool(activations))
            if len(parts) < len(self.pools):
                activations = activations.clone()  # the next segment may work in place
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def stretches(self, start: int) -> list[Segment]:
        """Return the segments from a cut point, at or before the first end, through all ends."""
        return [
            self.chain.segment(first, last, compiled=self._compiled)
            for first, last in zip((start, *self.ends), self.ends, strict=False)
        ]

    @property
    def end(self) -> int:
        """The last cut point whose activation the head reads."""
        return self.ends[-1]

    @property
    def by_hand(self) -> bool:
        """Whether the backbone computes handcrafted features instead of being a network."""
        return isinstance(self.backbone, Handcrafted)

    @property
    def pool_is_fixed(self) -> bool:
        """Whether the pooling has no parameters, and so can be frozen with the backbone."""
        return not list(self.pools.parameters())

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the vector from each of the ends."""
        return tuple(
            pool.num_features if isinstance(pool, Pooling) else torch.Size(self.shapes[end]).numel()
            for pool, end in zip(self.pools, self.ends, strict=True)
        )

    def set_cut(self, cut: str, *, freeze_batch_norm: bool) -> None:
        """Start a phase: freeze the layers before the cut, and train those after it.

        Call it once the model is on its device. Raises UserError if the backbone cannot be cut there.
        """
        self.cut = self.find(cut)
        self._pools_before = self.cut == self.end and self.pool_is_fixed
        self._before = self.stretches(0) if self._pools_before else [self.chain.segment(0, self.cut)]
        self._after = [] if self._pools_before else self.stretches(self.cut)
        self.backbone.requires_grad_(False)
        for parameter in self.chain.parameters(self.cut, self.end).values():
            parameter.requires_grad_(True)
        self._frozen = self.chain.modules(0, self.cut) - self.chain.modules(self.cut, self.end)
        if freeze_batch_norm:
            norms = {module for module in self.backbone.modules() if isinstance(module, _BatchNorm)}
            self._frozen |= norms
            for norm in norms:
                for parameter in norm.parameters(recurse=False):
                    parameter.requires_grad_(False)
        self.train(self.training)

    def find(self, cut: str) -> int:
        """Return the number of the cut point that a cut names: all frozen, or at most the first end.

        Raises UserError if the backbone cannot be cut there.
        """
        if cut in ALL_FROZEN:
            return self.end
        at = self.chain.find(cut)
        if at > self.ends[0]:
            name = self.chain.places[self.ends[0]].name
            raise UserError(f"phase cut {cut!r}: it lies after head.after = {name}; cut before it, or at pool")
        return at

    def num_parameters(self) -> int:
        """Count the parameters that an output depends on."""
        used = {id(p): p.numel() for p in self.chain.parameters(0, self.end).values()}
        return sum(used.values()) + sum(p.numel() for part in (self.pools, self.head) for p in part.parameters())

    def shape_at(self, place: int) -> tuple[int, ...]:
        """Return the shape of one image's activation at a cut point; of its pooled features at the last end."""
        if place == self.end and self.pool_is_fixed:
            return (sum(self.widths),)
        return self.shapes[place]

    def trained(self) -> list[tuple[nn.Parameter, int]]:
        """Return the trained parameters of the backbone, each with the number of trained layers above it."""
        found: dict[nn.Parameter, int] = {}
        for at in range(self.cut, self.end):
            for parameter in self.chain.parameters(at, at + 1).values():
                if parameter.requires_grad:
                    found.setdefault(parameter, self.chain.places[at + 1].layer)
        layers = sorted(set(found.values()), reverse=True)
        return [(parameter, layers.index(layer)) for parameter, layer in found.items()]

    def train(self, mode: bool = True) -> "Classifier":  # noqa: FBT001, FBT002 (torch's signature)
        """Set the mode; frozen modules stay in eval mode."""
        super().train(mode)
        if mode:
            for module in self._frozen:
                module.training = False
        return self

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the class probabilities of the head's outputs, (n, num_classes), float32."""
        return self.rule.probabilities(outputs, self.num_classes, self.thresholds)

    def grades(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the grades that thresholds cut, (n, 1), float32; without thresholds the first output."""
        return self.rule.grades(outputs, self.num_classes) if self.rule.has_thresholds else outputs[:, :1].float()


def _ends(chain: Chain, shapes: tuple[tuple[int, ...], ...], head: Head, pool: Pool) -> tuple[int, ...]:
    """Return the numbers of the cut points whose activations the head reads."""
    if head.after:
        return tuple(sorted({chain.find(name, key="head.after") for name in head.after}))
    last = len(shapes) - 1
    maps = [] if pool == "auto" else [at for at, shape in enumerate(shapes) if at and is_map(shape)]
    return (maps[-1] if maps else last,)


@torch.inference_mode()
def predicted(
    model: Classifier,
    inputs: torch.Tensor,
    symmetry: torch.Tensor,
    accelerator: Accelerator,
    *,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the outputs of the head in eval mode, without the distributed wrapper: no rank waits for another.

    Parameters are those of `Classifier.forward`, and the symmetries of `apply_symmetries`.

    Returns
    -------
    float32 tensor of shape (n, num_outputs) on the CPU.
    """
    model.eval()
    inputs = apply_symmetries(inputs.to(accelerator.device, non_blocking=True), symmetry)
    with accelerator.autocast():
        outputs: torch.Tensor = model(inputs, None if labels is None else labels.to(accelerator.device))
    return outputs.float().cpu()


def _scaled(triple: Triple) -> torch.Tensor:
    return torch.tensor(triple).mul(255).view(1, 3, 1, 1)
