"""The chain of a network: the places at which one tensor stands for all before it, so that it can be cut there.

The network is traced symbolically (torch.fx, with the tracer of torchvision and the leaves that timm states), once as
it trains and once as it evaluates. At a place, no value but one crosses from what came before to what comes after, so
what comes after can go on from a stored activation.
"""

import difflib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from timm.models import _features_fx
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from tlbatch.job.errors import UserError

ALL_TRAIN, ALL_FROZEN = "none", ("pool", "flatten")
_UNTRACEABLE = (
    fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError, AssertionError,
)  # fmt: skip
"""What a tracer meets in a network whose path depends on its values."""


@dataclass(frozen=True)
class Place:
    """A place at which the network can be cut."""

    name: str
    """The outermost module that ends here, or the path of the operation."""
    names: tuple[str, ...]
    """All modules that end here."""
    layer: int
    """Number of the layer that this belongs to: a block, or what has weights or pools, with the norm, activation and
    dropout that follow. In a VGG these are the numbers of Keras, whose input is layer 0."""


class Segment(NamedTuple):
    """A stretch of the network: how it trains, and how it evaluates."""

    training: nn.Module
    evaluating: nn.Module

    def run(self, inputs: torch.Tensor, *, training: bool) -> torch.Tensor:
        """From the activation where it begins to that where it ends."""
        found: torch.Tensor = (self.training if training else self.evaluating)(inputs)
        return found


class _Graph(NamedTuple):
    graph: fx.Graph
    paths: Mapping[fx.Node, str]
    """Each operation by the module that it is in, and its own name."""


class Chain:
    """The places of a network without its classifier, from its input (place 0) to its features (the last place).

    A network that cannot be traced has these two only.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        mode = net.training
        try:
            self._graphs: dict[bool, _Graph] | None = {training: _traced(net, training) for training in (True, False)}
        except _UNTRACEABLE:
            self._graphs = None
        net.train(mode)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The places in the order of the network."""
        if self._graphs is None:
            return Place(ALL_TRAIN, (), 0), Place(ALL_FROZEN[0], (), 1)
        graph = self._graphs[False]
        ends = _module_ends(graph)
        blocks = _blocks(self._net, graph.graph)
        layer, weighs, places = 0, False, []
        for before, node in zip((None, *self._nodes), self._nodes, strict=False):
            weighs |= before is not None and _is_layer(self._net, _between(graph.graph, before, node))
            inside = any(graph.paths[node].startswith(f"{block}.") and ends[block] is not node for block in blocks)
            if not inside:
                layer, weighs = layer + weighs, False
            names = tuple(
                sorted((name for name, last in ends.items() if last is node), key=lambda name: name.count("."))
            )
            places.append(Place(names[0] if names else graph.paths[node], names, layer + weighs))
        places[0] = Place(ALL_TRAIN, (), 0)
        return tuple(places)

    @cached_property
    def _nodes(self) -> tuple[fx.Node, ...]:
        """The places in the evaluating graph that the training graph has too, and across which no module is shared."""
        assert self._graphs is not None
        training = {self._graphs[True].paths.get(node) for node in _single(self._graphs[True].graph)}
        paths = self._graphs[False].paths
        nodes = [node for node in _single(self._graphs[False].graph) if paths.get(node) in training]
        return tuple(node for node in nodes if not self._shares(node))

    def _shares(self, node: fx.Node) -> bool:
        assert self._graphs is not None
        nodes = list(self._graphs[False].graph.nodes)
        at = nodes.index(node) + 1
        before, after = (_modules(self._net, some) for some in (nodes[:at], nodes[at:]))
        return any(_has_state(module) for module in before & after)

    def find(self, cut: str, *, key: str = "phase cut") -> int:
        """Number of the place that a cut names.

        Raises
        ------
        UserError
            When the network cannot be cut there; the text names the cuts it has.
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
            raise UserError(f"{key} {cut!r}: several values cross there; {self._cuts(cut)}")
        if not found:
            raise UserError(f"{key} {cut!r}: no such module in the backbone; {self._cuts(cut)}")
        return found[-1]

    def segment(self, start: int, stop: int, *, compiled: bool = False) -> Segment:
        """The network from one place to a later one; it shares modules and parameters with the whole network.

        Call it when the network is on its device.
        """
        if start == stop:
            return Segment(nn.Identity(), nn.Identity())
        if self._graphs is None:
            return Segment(self._net, self._net)
        parts: list[nn.Module] = []
        for training in (True, False):
            first, last = (self._node(at, training=training) for at in (start, stop))
            part: nn.Module = fx.GraphModule(self._net, _copied(self._graphs[training].graph, first, last))
            part.train(training)
            parts.append(cast("nn.Module", torch.compile(part)) if compiled else part)
        self._net.train(self._net.training)
        return Segment(*parts)

    def _node(self, at: int, *, training: bool) -> fx.Node:
        assert self._graphs is not None
        node = self._nodes[at]
        if not training:
            return node
        path = self._graphs[False].paths[node]
        return next(other for other, name in self._graphs[True].paths.items() if name == path)

    def modules(self, start: int, stop: int) -> set[nn.Module]:
        """The modules that are called between two places."""
        if self._graphs is None:
            return set() if start == stop else set(self._net.modules())
        return _modules(self._net, self._stretch(start, stop))

    def parameters(self, start: int, stop: int) -> dict[str, nn.Parameter]:
        """The parameters that are used between two places, by their name in the network."""
        own = dict(self._net.named_parameters(remove_duplicate=False))
        if self._graphs is None:
            return {} if start == stop else own
        stretch = self._stretch(start, stop)
        used = {id(parameter) for module in _modules(self._net, stretch) for parameter in module.parameters()}
        read = {str(node.target) for node in stretch if node.op == "get_attr"}
        return {name: parameter for name, parameter in own.items() if id(parameter) in used or name in read}

    def _stretch(self, start: int, stop: int) -> list[fx.Node]:
        assert self._graphs is not None
        if start == stop:
            return []
        return _between(self._graphs[False].graph, self._nodes[start], self._nodes[stop])

    def shapes(self, inputs: torch.Tensor) -> tuple[tuple[int, ...], ...]:
        """Shape of one image's activation at each place, found by running the network on (1, 3, size, size)."""
        with torch.inference_mode():
            if self._graphs is None:
                return tuple(inputs.shape[1:]), tuple(self._net.eval()(inputs).shape[1:])
            whole = fx.GraphModule(self._net, self._graphs[False].graph).eval()
            found = _Shapes(whole)
            found.run(inputs)
        by_name = {node.name: shape for node, shape in found.shapes.items()}
        return tuple(by_name[node.name] for node in self._nodes)

    def _cuts(self, cut: str) -> str:
        names = [name for place in self.places for name in (place.name, *place.names)]
        close = difflib.get_close_matches(cut, names, n=3)
        listed = list(dict.fromkeys(place.name for place in last_of_layers(self.places)))
        return (f"similar: {', '.join(close)}; " if close else "") + f"it has pool, {', '.join(listed)}"


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> object:
        found: object = super().run_node(n)
        if isinstance(found, torch.Tensor):
            self.shapes[n] = tuple(found.shape[1:])
        return found


