"""Plots of a page as inline SVG in the colours of the page, with a text alternative for screen readers.

Lengths are in CSS pixels. The CSS classes are defined in pages/style.css.j2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from markupsafe import Markup

from tlbatch.config.base import Metric
from tlbatch.core.text import counted
from tlbatch.report import svg
from tlbatch.runs.report import Estimate, Reliability

MOST_CLASSES = 60
"""Most classes for which a confusion matrix is drawn."""
_MOST_COUNTED = 20
_HEAT_TURNS = 0.65
"""Fraction above which the text in a cell changes colour; matches the colours of the style sheet."""
_LONGEST_NAME, _NARROW_NAME, _LONGEST_LINE, _LONGEST_ROW = 24, 9, 42, 34
_BLANK = 17
"""Side of a cell without text."""
_KINDS = 6
"""Number of line colours in the style sheet."""
_DASHES = ("none", "7 3", "2 3")
_LARGEST = 1e300
Row = tuple[str, Estimate, bool]
"""Name, score and whether it is highlighted."""


@dataclass(frozen=True)
class Line:
    """A line through the known points."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    kind: int = 0
    """Index of its colour."""


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Draw the confusion matrix, with counts and percentages of the row; above 20 classes as colour only."""
    number, shorts = len(names), [short(name) for name in names]
    longest = max(map(len, shorts), default=0)
    turned = number > 8 or longest > _NARROW_NAME
    room = 5.8 * longest if turned else 12
    side = _side(counts, number)
    left, top = 34 + 7.6 * longest, 44 + room
    parts = [svg.text(left, 14, "predicted class", "label")]
    parts.append(svg.turned(14, top + side * number / 2, "true class", "label middle", -90))
    for at, (name, row) in enumerate(zip(shorts, counts, strict=True)):
        start = side * at
        parts.append(svg.text(left - 8, top + start + side / 2 + 4, name, "tick end"))
        corner = (left + start + side / 2 - 3 * turned, top - 8)
        parts.append(svg.turned(*corner, name, "tick" if turned else "tick middle", -45 * turned))
        for to, count in enumerate(row):
            parts.append(_cell((left + side * to, top + start), side, (names[at], names[to]), count, sum(row)))
        parts.append(svg.box(left + start, top + start, side, side, "own"))
    size = (left + side * number + (room if turned else 2), top + side * number + 8)
    return svg.drawing(*size, "Confusion matrix", _confusion_words(counts, names), parts, kind="wide")


def _side(counts: Sequence[Sequence[int]], number: int) -> float:
    """Return the side of a cell; with text, the largest count must fit."""
    if number > _MOST_COUNTED:
        return _BLANK
    digits = max((len(str(count)) for row in counts for count in row), default=1)
    return max(46 if number > 8 else 60, 10 + 9 * digits)


def _cell(corner: tuple[float, float], side: float, names: tuple[str, str], count: int, total: int) -> Markup:
    share = count / total if total else 0.0
    told = f"{names[0]} predicted as {names[1]}: {count} of {total} ({_percent(count, total)})"
    parts = [
        Markup(
            '<rect class="heat" x="{:g}" y="{:g}" width="{:g}" height="{:g}" fill-opacity="{:.3f}">'
            "<title>{}</title></rect>"
        ).format(*corner, side, side, share, told)
    ]
    if side > _BLANK:
        (x, y), kind = (place + side / 2 for place in corner), "on-heat high" if share >= _HEAT_TURNS else "on-heat"
        parts.append(svg.text(x, y if count else y + 5, str(count), f"{kind} {'count' if count else 'zero'} middle"))
        if count:
            parts.append(svg.text(x, y + 14, _percent(count, total), f"{kind} share middle"))
    return Markup("").join(parts)


def _confusion_words(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    told = []
    for at, (name, row) in enumerate(zip(names, counts, strict=True)):
        others = [(n, names[to]) for to, n in enumerate(row) if to != at and n]
        most = max(others, default=None, key=lambda one: one[0])
        told.append(
            f"{name}: {row[at]} of {sum(row)} correct" + (f", {most[0]} predicted as {most[1]}" if most else "")
        )
    return "; ".join(told) + "."


def reliability(title: str, found: Reliability) -> Markup:
    """Draw a reliability diagram: fraction correct by predicted probability, and the number of images in each bin."""
    frame = svg.Frame((0, 1), (0, 1), height=400, bottom=124)
    parts = [*svg.axes(frame, "predicted probability", "fraction correct", below=76)]
    parts.append(svg.stroke(frame, (0, 1), (0, 1), "ideal"))
    most, floor_at, room = max((one.n for one in found.bins), default=1), frame.height - 46, 62
    for one in found.bins:
        told = f"{counted(one.n, 'image')} between {one.low:.2f} and {one.high:.2f}: mean probability "
        told += f"{one.confidence:.4f}, fraction correct {_words(one.accuracy)}"
        left, right, tall = frame.across(one.low), frame.across(one.high), room * one.n / most
        parts.append(svg.box(left + 1, floor_at - tall, right - left - 2, tall, "bar", told))
        parts += _whisker(frame, one.confidence, one.accuracy, told)
    parts.append(svg.text(frame.left - 6, floor_at - room + 8, f"{most:,}", "tick end"))
    parts.append(svg.text(frame.left - 6, floor_at, "0", "tick end"))
    parts.append(svg.turned(14, floor_at - room / 2, "images", "label middle", -90))
    words = "; ".join(f"{counted(one.n, 'image')} at {one.confidence:.2f}, fraction correct {_words(one.accuracy)}"
                      for one in found.bins)  # fmt: skip
    return svg.drawing(frame.width, frame.height, title, f"{words or 'No images'}.", parts)


def _whisker(frame: svg.Frame, x: float, found: Estimate, told: str) -> list[Markup]:
    parts = []
    if found.low is not None and found.high is not None:
        parts.append(svg.stroke(frame, (x, x), (found.low, found.high), "k0 whisker"))
    if found.value is not None:
        parts.append(Markup('<circle class="k0 dot" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
            frame.across(x), frame.down(found.value), told))  # fmt: skip
    return parts


def unit_curves(title: str, labels: tuple[str, str], lines: Sequence[Line], *, words: str, chance: bool) -> Markup:
    """Draw lines from 0 to 1 on both axes; chance: with the diagonal of a random classifier."""
    frame = svg.Frame((0, 1), (0, 1), height=360)
    parts = [*svg.axes(frame, *labels)]
    if chance:
        parts.append(svg.stroke(frame, (0, 1), (0, 1), "ideal"))
    parts += [_joined(frame, line) for line in lines]
    return _with_legend(frame, title, words, parts, lines)


def training(epochs: Sequence[Mapping[str, Any]], metric: Metric) -> list[Markup]:
    """Draw loss and metric by epoch through all phases; for a repeated epoch, the last line counts."""
    last = list({(line.get("phase"), line.get("epoch")): line for line in epochs}.values())
    name = metric.replace("_", " ")
    wanted = (("loss", (("training", "loss", 0), ("validation", "val_loss", 1))),
              (name, (("validation", f"val_{metric}", 1),)))  # fmt: skip
    plots = []
    for title, keys in wanted:
        lines = [Line(one, range(1, len(last) + 1), [_known(row.get(key)) for row in last], kind)
                 for one, key, kind in keys]  # fmt: skip
        lines = [line for line in lines if any(value is not None for value in line.y)]
        if lines:
            plots.append(_by_epoch(title, lines, [row.get("phase") for row in last]))
    return plots


def _by_epoch(title: str, lines: Sequence[Line], phases: Sequence[Any]) -> Markup:
    known = [value for line in lines for value in line.y if value is not None]
    frame = svg.Frame((0.5, len(phases) + 0.5), svg.widened(min(known), max(known)), left=64)
    parts = [*svg.axes(frame, "epoch", title, whole=True)]
    starts = [at for at in range(len(phases)) if at == 0 or phases[at] != phases[at - 1]]
    for at in starts if len(starts) > 1 else []:
        if at:
            parts.append(svg.stroke(frame, (at + 0.5, at + 0.5), frame.y, "phase"))
        parts.append(svg.text(frame.across(at + 0.5) + 4, frame.top - 7, f"phase {phases[at]}", "tick"))
    parts += [_joined(frame, line, dots=len(phases) <= 60) for line in lines]
    told = []
    for line in lines:
        values = [value for value in line.y if value is not None]
        told.append(f"{line.name} from {values[0]:.4g} to {values[-1]:.4g}, lowest {min(values):.4g}, "
                    f"highest {max(values):.4g}")  # fmt: skip
    words = f"{counted(len(phases), 'epoch')} in {counted(len(starts), 'phase')}; {'; '.join(told)}."
    return _with_legend(frame, f"{title[0].upper()}{title[1:]} by epoch", words, parts, lines)


def points(title: str, labels: tuple[str, str], lines: Sequence[Line]) -> Markup:
    """Draw a scatter plot of several series, from zero on both axes."""
    right = max((x for line in lines for x in line.x), default=0.0)
    top = max((y for line in lines for y in line.y if y is not None), default=0.0)
    frame = svg.Frame((0, 1.05 * right or 1.0), (0, 1.05 * top or 1.0), left=64)
    told = "; ".join(f"{line.name}: " + ", ".join(f"{y:.4g} at {x:.4g}" for x, y in zip(line.x, line.y, strict=True)
                                                if y is not None) for line in lines)  # fmt: skip
    parts = [*svg.axes(frame, *labels), *(_dots(frame, line) for line in lines)]
    return _with_legend(frame, title, f"{told}.", parts, lines)


def forest(title: str, rows: Sequence[Row], *, reference: float | None = None) -> Markup:
    """Draw a forest plot of scores with their intervals; reference: value of the dashed line."""
    known = [value for _, one, _ in rows for value in (one.value, one.low, one.high) if value is not None]
    known += [] if reference is None else [reference]
    step, top = 34, 12
    reach = svg.widened(min(known, default=0), max(known, default=1))
    left, tall = 34 + 7.4 * max((len(short(row[0], _LONGEST_ROW)) for row in rows), default=0), 70 + step * len(rows)
    frame = svg.Frame(reach, (0, 1), width=left + 530, height=tall, left=left, top=top, right=196, bottom=46)
    parts = [*svg.axes(frame, title, "", upright=False)]
    if reference is not None:
        parts.append(svg.stroke(frame, (reference, reference), frame.y, "ideal"))
    for number, (name, found, stands_out) in enumerate(rows):
        middle, kind = top + step * (number + 0.65), "k0" if stands_out else "k4"
        parts.append(
            svg.text(
                frame.left - 14, middle + 4, short(name, _LONGEST_ROW), "tick end strong" if stands_out else "tick end"
            )
        )
        parts.append(svg.text(frame.width - frame.right + 14, middle + 4, _words(found), "tick figure"))
        if found.low is not None and found.high is not None:
            ends = (frame.across(found.low), frame.across(found.high))
            parts.append(Markup('<path class="{} whisker" d="M{:.1f} {:.1f}H{:.1f}"/>').format(
                kind, ends[0], middle, ends[1]))  # fmt: skip
        if found.value is not None:
            parts.append(Markup('<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(
                kind, frame.across(found.value), middle))  # fmt: skip
    words = "; ".join(f"{name}: {_words(found)}" for name, found, _ in rows)
    return svg.drawing(frame.width, frame.height, title, f"{words}.", parts, kind="wide")


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Shorten a name to fit beside an axis."""
    return name if len(name) <= longest else f"{name[: longest - 3]}..."


