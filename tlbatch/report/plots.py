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
from tlbatch.report.formats import capitalised
from tlbatch.runs.report import Curve, Estimate, Reliability
from tlbatch.runs.strategy import Strategy, Trial

_LONGEST_LINE, _LONGEST_ROW = 42, 34
_ROW = 34
"""Height of a row of a forest plot."""
_KINDS = 6
"""Number of line colours in the style sheet."""
_DASHES = ("none", "7 3", "2 3")
_MARKS = ("m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0", "m-3-3h6v6h-6z", "m0-4 4 7h-8z")
"""A circle, a square and a triangle."""
MOST_MARKED = _KINDS * len(_MARKS)
"""Most classes that a feature map marks in colours and shapes, with a legend."""
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


@dataclass(frozen=True)
class FeatureMap:
    """Images as points in a plane, near each other where their features are alike."""

    points: Sequence[tuple[float, float]]
    labels: Sequence[int]
    """Class index of each point."""
    classes: Sequence[str]


def reliability(title: str, found: Reliability) -> Markup:
    """Draw a reliability diagram: fraction correct by predicted probability, and the number of images in each bin."""
    frame = svg.Frame((0, 1), (0, 1), height=400, bottom=124)
    parts = [*svg.axes(frame, "predicted probability", "fraction correct", below=76)]
    parts.append(svg.stroke(frame, (0, 1), (0, 1), "ideal"))
    most, floor_at, room = max((one.n for one in found.bins), default=1), frame.height - 46, 62
    for one in found.bins:
        tooltip = f"{counted(one.n, 'image')} between {one.low:.2f} and {one.high:.2f}: mean probability "
        tooltip += f"{one.confidence:.4f}, fraction correct {_words(one.accuracy)}"
        left, right, tall = frame.across(one.low), frame.across(one.high), room * one.n / most
        parts.append(svg.box(left + 1, floor_at - tall, right - left - 2, tall, "bar", tooltip))
        parts += _whisker(frame, one.confidence, one.accuracy, tooltip)
    parts.append(svg.text(frame.left - 6, floor_at - room + 8, f"{most:,}", "tick end"))
    parts.append(svg.text(frame.left - 6, floor_at, "0", "tick end"))
    parts.append(svg.turned(14, floor_at - room / 2, "images", "label middle", -90))
    words = "; ".join(f"{counted(one.n, 'image')} at {one.confidence:.2f}, fraction correct {_words(one.accuracy)}"
                      for one in found.bins)  # fmt: skip
    return svg.drawing(frame.width, frame.height, title, f"{words or 'No images'}.", parts)


def _whisker(frame: svg.Frame, x: float, found: Estimate, tooltip: str, kind: int = 0) -> list[Markup]:
    parts = []
    if found.low is not None and found.high is not None:
        parts.append(svg.stroke(frame, (x, x), (found.low, found.high), f"k{kind} whisker"))
    if found.value is not None:
        parts.append(svg.dot(frame.across(x), frame.down(found.value), 4, f"k{kind}", tooltip))
    return parts


def unit_curves(title: str, labels: tuple[str, str], curves: Iterable[tuple[str, Curve]], *, chance: bool) -> Markup:
    """Draw named curves from 0 to 1 on both axes; chance: with the diagonal of a random classifier."""
    lines = [Line(name, one.x, one.y, kind) for kind, (name, one) in enumerate(curves) if one.x]
    frame = svg.Frame((0, 1), (0, 1), height=360)
    parts = [*svg.axes(frame, *labels)]
    if chance:
        parts.append(svg.stroke(frame, (0, 1), (0, 1), "ideal"))
    parts += [_joined(frame, line) for line in lines]
    words = "; ".join(line.name for line in lines) or "No curve"
    return svg.with_legend(frame, title, f"{words}.", parts, _legend(lines))


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
    alt = []
    for line in lines:
        values = [value for value in line.y if value is not None]
        alt.append(f"{line.name} from {values[0]:.4g} to {values[-1]:.4g}, lowest {min(values):.4g}, "
                    f"highest {max(values):.4g}")  # fmt: skip
    words = f"{counted(len(phases), 'epoch')} in {counted(len(starts), 'phase')}; {'; '.join(alt)}."
    return svg.with_legend(frame, f"{capitalised(title)} by epoch", words, parts, _legend(lines))