def last_of_layers(places: Iterable[Place]) -> list[Place]:
    """The place at which each layer ends."""
    return list({place.layer: place for place in places}.values())


def _traced(net: nn.Module, training: bool) -> _Graph:  # noqa: FBT001 (for a comprehension over both)
    net.train(training)
    timm_fx: Any = _features_fx
    tracer = NodePathTracer(
        leaf_modules=timm_fx.get_notrace_modules(), autowrap_functions=timm_fx.get_notrace_functions()
    )
    options = list(inspect.signature(net.forward).parameters.values())[1:]
    defaults = {option.name: option.default for option in options if option.default is not option.empty}
    graph = tracer.trace(net, concrete_args=defaults or None)
    return _Graph(graph, dict(tracer.node_to_qualname))


def _single(graph: fx.Graph) -> list[fx.Node]:
    """The operations after which their result is the only value that is still needed and depends on the input."""
    nodes = list(graph.nodes)
    at = {node: number for number, node in enumerate(nodes)}
    depends: set[fx.Node] = set()
    alive: list[tuple[int, fx.Node]] = []
    found = []
    for number, node in enumerate(nodes):
        if node.op == "output":
            break
        if node.op == "placeholder" or any(other in depends for other in node.all_input_nodes):
            depends.add(node)
            alive.append((max((at[user] for user in node.users), default=-1), node))
        alive = [(last, other) for last, other in alive if last > number]
        if [other for _, other in alive] == [node]:
            found.append(node)
    return found


def _between(graph: fx.Graph, first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The operations that lead from one place to another, with the constants they use, in their order."""
    needed, waiting = {last}, [last]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node is not first and node not in needed:
                needed.add(node)
                waiting.append(node)
    return [node for node in graph.nodes if node in needed]


def _copied(graph: fx.Graph, first: fx.Node, last: fx.Node) -> fx.Graph:
    copy = fx.Graph()
    copies = {first: copy.placeholder("activation")}
    for node in _between(graph, first, last):
        copies[node] = copy.node_copy(node, copies.__getitem__)
    copy.output(copies[last])
    return copy


def _modules(net: nn.Module, nodes: Iterable[fx.Node]) -> set[nn.Module]:
    called = {net.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"}
    return {inner for module in called for inner in module.modules()}


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or isinstance(module, nn.modules.dropout._DropoutNd)  # noqa: SLF001 (the common base is private)


def _module_ends(graph: _Graph) -> dict[str, fx.Node]:
    """The last operation of every module, by the module's path."""
    ends = {}
    for node in graph.graph.nodes:
        path = str(node.target) if node.op == "call_module" else graph.paths.get(node, "").rpartition(".")[0]
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        while path:
            ends[path] = node
            path = path.rpartition(".")[0]
    return ends


def _attribute(net: nn.Module, path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(net.get_submodule(module), name)


def _blocks(net: nn.Module, graph: fx.Graph) -> set[str]:
    """Paths of the modules that count as one layer: their class occurs again, and no other one again inside them."""
    leaves = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)
    inner = {
        path: module
        for path, module in net.named_modules()
        if path and path not in leaves and any(module.children()) and not isinstance(module, containers)
    }
    kinds = Counter(type(module) for module in inner.values())
    return {path for path, module in inner.items() if kinds[type(module)] > 1 and not _repeats_inside(path, inner)}


def _repeats_inside(path: str, inner: Mapping[str, nn.Module]) -> bool:
    kinds = Counter(type(module) for other, module in inner.items() if other.startswith(f"{path}."))
    return any(number > 1 for number in kinds.values())


def _is_layer(net: nn.Module, nodes: Iterable[fx.Node]) -> bool:
    """Whether a stretch has weights (not of a norm alone) or pools."""
    return any(_weighs(net, node) for node in nodes)


def _weighs(net: nn.Module, node: fx.Node) -> bool:
    target = str(node.target)
    match node.op:
        case "call_module":
            module = net.get_submodule(target)
            return "Pool" in type(module).__name__ or any(parameter.ndim > 1 for parameter in module.parameters())
        case "get_attr":
            return getattr(_attribute(net, target), "ndim", 0) > 1
        case "call_method":
            return target == "mean"
    return "pool" in target
