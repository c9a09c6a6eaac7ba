"""The pages that are made from the code: jobs/keys.md and jobs/errors.md. ``python tests/pages.py`` rewrites them."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).parent))

from error_texts import ErrorTexts, Message, script_messages
from pydantic import BaseModel

from tlbatch.config.load import Job, config_keys, section_of

ROOT = Path(__file__).parents[1]
_KEYS_HEAD = """\
# Keys of a job

<!-- made from the code by python tests/pages.py; do not edit -->

Set a key in a job file, or as `key=value` on the command line; `python -m tlbatch.submit --help` prints the same list.
`N` is the number of a phase, from 0. *Empty* means that nothing is set by default.
"""
_ERRORS_HEAD = """\
# Error messages

<!-- made from the code by python tests/pages.py; do not edit -->

An error is one line, `error: WHERE: what is wrong; the way out`, with exit code 2. Look for its fixed words on this
page: `…` stands for a value, and a file or folder at the start of a message is left out.

Any other failure has exit code 1, its traceback in `logs/`, and its cause in `markers/STAGE.failed.RANK.json`.
"""
_IMAGES_HEAD = """\
### Images that cannot be used

The job stops if there are more than `data.max_rejected` of them; fewer are left out and listed in `rejected.csv`.
"""
_TITLES = {
    "": "Commands",
    "config": "The job",
    "data": "Images, labels, splits and shards",
    "model": "Backbone, weights and head",
    "cluster": "SLURM, containers and run folders",
    "distributed": "GPUs and ranks",
    "runs": "Stages and their records",
    "activations": "The cache",
    "training": "Training",
    "evaluation": "Predictions, leaderboards and phrases",
    "report": "Reports, comparisons and ensembles",
    "deploy": "Export and prediction with an exported model",
    "promotion": "Nights, champions and the registry",
    "core": "Files and disks",
}
"""Headings of errors.md by package, in order; a package that is not listed comes last, under its name."""


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    return {ROOT / "jobs" / "keys.md": keys_page(), ROOT / "jobs" / "errors.md": errors_page()}


def keys_page() -> str:
    """Return the page of all keys of a job."""
    models = dict(sections())
    lines = [_KEYS_HEAD]
    texts = [(*key.rpartition("."), default, text) for key, default, text in config_keys()]
    for section, model in models.items():
        lines += [f"## {section or 'Top level'}", ""]
        lines += [_code_spans(" ".join((model.__doc__ or "").split())), ""] if section else []
        rows = [
            (f"`{section}{dot}{name}`", _default(default), _described(text, _choices(model, name)))
            for prefix, dot, name, default, text in texts
            if prefix == section
        ]
        lines += [*_table(("key", "default", "what it does"), rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def errors_page() -> str:
    """Return the page of all error messages."""
    texts = ErrorTexts(ROOT / "tlbatch")
    errors = texts.messages("error")
    images = {message for found in texts.messages("image").values() for message in found}
    scripts = sorted([*(ROOT / "slurm").glob("*.sh"), *(ROOT / "tlbatch" / "cluster").glob("*.sh")])
    lines = [_ERRORS_HEAD]
    for package in [*(one for one in _TITLES if one in errors), *sorted(errors.keys() - _TITLES)]:
        lines += [f"## {_TITLES.get(package, package)}", "", *_message_table(errors[package]), ""]
        if package == "data":
            lines += [_IMAGES_HEAD, *_message_table(images), ""]
    lines += ["## Shell scripts", "", *_message_table(script_messages(scripts))]
    return "\n".join(lines) + "\n"


def sections(model: type[BaseModel] = Job, name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections of a job by name, such as ``phase.N``, each before those within."""
    yield name, model
    for key, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            dotted = f"{name}.{key}" if name else key
            yield from sections(inner, dotted if field.annotation is inner else f"{dotted}.N")


def is_table(section: str, name: str) -> bool:
    """Return whether the value of a key is a table, whose names are the user's."""
    found = dict(sections()).get(section)
    return found is not None and name in found.model_fields and "dict[" in str(found.model_fields[name].annotation)


def _choices(model: type[BaseModel], name: str) -> tuple[str, ...]:
    return tuple(one for one in _literals(model.model_fields[name].annotation) if isinstance(one, str))


def _literals(annotation: object) -> Iterator[object]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is not dict:
        for inner in get_args(annotation):
            yield from _literals(inner)


def _default(default: str) -> str:
    return "*empty*" if default == "empty" else f"`{ {'True': 'true', 'False': 'false'}.get(default, default) }`"


def _described(text: str, choices: tuple[str, ...]) -> str:
    """Return the help text of a key, with the values that it may have where the text does not name them all."""
    if all(re.search(rf"(?<![\w-]){re.escape(choice)}\b(?!-)", text) for choice in choices):
        return _code_spans(text)
    return f"{_code_spans(text)} One of {', '.join(f'`{choice}`' for choice in choices)}."


def _message_table(messages: Iterable[Message]) -> list[str]:
    ordered = sorted(messages, key=lambda one: (re.sub(r"^\W+", "", one.text).casefold(), one.way_out.casefold()))
    return _table(("message", "way out"), [(_code(one.text), _escaped(one.way_out)) for one in ordered])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


def _code_spans(text: str) -> str:
    """Return reStructuredText as Markdown."""
    return "`".join(part if at % 2 else _escaped(part) for at, part in enumerate(text.split("``")))


def _escaped(text: str) -> str:
    return re.sub(r"([|*<$~])", r"\\\1", text)


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