def points(title: str, labels: tuple[str, str], lines: Sequence[Line]) -> Markup:
    """Draw a scatter plot of several series, from zero on both axes."""
    right = max((x for line in lines for x in line.x), default=0.0)
    top = max((y for line in lines for y in line.y if y is not None), default=0.0)
    frame = svg.Frame((0, 1.05 * right or 1.0), (0, 1.05 * top or 1.0), left=64)
    alt = "; ".join(f"{line.name}: " + ", ".join(f"{y:.4g} at {x:.4g}" for x, y in zip(line.x, line.y, strict=True)
                                                if y is not None) for line in lines)  # fmt: skip
    parts = [*svg.axes(frame, *labels), *(_dots(frame, line) for line in lines)]
    return svg.with_legend(frame, title, f"{alt}.", parts, _legend(lines))


def forest(title: str, rows: Sequence[Row], *, reference: float | None = None, are_errors: bool = False) -> Markup:
    """Draw a forest plot of scores with their intervals.

    Parameters
    ----------
    reference
        Value of the dashed line.
    are_errors
        Whether the intervals are one standard error to both sides.
    """
    known = [value for _, one, _ in rows for value in (one.value, one.low, one.high) if value is not None]
    known += [] if reference is None else [reference]
    reach = svg.widened(min(known, default=0), max(known, default=1))
    names = [svg.short(name, _LONGEST_ROW) for name, _, _ in rows]
    words = [_words(one, are_errors=are_errors) for _, one, _ in rows]
    left, tall = 34 + 7.4 * max(map(len, names), default=0), 12 + _ROW * len(rows)
    frame = svg.Frame(
        reach, (tall / _ROW, 0), width=left + 530, height=tall + 58, left=left, top=12, right=196, bottom=46
    )
    parts = [*svg.axes(frame, title, "", upright=False)]
    if reference is not None:
        parts.append(svg.stroke(frame, (reference, reference), frame.y, "ideal"))
    for at, (_, found, stands_out) in enumerate(rows):
        y, kind, bold = at + 0.65, "k0" if stands_out else "k4", " strong" * stands_out
        parts.append(svg.text(frame.left - 14, frame.down(y) + 4, names[at], f"tick end{bold}"))
        parts.append(svg.text(frame.width - frame.right + 14, frame.down(y) + 4, words[at], "tick figure"))
        if found.low is not None and found.high is not None:
            parts.append(svg.stroke(frame, (found.low, found.high), (y, y), f"{kind} whisker"))
        if found.value is not None:
            parts.append(svg.dot(frame.across(found.value), frame.down(y), 5, kind))
    alt = "; ".join(f"{row[0]}: {said}" for row, said in zip(rows, words, strict=True))
    return svg.drawing(frame.width, frame.height, title, f"{alt}.", parts, kind="wide")


def candidates(score: str, found: Strategy) -> Markup:
    """Draw a forest plot of the short list of strategy auto; the chosen candidate stands out."""
    return forest(score, [(one.name, _with_error(one), one.name == found.chosen) for one in found.short_list],
                  are_errors=True)  # fmt: skip


