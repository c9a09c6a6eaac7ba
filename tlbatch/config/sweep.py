"""What makes several runs of a job: its recipes, and lists of values for its keys."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from tlbatch.core.errors import UserError

MOST = 1000
"""Runs of a sweep; SLURM's job arrays end there where a site has not changed it."""
_LONGEST = 100
_LONGEST_VALUE = 24
_NAMES = ("name", "run", "workspace", "recipes", "sweep")
Tree = dict[str, Any]
Combination = tuple[str, Tree]


def variants(tree: Tree, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """The names that lead to each recipe, and its keys over those of what holds it; a recipe may hold recipes itself.

    Raises
    ------
    UserError
        When they are not sections by name.
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
    """The keys of both; where both have one that is no section, the right one's."""
    both = dict(left)
    for key, value in right.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def combinations(sweep: object) -> list[Combination]:
    """A label for the run's name, and the value of every key, for each combination; one without any for no sweep.

    Parameters
    ----------
    sweep
        The section of the job: keys as TOML nests them, with a list each.

    Raises
    ------
    UserError
        When it holds anything but lists, keys that no sweep can have, or too many combinations.
    """
    if not isinstance(sweep, dict):
        raise UserError(f"sweep: must be a section of lists, e.g. [sweep] with seed = [0, 1] (got {sweep!r})")
    lists = dict(_lists(sweep, ""))
    for key, values in lists.items():
        if key.partition(".")[0] in _NAMES:
            raise UserError(f"sweep.{key}: cannot be swept, since all runs of a sweep share it; leave it out")
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep.{key}: must be a list of values, e.g. [0, 1] (got {values!r})")
    number = math.prod(map(len, lists.values()))
    if number > MOST:
        raise UserError(f"sweep: makes {number} runs, where a job array holds {MOST}; leave some values out")
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
    """A label for each combination, e.g. -fold0-lr0.001; a number where that is too long, or tells them not apart."""
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
    """Each value in letters that a name can have; its number where they tell too little."""
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
    text = value.strip() if isinstance(value, str) else str(value).lower().replace("+", "")  # 1e+20 is no 1e-20
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
