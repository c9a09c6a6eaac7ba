"""The classifier: normalisation, backbone up to the cut, backbone after it, and a new head."""

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
    """From images, or from their activations at the cut, to the outputs of the objective.

    Attributes
    ----------
    shapes
        Of one image's activation at each place of the chain.
    ends
        Numbers of the places of the chain that the head stands on, increasing.
    pools
        What makes a vector of the activation at each of them.
    paired
        Whether the head sees two vectors side by side, of an image and of the rest of its group.
    thresholds
        (num_classes - 1,): between the grades of a regression, or of the mean grade.
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
        self.pools = nn.ModuleList(_pooling(pool, shape) for shape in shapes)
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
        """Outputs of the head, (n, num_outputs); of one that writes phrases what `PhraseHead.forward` says.

        Parameters
        ----------
        inputs
            Images, uint8 (n, size, size, 3); or what `to_cut` makes of them.
        labels
            For a head that writes phrases, int64, (n, tags).
        """
        found = self.to_cut(inputs) if inputs.dtype == torch.uint8 else inputs
        if not torch.is_autocast_enabled(found.device.type):  # cached numbers may be halves
            found = found.float()
        if not self._pools_before:
            found = self.pooled(found, self._after, training=self.training)
        if self.paired and found.shape[1] == sum(self.widths):  # from images, each of which is taken to be alone
            found = torch.cat([found, found], 1)
        with torch.autocast(found.device.type, enabled=False):  # halves are too coarse for a kernel, and gain nothing
            outputs: torch.Tensor = self.head(found.float(), *(() if labels is None else (labels,)))
        return outputs

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """What the backbone sees, (n, 3, size, size); on the device, where it costs nothing."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return pixels.contiguous(memory_format=torch.channels_last)

    def to_cut(self, images: torch.Tensor) -> torch.Tensor:
        """Activations at the cut."""
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
        """Features that the head sees, (n, num_features), from activations where `stretches` begin."""
        parts = []
        for stretch, pool in zip(stretches, self.pools, strict=True):
            activations = stretch.run(activations, training=training)
            parts.append(pool(activations))
            activations = (
                activations.clone() if len(parts) < len(self.pools) else activations
            )  # may be worked on in place
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def stretches(self, start: int) -> list[Segment]:
        """From a place at or before the first end, through all ends."""
        return [
            self.chain.segment(first, last, compiled=self._compiled)
            for first, last in zip((start, *self.ends), self.ends, strict=False)
        ]

    @property
    def end(self) -> int:
        """The last place that the head stands on."""
        return self.ends[-1]

    @property
    def by_hand(self) -> bool:
        """Whether hand-made features stand in place of a network."""
        return isinstance(self.backbone, Handcrafted)

    @property
    def pool_is_fixed(self) -> bool:
        """Whether the pooling has nothing to learn, and so can be frozen with the backbone."""
        return not any(True for _ in self.pools.parameters())

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the vector from each of the ends."""
        shapes = [self.shapes[end] for end in self.ends]
        return tuple(
            pool.num_features if isinstance(pool, Pooling) else torch.Size(shape).numel()
            for pool, shape in zip(self.pools, shapes, strict=True)
        )

    def set_cut(self, cut: str, *, freeze_batch_norm: bool) -> None:
        """Begin a phase: what stands before the cut is frozen, what comes after it trains.

        Call it when the model is on its device.

        Raises
        ------
        UserError
            When the backbone cannot be cut there.
        """
        self.cut = self.find(cut)
        self._pools_before = self.cut == self.end and self.pool_is_fixed
        self._before = self.stretches(0) if self._pools_before else [self.chain.segment(0, self.cut)]
        self._after = [] if self._pools_before else self.stretches(self.cut)
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(False)
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
        """Number of the place that a cut names: all frozen, or at most the first that the head stands on.

        Raises
        ------
        UserError
            When the backbone cannot be cut there.
        """
        if cut in ALL_FROZEN:
            return self.end
        at = self.chain.find(cut)
        if at > self.ends[0]:
            name = self.chain.places[self.ends[0]].name
            raise UserError(f"phase cut {cut!r}: it lies behind head.after = {name}; cut before it, or at pool")
        return at

    def num_parameters(self) -> int:
        """Parameters that an output depends on."""
        used = {id(p): p.numel() for p in self.chain.parameters(0, self.end).values()}
        return sum(used.values()) + sum(p.numel() for part in (self.pools, self.head) for p in part.parameters())

    def shape_at(self, place: int) -> tuple[int, ...]:
        """Shape of one image's activation at a place of the chain, of its features if the head stands there."""
        if place == self.end and self.pool_is_fixed:
            return (sum(self.widths),)
        return self.shapes[place]

    def trained(self) -> list[tuple[nn.Parameter, int]]:
        """The parameters of the backbone that train, each with the number of layers above it that have weights."""
        found: dict[int, tuple[nn.Parameter, int]] = {}
        for at in range(self.cut, self.end):
            for parameter in self.chain.parameters(at, at + 1).values():
                if parameter.requires_grad:
                    found.setdefault(id(parameter), (parameter, self.chain.places[at + 1].layer))
        layers = sorted({layer for _, layer in found.values()}, reverse=True)
        return [(parameter, layers.index(layer)) for parameter, layer in found.values()]

    def train(self, mode: bool = True) -> "Classifier":  # noqa: FBT001, FBT002 (torch's signature)
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        if mode:
            for module in self._frozen:
                module.training = False
        return self

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Class probabilities (n, num_classes) of the head's outputs, float32."""
        return self.rule.probabilities(outputs, self.num_classes, self.thresholds)

    def grades(self, outputs: torch.Tensor) -> torch.Tensor:
        """What thresholds would cut (n, 1), float32; the first output where classes are not decided so."""
        return self.rule.grades(outputs, self.num_classes) if self.rule.has_thresholds else outputs[:, :1].float()


def _pooling(pool: Pool, shape: tuple[int, ...]) -> nn.Module:
    return Pooling("avg" if pool == "auto" else pool, shape) if is_map(shape) else nn.Flatten()


def _ends(chain: Chain, shapes: tuple[tuple[int, ...], ...], head: Head, pool: Pool) -> tuple[int, ...]:
    """Numbers of the places that the head stands on."""
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
    """Outputs of the head in eval mode, without the distributed wrapper: no rank waits for another.

    Parameters
    ----------
    inputs
        As in `Classifier.forward`.
    turns
        See `apply_symmetries`.
    labels
        As in `Classifier.forward`.

    Returns
    -------
    float32 tensor of shape (n, num_outputs) on the CPU.
    """
    model.eval()
    known = () if labels is None else (labels.to(accelerator.device),)
    with accelerator.autocast():
        outputs: torch.Tensor = model(
            apply_symmetries(inputs.to(accelerator.device, non_blocking=True), symmetry), *known
        )
    return outputs.float().cpu()


def _scaled(triple: Triple) -> torch.Tensor:
    return torch.tensor(triple).mul(255).view(1, 3, 1, 1)
