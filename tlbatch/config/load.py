"""Load TOML files and ``key=value`` overrides into validated jobs."""

import copy
import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tlbatch.config.job import Job
from tlbatch.config.renamed import section_of, value_with_new_names, walk_keys, with_new_name, with_new_names
from tlbatch.config.sweep import Combination, Tree, combinations, merged, variants
from tlbatch.core.errors import UserError

_NOT_REPORTED = {
    "slurm.setup", "slurm.environment", "slurm.container", "slurm.container_options", "slurm.mounts", "data.urls",
    "run",
}  # fmt: skip


def split_arguments(texts: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate files, or folders of runs, from ``key=value`` overrides.

    A path that contains ``=`` must begin with ``/`` or ``.``.
    """
    overrides = [text for text in texts if "=" in text and not text.startswith(("/", "."))]
    overrides = [text for text in overrides if not (Path(text) / "job.json").is_file()]
    return [Path(text) for text in texts if text not in overrides], overrides


def load_job(files: Sequence[Path], overrides: Sequence[str]) -> Job:
    """Merge the files left to right, then the overrides, and validate once; refuse a job of several runs."""
    jobs = load_jobs(files, overrides)
    if len(jobs) > 1:
        raise UserError(
            f"recipes and sweep: the job has {len(jobs)} runs, but only one is possible here; name a job without them"
        )
    return jobs[0]


def load_jobs(files: Sequence[Path], overrides: Sequence[str]) -> list[Job]:
    """Load a job for each recipe and each combination of swept values, named after the job and the variant.

    Keys of a recipe take precedence over those around it, which are the files' or another recipe's; overrides take
    precedence over both, and swept values over all. Raises UserError with one line for each wrong key.
    """
    tree: Tree = {}
    for file in files:
        tree = merged(tree, with_new_names(_read_toml(file)))
    of_several = [one for one in overrides if one.partition("=")[0].partition(".")[0] in ("recipes", "sweep")]
    overrides = [one for one in overrides if one not in of_several]
    for override in of_several:
        _set(tree, *_parsed(override))
    jobs: list[Job] = []
    wrong: dict[str, None] = {}
    for recipe, own in variants(tree):
        for combination in combinations(own.pop("sweep", {})):
            try:
                jobs.append(_validated(own, overrides, recipe, combination))
            except UserError as error:
                wrong |= dict.fromkeys(str(error).splitlines())
    if wrong:
        raise UserError("\n".join(wrong))
    names = [job.name for job in jobs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"recipes: two of them have the run name {twice}; rename one")
    return jobs


def with_slurm(job: Job, overrides: Sequence[str]) -> Job:
    """Return a resolved job with overrides of its section slurm, on which no result depends; refuse any other key."""
    other = [one for one in overrides if not one.startswith("slurm.")]
    if other:
        raise UserError(f"{other[0]}: a run resumes with its own job, of which only slurm.* can change; leave it out")
    return _validated(job.model_dump(mode="json"), overrides) if overrides else job


def _validated(
    tree: Tree, overrides: Sequence[str], recipe: Sequence[str] = (), combination: Combination = ("", {})
) -> Job:
    tree = copy.deepcopy(tree)
    label, swept = combination
    for override in overrides:
        key, value = _parsed(override)
        if taken := [one for one in swept if f"{key}.".startswith(f"{one}.")]:
            raise UserError(f"{key}: is swept by sweep.{taken[0]}; leave one of them out")
        _set(tree, key, value)
    for key, value in swept.items():
        try:
            _set(tree, key, copy.deepcopy(value))
        except UserError as error:
            raise UserError(f"sweep.{error}") from None
    if recipe or label:
        what = "".join(f"-{name}" for name in recipe) + label
        tree |= {"name": f"{tree.get('name', 'job')}{what}"} | (
            {"run": f"{tree['run']}{what}"} if tree.get("run") else {}
        )
    try:
        return Job.model_validate(tree)
    except ValidationError as error:
        of_recipe = "".join(f"recipes.{name}." for name in recipe)
        lines = [_line(detail) for detail in error.errors()]
        raise UserError("\n".join(_of_sweep(line, swept) or of_recipe + line for line in lines)) from None


def _of_sweep(line: str, swept: Tree) -> str | None:
    """Return the error with a swept key as its place; None if no swept key is the cause."""
    where, _, what = line.partition(": ")
    if any(f"{where}.".startswith(f"{key}.") for key in swept):
        return f"sweep.{line}"
    names = re.findall(r"\w+", what)
    within = [key for key in swept if key.startswith(f"{where}.") and key.rpartition(".")[2] in names]
    return f"sweep.{within[0]}: {what}" if within else None


def config_keys() -> Iterator[tuple[str, str, str]]:
    """Yield every key of the job with its default and its docstring, in the order of the file."""
    for prefix, name, field in walk_keys(Job):
        if section_of(field.annotation) is None:
            value = "empty" if field.default in (None, "", (), {}) else str(field.default)
            default = "required" if field.is_required() else value
            yield f"{prefix}{name}", default, " ".join((field.description or "").split())


def changed_keys(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key that differs from its default, with its value; not shell lines, variables and addresses."""
    for name, field in type(section).model_fields.items():
        value, dotted = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from changed_keys(value, f"{dotted}.")
        elif isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
            for number, one in enumerate(value):
                yield from changed_keys(one, f"{dotted}.{number}.")
        elif value != field.get_default() and dotted not in _NOT_REPORTED:
            yield dotted, str(value)


def _read_toml(file: Path) -> Tree:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such job file; name another, e.g. one of those in jobs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); name a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: not valid TOML: {error}; fix that line") from None


