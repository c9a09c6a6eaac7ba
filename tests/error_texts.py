"""Error messages as they stand in the code, read from its syntax tree: nothing is imported or run.

An expression in a message is shown as "…", unless its words can be seen: a constant, both sides of a condition, a
variable of the same function, what a function of the same file returns, and what callers pass for a parameter.
"""

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

HOLE = "…"
_MOST_TEXTS = 40
"""Of one expression; one with more is shown as "…"."""
_MOST_STEPS = 6
"""From a name to its words."""
_IMAGE_CAUSES: dict[str, int | str] = {"UnreadableImageError": 0, "Rejected": "cause", "Damage": 1}
"""Calls that give the cause for which an image is left out, and which argument is it."""
_ERROR_CALLS: dict[str, int | str] = {"_end": 1}
"""The same for calls that end a rank with an error."""
_ERROR_LINES = {"config": ["_line"]}
"""Functions that return lines of errors, by package."""
_CHECKED = ("config", "core")
"""Packages whose ValueErrors reach the user through the check of a job."""

Kind = Literal["error", "image"]
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Message(NamedTuple):
    """A message with "…" where values stand, and the way out, which may be empty."""

    text: str
    way_out: str


@dataclass(frozen=True)
class Module:
    """A file of the package."""

    file: Path
    package: str
    tree: ast.Module
    functions: dict[str, list[Function]] = field(default_factory=lambda: defaultdict(list))
    constants: dict[str, ast.expr] = field(default_factory=dict)


class Place(NamedTuple):
    """Where an expression stands."""

    module: Module
    function: Function | None


class ErrorTexts:
    """The messages of a package of Python files and shell scripts."""

    def __init__(self, package: Path) -> None:
        self._modules = [_module(file, package) for file in sorted(package.rglob("*.py"))]
        self._calls: dict[str, list[tuple[ast.Call, Place]]] = defaultdict(list)
        for module in self._modules:
            for node, place in _walk(module.tree, Place(module, None)):
                if isinstance(node, ast.Call):
                    self._calls[_name(node.func)].append((node, place))
        self._templates = self._error_classes()

    def messages(self, kind: Kind) -> dict[str, set[Message]]:
        """Return the messages of errors, or the causes for which images are left out, by package."""
        found: dict[str, set[Message]] = defaultdict(set)
        for module in self._modules:
            for text in self._errors(module) if kind == "error" else self._image_causes(module):
                if message := message_of(text):
                    found[module.package].add(message)
        return found

    def _errors(self, module: Module) -> Iterator[str]:
        for node, place in _walk(module.tree, Place(module, None)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                template = self._template(_name(node.exc.func), module)
                for text in self._texts(node.exc.args[0], place) if template else ():
                    yield template.replace(HOLE, text, 1)
            elif isinstance(node, ast.Call):
                yield from self._argument_texts(node, place, _ERROR_CALLS)
            elif isinstance(node, ast.Constant | ast.JoinedStr):
                lines = (text for text in self._texts(node, place) if text.startswith("error: "))
                yield from (_without_variables(text.removeprefix("error: ")) for text in lines)
            elif isinstance(node, Function) and node.name in _ERROR_LINES.get(module.package, ()):
                yield from self._returned(node, module)

    def _image_causes(self, module: Module) -> Iterator[str]:
        for node, place in _walk(module.tree, Place(module, None)):
            if isinstance(node, ast.Call):
                yield from self._argument_texts(node, place, _IMAGE_CAUSES)

    def _template(self, error: str, module: Module) -> str:
        return HOLE if error == "ValueError" and module.package in _CHECKED else self._templates.get(error, "")

    def _error_classes(self) -> dict[str, str]:
        """Map UserError, and each class derived from it, to what it makes of its text."""
        found = {"UserError": HOLE}
        classes = [(node, Place(module, None)) for module in self._modules for node in module.tree.body]
        for node, place in classes:
            if isinstance(node, ast.ClassDef) and any(_name(base) in found for base in node.bases):
                calls = [one for one in ast.walk(node) if isinstance(one, ast.Call) and _name(one.func) == "__init__"]
                found[node.name] = self._texts(calls[0].args[0], place)[0] if calls else HOLE
        return found

    def _argument_texts(self, call: ast.Call, place: Place, arguments: dict[str, int | str]) -> list[str]:
        argument = _argument(call, *_both(arguments.get(_name(call.func))))
        return [] if argument is None else self._texts(argument, place)

    def _texts(self, node: ast.expr, place: Place, steps: int = 0) -> list[str]:
        """Return all texts that an expression can be, with holes."""
        if steps > _MOST_STEPS:
            return [HOLE]
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return _joined([self._texts(part, place, steps) for part in parts])
            case ast.FormattedValue(value=inner):
                return self._texts(inner, place, steps)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return _joined([self._texts(left, place, steps), self._texts(right, place, steps)])
            case ast.IfExp(body=body, orelse=orelse):
                texts = [*self._texts(body, place, steps), *self._texts(orelse, place, steps)]
                return texts if all(texts) else _wordy(texts)
            case ast.BoolOp(values=values):
                return _wordy(text for value in values for text in self._texts(value, place, steps + 1))
            case ast.NamedExpr(value=value):
                return self._texts(value, place, steps)
            case ast.Name(id=name):
                return _wordy(self._named(name, place, steps + 1))
            case ast.Call(func=ast.Name(id="counted"), args=[_, noun]):
                return [f"{HOLE} {text}s" for text in self._texts(noun, place, steps)]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name)):
                functions = place.module.functions.get(name, [])
                return _wordy(text for one in functions for text in self._returned(one, place.module, steps + 1))
        return [HOLE]

    def _named(self, name: str, place: Place, steps: int) -> Iterator[str]:
        """Yield the texts of a variable, a parameter or a constant."""
        module, function = place
        values = _assigned(name, function) if function else []
        for value in values:
            yield from self._texts(value, place, steps)
        if function and not values and (at := _position(name, function)) is not None:
            for call, caller in self._calls[function.name]:
                if caller.module is module or not function.name.startswith("_"):
                    argument = _argument(call, at, name) or _default(name, function)
                    yield from self._texts(argument, caller, steps) if argument is not None else ()
        elif not values and name in module.constants:
            yield from self._texts(module.constants[name], Place(module, None), steps)
        if not values and (home := self._home_of(name, module)):
            yield from self._texts(home.constants[name], Place(home, None), steps)

    def _home_of(self, name: str, module: Module) -> Module | None:
        """Return the module from which another imports a constant."""
        for node in module.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and name in {one.name for one in node.names}:
                ending = f"{node.module.replace('.', '/')}.py"
                homes = (one for one in self._modules if one.file.as_posix().endswith(ending))
                return next((one for one in homes if name in one.constants), None)
        return None

    def _returned(self, function: Function, module: Module, steps: int = 0) -> Iterator[str]:
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                yield from self._texts(node.value, Place(module, function), steps)


