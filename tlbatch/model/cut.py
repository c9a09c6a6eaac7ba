"""The cut: all before it is frozen, all after it trains."""

import difflib
from collections.abc import Iterator

from torch import nn

from tlbatch.job.errors import UserError


def modules_before(net: nn.Module, cut: str) -> set[nn.Module]:
    """The modules without children up to and including the cut, in the order in which the network defines them.

    ``pool`` means all of them, ``none`` none.

    Raises
    ------
    UserError
        When the network has no such module; the text names the cuts it has.
    """
    leaves = {name: module for name, module in net.named_modules() if not any(module.children())}
    if cut in ("none", "pool"):
        return set() if cut == "none" else set(leaves.values())
    at_cut = [name for name in leaves if name == cut or name.startswith(f"{cut}.")]
    if not at_cut:
        raise UserError(f"phase cut {cut!r}: no such module in the backbone; {_cuts(net, cut)}")
    names = list(leaves)
    return {leaves[name] for name in names[: names.index(at_cut[-1]) + 1]}


def freeze(net: nn.Module, cut: str, *, freeze_batch_norm: bool) -> None:
    """Set which parameters train.

    A module that owns parameters beside its children (a class token, a layer scale) goes with its first child.
    """
    before = modules_before(net, cut)
    for module in net.modules():
        first = next(_leaves(module))
        trains = first not in before and not (freeze_batch_norm and _is_batch_norm(module))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trains)


def frozen_to_eval(net: nn.Module, cut: str, *, freeze_batch_norm: bool) -> None:
    """Put what is frozen into eval mode: no dropout, BatchNorm statistics as they are. Call after every ``train()``."""
    before = modules_before(net, cut)
    for module in net.modules():
        if all(leaf in before for leaf in _leaves(module)) or (freeze_batch_norm and _is_batch_norm(module)):
            module.training = False


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (inner for inner in module.modules() if not any(inner.children()))


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 (the common base is private)


def _cuts(net: nn.Module, cut: str) -> str:
    names = [name for name, _ in net.named_modules() if name]
    close = difflib.get_close_matches(cut, names, n=3)
    top = [name for name in names if "." not in name or (name.count(".") == 1 and name.split(".")[1].isdecimal())]
    return (f"similar: {', '.join(close)}; " if close else "") + f"it has pool, none, {', '.join(top)}"
