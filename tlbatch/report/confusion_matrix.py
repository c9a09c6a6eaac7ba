"""The plot of a confusion matrix as inline SVG."""

from collections.abc import Sequence

from markupsafe import Markup

from tlbatch.report import svg

MOST_CLASSES = 60
"""Most classes for which a confusion matrix is drawn."""
_MOST_COUNTED = 20
_HEAT_TURNS = 0.65
"""Fraction above which the text in a cell changes colour; matches the colours of the style sheet."""
_NARROW_NAME = 9
_BLANK = 17
"""Side of a cell without text."""


def draw(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Draw the confusion matrix, with counts and percentages of the row; above 20 classes as colour only."""
    number, shorts = len(names), [svg.short(name) for name in names]
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
    tooltip = f"{names[0]} predicted as {names[1]}: {count} of {total} ({_percent(count, total)})"
    parts = [
        Markup(
            '<rect class="heat" x="{:g}" y="{:g}" width="{:g}" height="{:g}" fill-opacity="{:.3f}">'
            "<title>{}</title></rect>"
        ).format(*corner, side, side, share, tooltip)
    ]
    if side > _BLANK:
        (x, y), kind = (place + side / 2 for place in corner), "on-heat high" if share >= _HEAT_TURNS else "on-heat"
        parts.append(svg.text(x, y if count else y + 5, str(count), f"{kind} {'count' if count else 'zero'} middle"))
        if count:
            parts.append(svg.text(x, y + 14, _percent(count, total), f"{kind} share middle"))
    return Markup("").join(parts)


def _confusion_words(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    alt = []
    for at, (name, row) in enumerate(zip(names, counts, strict=True)):
        others = [(n, names[to]) for to, n in enumerate(row) if to != at and n]
        most = max(others, default=None, key=lambda one: one[0])
        alt.append(f"{name}: {row[at]} of {sum(row)} correct" + (f", {most[0]} predicted as {most[1]}" if most else ""))
    return "; ".join(alt) + "."


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %" if total else "none"
