"""Recipes and sweeps, which turn a job into several runs."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from tlbatch.core.errors import UserError

MOST = 1000
"""Largest number of runs of a sweep: SLURM's default limit of a job array."""
_LONGEST = 100
_LONGEST_VALUE = 24
_NAMES = ("name", "run", "workspace", "recipes", "sweep")
Tree = dict[str, Any]
Combination = tuple[str, Tree]


def variants(tree: Tree, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Yield the path of names of each recipe, and its keys merged over those around it; recipes may be nested.

    Raises UserError if the recipes are not sections by name.
    """
    tree = dict(tree)
    recipes = tree.pop("recipes", {})
    if not isinstance(recipes, dict) or not all(isinstance(own, dict) for own in recipes.values()):
        where = "".join(f"recipes.{name}." for name in names)
        raise UserError(f"{where}recipes: must be sections by name, e.g. [recipes.mlp]; see --help for their keys")
    if not recipes:
        yield names, tree
    for name, own in recipes.items():
        yield from variants(merged(tree, own), (*names, name))


def merged(left: Tree, right: Tree) -> Tree:
    """Merge two trees; where both have a key that is no section, the right one wins."""
    both = dict(left)
    for key, value in right.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def combinations(sweep: object) -> list[Combination]:
    """Return a label for the run's name and the value of every key for each combination; a single one for no sweep.

    The section has keys, nested as in TOML, each with a list of values. Raises UserError if it contains anything else,
    keys that cannot be swept, or too many combinations.
    """
    if not isinstance(sweep, dict):
        raise UserError(f"sweep: must be a section of lists (got {sweep!r}); write e.g. [sweep] with seed = [0, 1]")
    lists = dict(_lists(sweep, ""))
    for key, values in lists.items():
        if key.partition(".")[0] in _NAMES:
            raise UserError(f"sweep.{key}: cannot be swept, since all runs of a sweep share it; leave it out")
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep.{key}: must be a list of values (got {values!r}); write e.g. [0, 1]")
    number = math.prod(map(len, lists.values()))
    if number > MOST:
        raise UserError(f"sweep: makes {number} runs, and a job array holds at most {MOST}; leave some values out")
    return [
        (label, dict(zip(lists, values, strict=True)))
        for label, values in zip(_labels(lists), product(*lists.values()), strict=True)
    ]


def _lists(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _lists(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _labels(lists: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a label for each combination, e.g. -fold0-lr0.001; numbers if those are too long or not unique."""
    last = Counter(key.rpartition(".")[2] for key in lists)
    names = {key: name if last[name := key.rpartition(".")[2]] == 1 else key for key in lists}
    parts = [[f"-{_part(names[key], text)}" for text in _texts(values)] for key, values in lists.items()]
    labels = ["".join(one) for one in product(*parts)]
    if len(set(labels)) < len(labels) or max(map(len, labels)) > _LONGEST:
        return [f"-{number}" for number in range(len(labels))]
    return labels


def _part(name: str, text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name)
    return f"{plain}-{text}" if text[:1].isalpha() else f"{plain}{text}"


def _texts(values: Sequence[Any]) -> list[str]:
    """Return each value with characters that are valid in a name; its number if that is empty, long or not unique."""
    texts = [_text(value) for value in values]
    times = Counter(texts)
    return [
        text if re.search("[A-Za-z0-9]", text) and times[text] == 1 and len(text) <= _LONGEST_VALUE else f"_{number}"
        for number, text in enumerate(texts)
    ]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return "-".join(map(_text, value))
    text = (
        value.strip() if isinstance(value, str) else str(value).lower().replace("+", "")
    )  # 1e+20 must differ from 1e-20
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