def _parsed(override: str) -> tuple[str, object]:
    """Split an override into key and value."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"{override}: not of the form key=value; write e.g. phase.0.epochs=3")
    key = with_new_name(dotted)
    return key, value_with_new_names(key, _value(text))


def _set(tree: Tree, dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _child(node, part, where=".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_position(node, last, where=dotted)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"{dotted}: {'.'.join(parents)} is a value, not a section; see --help for the keys")


def _child(node: object, part: str, *, where: str) -> object:
    if isinstance(node, list):
        return node[_position(node, part, where=where)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise UserError(f"{where}: no such section; see --help for the keys")


def _position(node: list[Any], part: str, *, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise UserError(f"{where}: must be one of the job's entries 0 to {len(node) - 1} (got {part}); use one of them")
    return int(part)


def _value(text: str) -> object:
    """Read a TOML value; anything else is a plain string, so that paths need no quotes."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = read.pop("value")
    return text if read or isinstance(value, date | time) else value  # names with line breaks, or that look like dates


def _line(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "job"
    context = detail.get("ctx", {})
    got = "" if where.startswith(tuple(_NOT_REPORTED - {"run"})) else f" (got {detail['input']!r})"
    match detail["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_suggestion(detail['loc'])}; see --help for the keys"
        case "missing":
            return f"{where}: is required; set it in the job file or as {where}=VALUE"
        case "literal_error":
            return f"{where}: must be one of {context['expected']}{got}; choose one of them"
        case "value_error":
            return f"{where}: {context['error']}"
        case "greater_than":
            return f"{where}: must be greater than {context['gt']:g}{got}; raise it"
        case "greater_than_equal":
            return f"{where}: must be at least {context['ge']:g}{got}; raise it"
        case "less_than":
            return f"{where}: must be less than {context['lt']:g}{got}; lower it"
        case "less_than_equal":
            return f"{where}: must be at most {context['le']:g}{got}; lower it"
        case "string_too_short":
            return f"{where}: must not be empty; leave it out, or name one"
        case "model_type":
            return f"{where}: must be a section{got}; see --help for its keys"
        case "string_pattern_mismatch":
            return (
                f"{where}: must be letters, digits, '_', '-' or '.', and begin with a letter or digit{got}; "
                "choose another name"
            )
        case _:
            message = detail["msg"].replace("Input should be", "must be")
            return f"{where}: {message}{got}; change it"


def _suggestion(loc: tuple[int | str, ...]) -> str:
    parents = ["N" if isinstance(part, int) else part for part in loc[:-1]]
    keys = [key.split(".") for key, _, _ in config_keys()]
    siblings = {key[len(parents)] for key in keys if key[: len(parents)] == parents}
    close = difflib.get_close_matches(str(loc[-1]), siblings, n=1)
    return f", did you mean {'.'.join(map(str, (*loc[:-1], close[0])))}?" if close else ""
