"""Elements of inline SVG plots; all text is escaped.

Lengths are in CSS pixels. The CSS classes are defined in pages/style.css.j2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup


@dataclass(frozen=True)
class Frame:
    """Coordinate system of a plot: ranges of the values, size and margins."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 400
    height: float = 330
    left: float = 54
    top: float = 22
    right: float = 14
    bottom: float = 48

    def across(self, value: float) -> float:
        """Return the x-coordinate of a value."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + share * (self.width - self.left - self.right)

    def down(self, value: float) -> float:
        """Return the y-coordinate of a value."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def drawing(
    width: float, height: float, title: str, words: str, parts: Iterable[Markup], *, kind: str = "small"
) -> Markup:
    """Return a complete plot with its title and a text alternative."""
    return Markup(
        '<svg class="plot {}" role="img" width="{:.0f}" height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}" '
        'aria-label="{}. {}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(kind, width, height, width, height, title, words, title, words, Markup("").join(parts))


def with_legend(
    frame: Frame, title: str, words: str, parts: Iterable[Markup], legend: Iterable[tuple[Markup, str]]
) -> Markup:
    """Return a complete plot with a legend below it: marks, drawn at the origin, and their names."""
    drawn, y = list(parts), frame.height + 12
    for mark, name in legend:
        drawn.append(Markup('<g transform="translate({:g} {:g})">{}</g>').format(frame.left, y, mark))
        drawn.append(text(frame.left + 36, y + 4, name, "tick"))
        y += 20
    return drawing(frame.width, y, title, words, drawn)


def axes(
    frame: Frame,
    across: str,
    up: str,
    *,
    whole: bool = False,
    below: float = 0,
    upright: bool = True,
    names: Sequence[str] = (),
) -> Iterable[Markup]:
    """Yield grid, ticks and axis labels.

    Parameters
    ----------
    below
        Extra space above the label of the x-axis.
    names
        Names of 0, 1, ... on the x-axis, in place of numbers.
    """
    ground, middle = frame.height - frame.bottom, (frame.left + frame.width - frame.right) / 2
    for tick in range(len(names)) if names else _ticks(*frame.x, whole=whole):
        yield stroke(frame, (tick, tick), frame.y, "grid")
        if names:
            yield turned(frame.across(tick) + 4, ground + 8, names[int(tick)], "tick end", -90)
        else:
            yield text(frame.across(tick), ground + 18 + below, f"{tick:g}", "tick middle")
    yield text(middle, ground + 38 + below, across, "label middle")
    if upright:
        for tick in _ticks(*frame.y):
            yield stroke(frame, frame.x, (tick, tick), "grid")
            yield text(frame.left - 6, frame.down(tick) + 4, f"{tick:g}", "tick end")
        yield turned(14, (frame.top + ground) / 2, up, "label middle", -90)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return at most six round numbers within a range."""
    step = 10.0 ** floor(log10((high - low) / 5))
    step = next(step * times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 5 + 1e-9)
    step = max(1.0, step) if whole else step
    return [count * step for count in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def widened(low: float, high: float) -> tuple[float, float]:
    """Return a range with a margin, also where it is a single point."""
    air = 0.05 * (high - low) if high - low > 1e-9 * max(abs(low), abs(high)) else 0.05 * abs(high) or 0.5
    return low - air, high + air


def short(name: str, longest: int = 24) -> str:
    """Shorten a name to fit beside an axis."""
    return name if len(name) <= longest else f"{name[: longest - 3]}..."


def text(x: float, y: float, text: str, kind: str) -> Markup:
    """Return text at a position."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


def turned(x: float, y: float, text: str, kind: str, degrees: float) -> Markup:
    """Return text rotated around a position."""
    return Markup('<text class="{}" transform="translate({:.1f} {:.1f}) rotate({:g})">{}</text>').format(
        kind, x, y, degrees, text
    )


def stroke(frame: Frame, x: tuple[float, float], y: tuple[float, float], kind: str) -> Markup:
    """Return a straight line between two points, given as values."""
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
        kind, frame.across(x[0]), frame.down(y[0]), frame.across(x[1]), frame.down(y[1])
    )


def box(x: float, y: float, width: float, height: float, kind: str, tooltip: str = "") -> Markup:
    """Return a rectangle; tooltip: its tooltip."""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>').format(
        kind, x, y, width, height, _tooltip(tooltip)
    )


def dot(x: float, y: float, radius: float, kind: str, tooltip: str = "") -> Markup:
    """Return a filled circle; tooltip: its tooltip."""
    return Markup('<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="{:g}">{}</circle>').format(
        kind, x, y, radius, _tooltip(tooltip)
    )


def shape(outline: str, fill: str, tooltip: str = "") -> Markup:
    """Return a filled path; tooltip: its tooltip."""
    return Markup('<path style="fill:{}" d="{}">{}</path>').format(fill, outline, _tooltip(tooltip))


def _tooltip(tooltip: str) -> Markup:
    return Markup("<title>{}</title>").format(tooltip) if tooltip else Markup()