def probes(score: str, found: Strategy) -> Markup:
    """Draw scores with standard errors by stage of the backbone, with a line for each way to fit the head."""
    trials = found.profile
    stages = list(dict.fromkeys(", ".join(trial.after) for trial in trials))
    names = [svg.short(stage or "pool") for stage in stages]
    known = [value for one in map(_with_error, trials) for value in (one.low, one.high) if value is not None]
    reach, below = svg.widened(min(known, default=0), max(known, default=1)), 7 * max(map(len, names))
    frame = svg.Frame((-0.5, len(stages) - 0.5), reach, height=318 + below, left=64, bottom=48 + below)
    parts, lines, alt = [*svg.axes(frame, "backbone stage", score, below=below, names=names)], [], []
    for kind, fit in enumerate(dict.fromkeys(trial.fit for trial in trials)):
        own = {stages.index(", ".join(trial.after)): _with_error(trial) for trial in trials if trial.fit == fit}
        lines.append(Line(fit, [*own], [one.value for one in own.values()], kind))
        words = [f"{stages[at] or 'pool'} {_words(one, are_errors=True)}" for at, one in own.items()]
        alt.append(f"{fit}: {', '.join(words)}")
        parts.append(_joined(frame, lines[-1]))
        for (at, one), said in zip(own.items(), words, strict=True):
            parts += _whisker(frame, at, one, f"{fit}, {said}", kind % _KINDS)
    return svg.with_legend(
        frame, f"{capitalised(score)} by backbone stage", f"{'; '.join(alt)}.", parts, _legend(lines)
    )


def _with_error(trial: Trial) -> Estimate:
    """Return the score of a trial with an interval of one standard error to both sides."""
    score, error = trial.score, trial.standard_error
    return Estimate(value=None) if score is None else Estimate(value=score, low=score - error, high=score + error)


def feature_map(found: FeatureMap) -> Markup:
    """Draw images as points, by class in colours and shapes; above 18 classes in hues, without a legend."""
    across, up = (svg.widened(min(values), max(values)) for values in zip(*found.points, strict=True))
    frame = svg.Frame(across, up, height=400, left=6, top=6, right=6, bottom=6)
    parts, legend, counts = [], [], []
    is_named = len(found.classes) <= MOST_MARKED
    for at, name in enumerate(found.classes):
        own = [place for place, label in zip(found.points, found.labels, strict=True) if label == at]
        mark = _MARKS[at // _KINDS if is_named else 0]
        fill = f"var(--k{at % _KINDS})" if is_named else f"hsl({300 * at / len(found.classes):.0f} 65% 50%)"
        counts.append(f"{len(own)} of {name}")
        marks = "".join(f"M{frame.across(x):.1f} {frame.down(y):.1f}{mark}" for x, y in own)
        parts += [svg.shape(marks, fill, counts[-1])] if own else []
        legend += [(svg.shape(f"M14 0{mark}", fill), svg.short(name, _LONGEST_LINE))] if is_named else []
    words = f"{counted(len(found.points), 'image')}: {', '.join(counts) if is_named else f'{len(parts)} classes'}."
    return svg.with_legend(frame, "Feature map", words, parts, legend)


def _legend(lines: Iterable[Line]) -> list[tuple[Markup, str]]:
    line = Markup('<path class="line k{}" stroke-dasharray="{}" d="M0 0h28"/>')
    return [(line.format(one.kind % _KINDS, _dash(one)), svg.short(one.name, _LONGEST_LINE)) for one in lines]


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
        svg.dot(frame.across(x), frame.down(y), 2.5, f"k{line.kind % _KINDS}", f"{line.name}, at {x:g}: {y:.4g}")
        for x, y in zip(line.x, line.y, strict=True) if y is not None
    )  # fmt: skip


def _dash(line: Line) -> str:
    return _DASHES[line.kind // _KINDS % len(_DASHES)]


def _known(value: object) -> float | None:
    """Return the value if it can be drawn, else None."""
    usable = isinstance(value, int | float) and isfinite(value) and abs(value) < _LARGEST
    return float(value) if usable and isinstance(value, int | float) else None


def _words(found: Estimate, *, are_errors: bool = False) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "undefined" if found.value is None else f"{found.value:.4f}"
    if are_errors:
        return f"{found.value:.4f} \N{PLUS-MINUS SIGN} {found.high - found.value:.4f}"
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
