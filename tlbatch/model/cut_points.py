"""The chain of a network: the points where a single tensor carries all earlier results, so that it can be cut there.

The network is traced symbolically (torch.fx, with torchvision's tracer and timm's leaf modules), once in training mode
and once in evaluation mode. Only one value crosses a cut point, so the rest of the network can continue from a stored
activation.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import fx, nn

from tlbatch.config.model import HANDCRAFTED
from tlbatch.config.training import ALL_FROZEN
from tlbatch.core.errors import UserError
from tlbatch.model import tracing
from tlbatch.model.handcrafted.features import Handcrafted
from tlbatch.model.tracing import Traced

ALL_TRAIN = "none"
_FEWEST, _MOST = 6, 12


@dataclass(frozen=True)
class CutPoint:
    """A point at which the network can be cut."""

    name: str
    """The outermost module that ends here, or the path of the operation."""
    names: tuple[str, ...]
    """All modules that end here."""
    layer: int
    """Number of the layer that it belongs to: a block, or an operation with weights or pooling, with the norm,
    activation and dropout that follow. In a VGG these are the numbers of Keras, whose input is layer 0."""


class Segment(NamedTuple):
    """A segment of the network, in training mode and in evaluation mode."""

    training: nn.Module
    evaluating: nn.Module

    def run(self, inputs: torch.Tensor, *, training: bool) -> torch.Tensor:
        """Compute the activation at its end from that at its start."""
        found: torch.Tensor = (self.training if training else self.evaluating)(inputs)
        return found


class Chain:
    """The cut points of a network without its classifier, from its input (number 0) to its features (the last).

    A network that cannot be traced has only these two.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        mode = net.training
        try:
            self._graphs: dict[bool, Traced] | None = {
                training: tracing.traced(net, training) for training in (True, False)
            }
        except tracing.UNTRACEABLE:
            self._graphs = None
        net.train(mode)

    @cached_property
    def places(self) -> tuple[CutPoint, ...]:
        """The cut points in the order of the network."""
        if self._graphs is None:
            last = HANDCRAFTED if isinstance(self._net, Handcrafted) else ALL_FROZEN[0]
            return CutPoint(ALL_TRAIN, (), 0), CutPoint(last, (), 1)
        graph = self._graphs[False]
        ends = tracing.module_ends(graph)
        blocks = tracing.blocks_of(self._net, graph.graph)
        layer, weighs, places = 0, False, []
        for before, node in zip((None, *self._nodes), self._nodes, strict=False):
            weighs |= before is not None and tracing.is_layer(self._net, tracing.between(graph.graph, before, node))
            inside = any(graph.paths[node].startswith(f"{block}.") and ends[block] is not node for block in blocks)
            if not inside:
                layer, weighs = layer + weighs, False
            names = tuple(
                sorted((name for name, last in ends.items() if last is node), key=lambda name: name.count("."))
            )
            places.append(CutPoint(names[0] if names else graph.paths[node], names, layer + weighs))
        places[0] = CutPoint(ALL_TRAIN, (), 0)
        return tuple(places)

    @cached_property
    def _nodes(self) -> tuple[fx.Node, ...]:
        """Cut points of the evaluation graph that are in the training graph too, with no module on both sides."""
        assert self._graphs is not None
        training = {self._graphs[True].paths.get(node) for node in tracing.single_values(self._graphs[True].graph)}
        paths = self._graphs[False].paths
        nodes = [node for node in tracing.single_values(self._graphs[False].graph) if paths.get(node) in training]
        return tuple(node for node in nodes if not self._shares(node))

    def _shares(self, node: fx.Node) -> bool:
        assert self._graphs is not None
        nodes = list(self._graphs[False].graph.nodes)
        at = nodes.index(node) + 1
        before, after = (tracing.modules_of(self._net, some) for some in (nodes[:at], nodes[at:]))
        return any(tracing.has_state(module) for module in before & after)

    def find(self, cut: str, *, key: str = "phase cut") -> int:
        """Return the number of the cut point that a cut names.

        Raises UserError if the network cannot be cut there; the message names the cuts it has.
        """
        places = self.places
        if cut == ALL_TRAIN or cut in ALL_FROZEN:
            return 0 if cut == ALL_TRAIN else len(places) - 1
        if number := re.fullmatch(r"layer (\d+)", cut):
            first = int(number[1])
            if not 1 <= first <= places[-1].layer:
                raise UserError(f"{key} {cut!r}: the backbone has layers 1 to {places[-1].layer}; {self._cuts(cut)}")
            return max(at for at, place in enumerate(places) if place.layer < first)
        found = [at for at, place in enumerate(places) if cut in (place.name, *place.names)]
        if not found and cut in dict(self._net.named_modules()):
            raise UserError(f"{key} {cut!r}: more than one value crosses there; {self._cuts(cut)}")
        if not found:
            raise UserError(f"{key} {cut!r}: no such module in the backbone; {self._cuts(cut)}")
        return found[-1]

    def segment(self, start: int, stop: int, *, compiled: bool = False) -> Segment:
        """Return the network from one cut point to a later one; it shares modules and parameters with the full network.

        Call it once the network is on its device.
        """
        if start == stop:
            return Segment(nn.Identity(), nn.Identity())
        if self._graphs is None:
            return Segment(self._net, self._net)
        parts: list[nn.Module] = []
        for training in (True, False):
            first, last = (self._node(at, training=training) for at in (start, stop))
            part: nn.Module = fx.GraphModule(self._net, tracing.copied(self._graphs[training].graph, first, last))
            part.train(training)
            parts.append(cast("nn.Module", torch.compile(part)) if compiled else part)
        self._net.train(self._net.training)
        return Segment(*parts)

    def folded(self, start: int, stop: int) -> nn.Module:
        """Return the network between two cut points in evaluation mode, with BatchNorm folded into the convolutions.

        The convolutions are copies, with the present weights.
        """
        if start == stop or self._graphs is None:
            return self.segment(start, stop).evaluating
        first, last = (self._node(at, training=False) for at in (start, stop))
        return tracing.folded(self._net, tracing.copied(self._graphs[False].graph, first, last))

    def _node(self, at: int, *, training: bool) -> fx.Node:
        assert self._graphs is not None
        node = self._nodes[at]
        if not training:
            return node
        path = self._graphs[False].paths[node]
        return next(other for other, name in self._graphs[True].paths.items() if name == path)

    def modules(self, start: int, stop: int) -> set[nn.Module]:
        """Return the modules that are called between two cut points."""
        if self._graphs is None:
            return set() if start == stop else set(self._net.modules())
        return tracing.modules_of(self._net, self._stretch(start, stop))

    def parameters(self, start: int, stop: int) -> dict[str, nn.Parameter]:
        """Return the parameters that are used between two cut points, by their name in the network."""
        own = dict(self._net.named_parameters(remove_duplicate=False))
        if self._graphs is None:
            return {} if start == stop else own
        stretch = self._stretch(start, stop)
        used = {id(parameter) for module in tracing.modules_of(self._net, stretch) for parameter in module.parameters()}
        read = {str(node.target) for node in stretch if node.op == "get_attr"}
        return {name: parameter for name, parameter in own.items() if id(parameter) in used or name in read}

    def buffers(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Return the buffers of the modules called between two cut points, by their name in the network."""
        used = {id(buffer) for module in self.modules(start, stop) for buffer in module.buffers()}
        return {name: one for name, one in self._net.named_buffers(remove_duplicate=False) if id(one) in used}

    def _stretch(self, start: int, stop: int) -> list[fx.Node]:
        assert self._graphs is not None
        if start == stop:
            return []
        return tracing.between(self._graphs[False].graph, self._nodes[start], self._nodes[stop])

    def shapes(self, inputs: torch.Tensor) -> tuple[tuple[int, ...], ...]:
        """Return the shape of one image's activation at each cut point, found by a forward pass on (1, 3, size, size).

        Raises UserError if the network does not accept images of this size.
        """
        try:
            with torch.inference_mode():
                if self._graphs is None:
                    return tuple(inputs.shape[1:]), tuple(self._net.eval()(inputs).shape[1:])
                found = tracing.Shapes(fx.GraphModule(self._net, self._graphs[False].graph).eval())
                found.run(inputs)
        except (AssertionError, RuntimeError, ValueError) as error:
            why, size = (str(error) or type(error).__name__).splitlines()[0], inputs.shape[-1]
            raise UserError(
                f"model.size: the backbone does not accept {size} x {size} pixels ({why}); leave it out, or set another"
            ) from None
        by_name = {node.name: shape for node, shape in found.shapes.items()}
        return tuple(by_name[node.name] for node in self._nodes)

    def _cuts(self, cut: str) -> str:
        names = {name: None for place in self.places for name in (place.name, *place.names)}
        close = difflib.get_close_matches(cut, names, n=3)
        listed = list(dict.fromkeys(place.name for place in last_of_layers(self.places)))
        return (f"similar: {', '.join(close)}; " if close else "") + f"cuts are pool, {', '.join(listed)}"


def last_of_layers(places: Iterable[CutPoint]) -> list[CutPoint]:
    """Return the cut point at which each layer ends."""
    return list({place.layer: place for place in places}.values())


def stages(places: Sequence[CutPoint], shapes: Sequence[tuple[int, ...]]) -> list[CutPoint]:
    """Return at most twelve representative cut points, from the input to the last.

    They are the ends of runs of layers with one shape; if these are fewer than six, as in a transformer, layers at
    equal distances.
    """
    at = {place.name: number for number, place in enumerate(places)}
    layers = last_of_layers(places)[1:]
    of = [shapes[at[place.name]] for place in layers]
    ends = [place for place, shape, behind in zip(layers, of, [*of[1:], ()], strict=True) if shape != behind]
    found = ends if len(ends) >= _FEWEST else layers
    if len(found) <= _MOST:
        return found
    return [found[round(step * (len(found) - 1) / (_MOST - 1))] for step in range(_MOST)]