def script_messages(scripts: Iterable[Path]) -> set[Message]:
    """Return the messages of shell scripts: what they print after ``error:``, or give to a function ``fail``."""
    lines = [text for file in scripts for text in re.findall(r'(?:echo "error: |\bfail ")([^"]+)"', file.read_text())]
    return {message for line in lines if (message := message_of(_without_variables(line)))}


def message_of(text: str) -> Message | None:
    """Split a text into message and way out; None where no words of the message are fixed."""
    text = re.sub(f"{HOLE}{{2,}}", HOLE, " ".join(text.split()))
    text = re.sub(f"^({HOLE}(:{HOLE}| rank {HOLE})?: )+", "", text).strip()
    message, _, way_out = text.partition("; ")
    has_words = re.search(r"(?<![\w.])[A-Za-z]{3,}(?![\w.])", text.replace("(got ", "("))
    return Message(message, way_out) if has_words else None


def _module(file: Path, package: Path) -> Module:
    inner = file.relative_to(package).parts
    module = Module(file, inner[0] if len(inner) > 1 else "", ast.parse(file.read_text(encoding="utf-8")))
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            module.functions[node.name].append(node)
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            module.constants[node.targets[0].id] = node.value
    return module


def _walk(node: ast.AST, place: Place) -> Iterator[tuple[ast.AST, Place]]:
    """Yield each node below with its place; the pieces of an f-string are not nodes of their own."""
    for child in ast.iter_child_nodes(node):
        yield child, place
        if not isinstance(child, ast.JoinedStr):
            yield from _walk(child, Place(place.module, child) if isinstance(child, Function) else place)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _both(argument: int | str | None) -> tuple[int | None, str]:
    return (argument, "") if isinstance(argument, int) else (None, argument or "")


def _argument(call: ast.Call, position: int | None, keyword: str) -> ast.expr | None:
    if position is not None and position < len(call.args):
        return call.args[position]
    return next((one.value for one in call.keywords if keyword and one.arg == keyword), None)


def _position(name: str, function: Function) -> int | None:
    """Return the place of a parameter among those of a call, past all of them if it goes by name only."""
    names = [one.arg for one in function.args.args if one.arg not in ("self", "cls")]
    by_name = [one.arg for one in function.args.kwonlyargs]
    return names.index(name) if name in names else len(names) + 99 if name in by_name else None


def _default(name: str, function: Function) -> ast.expr | None:
    """Return the default of a parameter."""
    names, given = [one.arg for one in function.args.args], function.args.defaults
    by_name = zip((one.arg for one in function.args.kwonlyargs), function.args.kw_defaults, strict=True)
    return (dict(zip(names[len(names) - len(given) :], given, strict=True)) | dict(by_name)).get(name)


def _assigned(name: str, function: Function) -> list[ast.expr]:
    """Return all values that a function gives to a variable."""
    values: list[ast.expr] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            values += [node.value for target in node.targets if _name(target) == name]
        elif isinstance(node, ast.NamedExpr | ast.AnnAssign) and _name(node.target) == name and node.value:
            values.append(node.value)
    return values


def _joined(parts: Sequence[list[str]]) -> list[str]:
    if len(list(itertools.product(*parts))) > _MOST_TEXTS:
        parts = [part if len(part) == 1 else [HOLE] for part in parts]
    return ["".join(texts) for texts in itertools.product(*parts)]


def _wordy(texts: Iterable[str]) -> list[str]:
    """Return the texts that have several words, and a hole for single words, which are values."""
    kept = dict.fromkeys(text if " " in text.strip() else HOLE for text in texts if text)
    return list(kept) or [HOLE]


def _without_variables(text: str) -> str:
    return re.sub(r"\$\{[^}]*\}|\$[A-Za-z_]\w*|\$[\d*@]", HOLE, text)
