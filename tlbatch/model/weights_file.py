"""Files of weights: safetensors that state their input, and torch files as training programs write them."""

import argparse
import logging
import pathlib
import pickle
import re
import types
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError

from tlbatch.config.base import Triple
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file
from tlbatch.core.text import counted

log = logging.getLogger(__name__)
Tensors = Mapping[str, torch.Tensor]
_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module", "backbone", "encoder", "weights")
"""Names under which training programs store the weights of a network."""
_AVERAGE = re.compile(r"(^|[._-])(ema|swa|avg|averaged?)([._-]|$)")
"""Names of averaged weights have one of these words."""
_SHARE = 0.5
"""A dictionary with a smaller share of the tensors of the largest is no network: a loss, say, or a score."""
_DEPTH = 3
_NUMPY = (
    *(
        (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, value in (("scalar", np.float64(0)), ("_reconstruct", np.empty(0)))
    ),
    np.ndarray,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
)
_HARMLESS = [
    argparse.Namespace, types.SimpleNamespace, pathlib.Path, pathlib.PurePath, pathlib.PosixPath,
    pathlib.PurePosixPath, *_NUMPY,
]  # fmt: skip
"""Types that torch's safe loader may build beside the tensors: none of them runs code of the file."""


class Input(BaseModel):
    """Input size and normalisation that weights were trained with, as stored in their file."""

    size: int | None = None
    mean: Triple | None = None
    std: Triple | None = None


def read_input(file: Path) -> Input:
    """Read the input size and normalisation that a .safetensors file states."""
    if file.suffix != ".safetensors":
        return Input()
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return Input.model_validate_json((opened.metadata() or {}).get("input", "{}"))
    except (OSError, ValidationError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{file}: cannot be read as weights ({error}); give a .safetensors or .pth state dict"
        ) from None


def write_weights(path: Path, tensors: Tensors, stated: Input) -> None:
    """Write tensors as safetensors, with the input size and normalisation of their network."""
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(whole, metadata={"input": stated.model_dump_json()}))


def read_tensors(path: Path, *, entry: str = "") -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from a torch file without running any code in it.

    Parameters
    ----------
    entry
        Name of the state dict in a file of several, with dots between levels; empty: the only one that is neither an
        average of the others nor a teacher or student beside another.

    Raises
    ------
    UserError
        When the file cannot be read or contains no state dict, or several and ``entry`` names none of them.
    """
    try:
        if path.suffix == ".safetensors":
            stored: object = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_HARMLESS):
                stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (torch raises half a dozen kinds for a bad file)
        # messages of the unpickler are cryptic, or advise running the code in the file
        riddle = isinstance(error, (pickle.UnpicklingError, LookupError, EOFError))
        why = "not a state dict, or one that contains code, which is not run" if riddle else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as weights ({why}); give a .safetensors or .pth state dict") from None
    return _chosen(path, _state_dicts(stored), entry)


def _state_dicts(stored: object, name: str = "", depth: int = _DEPTH) -> dict[str, dict[str, torch.Tensor]]:
    """Return the dictionaries of named tensors in an object, by their names in it."""
    if not isinstance(stored, dict) or not depth:
        return {}
    tensors = {key: value for key, value in stored.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    found = {name: tensors} if tensors else {}
    for key, value in stored.items():
        if isinstance(key, str) and "optim" not in key.lower():
            found |= _state_dicts(value, f"{name}.{key}" if name else key, depth - 1)
    return found


def _chosen(path: Path, found: dict[str, dict[str, torch.Tensor]], entry: str) -> dict[str, torch.Tensor]:
    if entry:
        inner = [some for tensors in found.values() if (some := under(tensors, f"{entry}."))]
        if inner and entry not in found:
            return inner[0]
        if entry not in found:
            names = ", ".join(name or "the file itself" for name in found) or "none"
            raise UserError(f"{path}: has no weights {entry!r}, but {names}; set model.weights_entry=NAME")
        return found[entry]
    if not found:
        raise UserError(f"{path}: contains no state dict (tensors by name); export one with model.state_dict()")
    most = max(map(len, found.values()))
    found = {name: tensors for name, tensors in found.items() if len(tensors) >= _SHARE * most}
    averages = [name for name in found if is_average(name)]
    others = [name for name in found if name not in averages] or averages
    usual = [name for name in others if name.rpartition(".")[2] in _USUAL]
    chosen = (usual or others)[0]
    if len(usual or others) > 1:
        names = " and ".join(name or "the file itself" for name in usual or others)
        raise UserError(f"{path}: holds the weights {names}; set model.weights_entry to one of them")
    if len(found) > 1:
        left_out = ", ".join(name for name in found if name != chosen)
        log.info(
            "%s: reads the weights %s, not %s; model.weights_entry chooses others",
            path.name, chosen or "of the file itself", left_out,
        )  # fmt: skip
    elif chosen in averages:
        log.info("%s: reads the averaged weights %s, as there are no others", path.name, chosen)
    return found[chosen]


def under(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def is_average(name: str) -> bool:
    """Return whether a name is that of averaged weights."""
    return bool(_AVERAGE.search(name.lower()))


def is_unused(tensors: Tensors, prefix: str) -> str:
    """Say whether the classifier of a file, which is not used, is missing or damaged; empty if it is neither."""
    own = {key: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
    if not own:
        return f"has no classifier {prefix}, which is not needed"
    if not all(value.is_meta or torch.isfinite(value).all() for value in own.values()):
        return f"its classifier {prefix} has values that are not finite, and is not used"
    return ""


def listed(keys: list[str]) -> str:
    """Return how many tensors there are, and the first of them."""
    shown = f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""
    return f"{counted(len(keys), 'tensor')}{shown}"