def _with_legend(frame: svg.Frame, title: str, words: str, parts: Iterable[Markup], lines: Sequence[Line]) -> Markup:
    drawn, below = list(parts), frame.height + 12
    for at, line in enumerate(lines):
        y = below + 20 * at
        drawn.append(Markup('<path class="line k{}" stroke-dasharray="{}" d="M{:g} {:g}h28"/>').format(
            line.kind % _KINDS, _dash(line), frame.left, y))  # fmt: skip
        drawn.append(svg.text(frame.left + 36, y + 4, short(line.name, _LONGEST_LINE), "tick"))
    return svg.drawing(frame.width, below + 20 * len(lines), title, words, drawn)


def _joined(frame: svg.Frame, line: Line, *, dots: bool = False) -> Markup:
    steps, pen = [], "M"
    for x, value in zip(line.x, line.y, strict=True):
        if value is not None:
            steps.append(f"{pen}{frame.across(x):.1f} {frame.down(value):.1f}")
        pen = "M" if value is None else "L"
    parts = [Markup('<path class="line k{}" stroke-dasharray="{}" d="{}"/>').format(
        line.kind % _KINDS, _dash(line), "".join(steps))]  # fmt: skip
    return Markup("").join([*parts, _dots(frame, line)] if dots else parts)


def _dots(frame: svg.Frame, line: Line) -> Markup:
    return Markup("").join(
        Markup('<circle class="k{} dot" cx="{:.1f}" cy="{:.1f}" r="2.5"><title>{}</title></circle>').format(
            line.kind % _KINDS, frame.across(x), frame.down(value), f"{line.name}, at {x:g}: {value:.4g}")
        for x, value in zip(line.x, line.y, strict=True) if value is not None
    )  # fmt: skip


def _dash(line: Line) -> str:
    return _DASHES[line.kind // _KINDS % len(_DASHES)]


def _known(value: object) -> float | None:
    """Return the value if it can be drawn, else None."""
    usable = isinstance(value, int | float) and isfinite(value) and abs(value) < _LARGEST
    return float(value) if usable and isinstance(value, int | float) else None


def _words(found: Estimate) -> str:
    if found.value is None:
        return "undefined"
    reach = "" if found.low is None or found.high is None else f" ({found.low:.4f} to {found.high:.4f})"
    return f"{found.value:.4f}{reach}"


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %" if total else "none"
