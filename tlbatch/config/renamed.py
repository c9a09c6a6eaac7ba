"""Renamed keys of a job, whose old names still work for one version, with a warning."""

import functools
import logging
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tlbatch.config.job import Job
from tlbatch.config.sweep import Tree
from tlbatch.core.errors import UserError

log = logging.getLogger(__name__)
_KEPT = {"data.phantom"}
"""Old names that work without a warning."""


def walk_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield the prefix, e.g. ``phase.N.``, the name and the field of every key, each section before its keys."""
    for name, field in section.model_fields.items():
        yield prefix, name, field
        inner = section_of(field.annotation)
        if inner is not None:
            yield from walk_keys(inner, f"{prefix}{name}.{'N.' if field.annotation is not inner else ''}")


def section_of(annotation: object) -> type[BaseModel] | None:
    """Return the section that a key holds, alone or in a tuple; None if it holds a plain value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


@functools.cache
def renamed_keys() -> dict[str, str]:
    """Map each old key, such as ``phase.N.rates``, to the last part of its current name."""
    return {f"{prefix}{field.alias}": name for prefix, name, field in walk_keys(Job) if field.alias}


def with_new_names(tree: Tree) -> Tree:
    """Return the tree of a job file with the current names of keys, in recipes and sweeps too.

    Raises UserError if a key is set under both names.
    """
    found = _section_with_new_names({key: value for key, value in tree.items() if key not in ("recipes", "sweep")}, "")
    if isinstance(tree.get("sweep"), dict):
        found["sweep"] = _section_with_new_names(tree["sweep"], "")
    elif "sweep" in tree:
        found["sweep"] = tree["sweep"]
    recipes = tree.get("recipes")
    if isinstance(recipes, dict):
        recipes = {name: with_new_names(own) if isinstance(own, dict) else own for name, own in recipes.items()}
    return found if recipes is None else found | {"recipes": recipes}


def with_new_name(dotted: str) -> str:
    """Return a dotted key, such as one of an override, with its current name."""
    parts: list[str] = []
    for part in dotted.split("."):
        parts.append(_new_name(".".join(parts), part))
    return ".".join(parts)


def _new_name(section: str, name: str) -> str:
    where = ".".join("N" if part.isdecimal() else part for part in section.split("."))
    while where.startswith("recipes."):
        where = where.partition(".")[2].partition(".")[2]
    where = where.removeprefix("sweep.")
    old = f"{where}.{name}"
    new = renamed_keys().get(old)
    if new is None:
        return name
    if old not in _KEPT:
        _warn(old, new)
    return new


@functools.cache
def _warn(old: str, new: str) -> None:
    log.warning("%s is now called %s.%s; the old name works for one version", old, old.rpartition(".")[0], new)


def _section_with_new_names(section: Tree, path: str) -> Tree:
    found: dict[str, Any] = {}
    for key, value in section.items():
        whole = with_new_name(f"{path}{key}")
        name = whole.removeprefix(path)
        if name in found:
            raise UserError(f"{whole}: is set under its old name and its new one; leave one of them out")
        found[name] = value_with_new_names(whole, value)
    return found


def value_with_new_names(key: str, value: object) -> object:
    """Return the value of a key with the current names of keys if it is a section or a list of sections."""
    if isinstance(value, dict):
        return _section_with_new_names(value, f"{key}.")
    if isinstance(value, list):
        return [value_with_new_names(f"{key}.{number}", one) for number, one in enumerate(value)]
    return value
