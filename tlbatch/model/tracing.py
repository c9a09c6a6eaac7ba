"""Networks as torch.fx graphs, and what can be read from them."""

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.models import _features_fx
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import NodePathTracer

UNTRACEABLE = (
    fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError, AssertionError,
)  # fmt: skip
"""Errors of the tracer on a network whose control flow depends on its values."""
_CONVOLUTIONS, _NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)
"""Layers that may be folded; classes derived from these may compute something else."""


class Traced(NamedTuple):
    """A network as a graph of operations."""

    graph: fx.Graph
    paths: Mapping[fx.Node, str]
    """Path of each operation: that of its module, and its own name."""


class Shapes(fx.Interpreter):
    """Runs a graph and records the shape of each result, without the batch axis."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one operation."""
        found: object = super().run_node(n)
        if isinstance(found, torch.Tensor):
            self.shapes[n] = tuple(found.shape[1:])
        return found


def traced(net: nn.Module, training: bool) -> Traced:  # noqa: FBT001 (for a comprehension over both)
    """Trace a network in training or evaluation mode; arguments other than the images keep their defaults."""
    net.train(training)
    timm_fx: Any = _features_fx
    tracer = NodePathTracer(
        leaf_modules=timm_fx.get_notrace_modules(), autowrap_functions=timm_fx.get_notrace_functions()
    )
    options = list(inspect.signature(net.forward).parameters.values())[1:]
    defaults = {option.name: option.default for option in options if option.default is not option.empty}
    graph = tracer.trace(net, concrete_args=defaults or None)
    return Traced(graph, dict(tracer.node_to_qualname))


def single_values(graph: fx.Graph) -> list[fx.Node]:
    """Return the operations whose result is the only later-needed value that depends on the input."""
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


def between(graph: fx.Graph, first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Return the operations that lead from one node to another, with the constants they use, in graph order."""
    needed, waiting = {last}, [last]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node is not first and node not in needed:
                needed.add(node)
                waiting.append(node)
    return [node for node in graph.nodes if node in needed]


def copied(graph: fx.Graph, first: fx.Node, last: fx.Node) -> fx.Graph:
    """Copy the operations between two nodes into a new graph."""
    copy = fx.Graph()
    copies = {first: copy.placeholder("activation")}
    for node in between(graph, first, last):
        copies[node] = copy.node_copy(node, copies.__getitem__)
    copy.output(copies[last])
    return copy


def folded(net: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a graph in evaluation mode, with each BatchNorm after a convolution folded into a copy of the convolution.

    Results are equal up to rounding, with one pass less over the activation (Jacob et al. 2018, equation 14). The graph
    is modified.
    """
    whole = fx.GraphModule(net, graph).eval()
    for node in list(graph.nodes):
        norm, before = _called(whole, node), node.all_input_nodes[0] if node.all_input_nodes else node
        convolution = _called(whole, before) if len(before.users) == 1 else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(convolution, nn.Conv2d) or norm.running_mean is None:
            continue
        if type(norm) in _NORMS and type(convolution) in _CONVOLUTIONS:
            behind = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
            node.target = f"{node.target}_folded".replace(".", "_")
            whole.add_submodule(node.target, nn.Sequential(fuse_conv_bn_eval(convolution, norm), behind))
            node.args = before.args
            graph.erase_node(before)
    whole.delete_all_unused_submodules()
    whole.recompile()
    return whole


def _called(whole: nn.Module, node: fx.Node) -> nn.Module | None:
    return whole.get_submodule(str(node.target)) if node.op == "call_module" else None


def modules_of(net: nn.Module, nodes: Iterable[fx.Node]) -> set[nn.Module]:
    """Return the modules that some operations call, with their submodules."""
    called = {net.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"}
    return {inner for module in called for inner in module.modules()}


def has_state(module: nn.Module) -> bool:
    """Return whether a module must not be on both sides of a cut: it has parameters, or is a dropout."""
    return any(True for _ in module.parameters(recurse=False)) or isinstance(module, nn.modules.dropout._DropoutNd)  # noqa: SLF001 (the common base is private)


def module_ends(graph: Traced) -> dict[str, fx.Node]:
    """Return the last operation of each module, by the module's path."""
    ends = {}
    for node in graph.graph.nodes:
        path = str(node.target) if node.op == "call_module" else graph.paths.get(node, "").rpartition(".")[0]
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        while path:
            ends[path] = node
            path = path.rpartition(".")[0]
    return ends


def blocks_of(net: nn.Module, graph: fx.Graph) -> set[str]:
    """Return the paths of modules that count as one layer: their class repeats, and no class repeats inside them."""
    leaves = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)
    inner = {
        path: module
        for path, module in net.named_modules()
        if path and path not in leaves and any(module.children()) and not isinstance(module, containers)
    }
    kinds = Counter(map(type, inner.values()))
    inside = {path: [type(one) for other, one in inner.items() if other.startswith(f"{path}.")] for path in inner}
    has_repeats = {path: len(set(found)) < len(found) for path, found in inside.items()}
    return {path for path, module in inner.items() if kinds[type(module)] > 1 and not has_repeats[path]}


def is_layer(net: nn.Module, nodes: Iterable[fx.Node]) -> bool:
    """Return whether some operations include weights (other than of a norm) or pooling."""
    return any(_weighs(net, node) for node in nodes)


def _weighs(net: nn.Module, node: fx.Node) -> bool:
    target = str(node.target)
    match node.op:
        case "call_module":
            module = net.get_submodule(target)
            return "Pool" in type(module).__name__ or any(parameter.ndim > 1 for parameter in module.parameters())
        case "get_attr":
            return getattr(attrgetter(target)(net), "ndim", 0) > 1
        case "call_method":
            return target == "mean"
    return "pool" in target
