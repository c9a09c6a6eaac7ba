"""PNG figures of a network's activations, training and errors; the same values give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from math import ceil, isqrt, nan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from tlbatch.config.base import Metric
from tlbatch.core.files import atomic_file
from tlbatch.core.typing import Floats
from tlbatch.runs.strategy import Strategy, Trial

_DPI = 100
_TILE, _GAP = 56, 2
_MOST_CHANNELS, _MOST_FILTERS, _THUMBNAIL = 64, 144, 224
_MOST_COUNTED, _MOST_NAMED = 30, 60
_LONGEST_NAME = 24
_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
"""Ten colours accessible to the colour-blind (Petroff 2021); with two marker shapes, twenty classes."""
_MARKS = "o^"
Rgb = npt.NDArray[np.uint8]


def draw_activations(path: Path, image: Rgb, maps: Mapping[str, Floats]) -> None:
    """Draw an image and the 64 channels that vary most at some layers, each scaled from low, dark, to high.

    Parameters
    ----------
    image
        uint8, (size, size, 3).
    maps
        (channels, h, w), by the name of the layer.
    """
    columns = min(3, len(maps) + 1)
    rows = ceil((len(maps) + 1) / columns)
    figure = _figure(4.6 * columns, 4.9 * rows)
    _show(figure.add_subplot(rows, columns, 1), image, "image")
    for number, (name, values) in enumerate(maps.items(), start=2):
        varied = np.sort(np.argsort(-values.std(axis=(1, 2)), kind="stable")[:_MOST_CHANNELS])
        title = f"{_short(name)}: {len(varied)} of {len(values)} channels, {values.shape[1]} x {values.shape[2]}"
        _show(figure.add_subplot(rows, columns, number), _mosaic([_coloured(values[at]) for at in varied]), title)
    _write(path, figure)


def draw_filters(path: Path, filters: Floats) -> None:
    """Draw the first 144 filters of a convolution on RGB input, (n, k, k, 3), from 0 to 1."""
    if not len(filters):
        _write_note(path, "no convolution on RGB input")
        return
    shown = [(values * 255).round().astype(np.uint8) for values in filters[:_MOST_FILTERS]]
    figure = _figure(6.4, 6.7)
    title = f"{len(shown)} of {len(filters)} filters, {filters.shape[1]} x {filters.shape[2]}"
    _show(figure.add_subplot(), _mosaic(shown), title)
    _write(path, figure)


def draw_curves(path: Path, lines: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    """Draw loss and metric by epoch, from the lines of metrics.jsonl; the best validation score is marked.

    Epochs are counted through all phases; for an epoch repeated after an interruption, the last line counts.
    """
    epochs = list({(line["phase"], line["epoch"]): line for line in lines}.values())
    if not epochs:
        _write_note(path, "no completed epoch")
        return
    figure = _figure(11, 4.2)
    loss, scores = (figure.add_subplot(1, 2, number) for number in (1, 2))
    _curve(loss, epochs, key="loss", colour=0)
    _curve(loss, epochs, key="val_loss", colour=2)
    scored = _curve(scores, epochs, key=f"val_{metric}", colour=2)
    if not np.isnan(scored).all():
        at = int(np.nanargmax(scored))
        label = f"best: {scored[at]:.4f}"
        scores.plot(at + 1, scored[at], "*", color=_COLOURS[0], markersize=14, label=label, zorder=3)
    for axes, name in ((loss, "loss"), (scores, metric.replace("_", " "))):
        _mark_phases(axes, [int(line["phase"]) for line in epochs])
        axes.set(xlabel="epoch", ylabel=name, xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
    _write(path, figure)


def draw_strategy(path: Path, strategy: Strategy) -> None:
    """Draw the scores of probes at each stage of the backbone, and of any candidates, with standard errors."""
    short_list, metric = strategy.short_list[::-1], strategy.metric.replace("_", " ")
    columns = 2 if short_list else 1
    figure = _figure(5.5 * columns, 0.9 + max(4.2, 0.42 * len(short_list)))
    profile = figure.add_subplot(1, columns, 1)
    stages = list(dict.fromkeys(trial.after for trial in strategy.profile))
    for number, fit in enumerate(dict.fromkeys(trial.fit for trial in strategy.profile)):
        own = [trial for trial in strategy.profile if trial.fit == fit]
        at = [stages.index(trial.after) for trial in own]
        profile.errorbar(at, *_scores(own), marker=_MARKS[number], color=_COLOURS[2 * number], capsize=3, label=fit)
    names = [_short(name) for (name,) in stages]
    profile.set_xticks(range(len(stages)), names, rotation=45, ha="right", rotation_mode="anchor")
    profile.set(xlabel="backbone stage", ylabel=metric, title=strategy.scenario)
    profile.legend()
    if short_list:
        tried = figure.add_subplot(1, columns, 2)
        marks = [" (chosen)" if trial.name == strategy.chosen else "" for trial in short_list]
        for row, (trial, mark) in enumerate(zip(short_list, marks, strict=True)):
            score, error = _scores([trial])
            tried.errorbar(score, [row], xerr=error, marker="o", capsize=3, color=_COLOURS[0 if mark else 3])
        names = [_short(trial.name, 40) + mark for trial, mark in zip(short_list, marks, strict=True)]
        tried.set_yticks(range(len(names)), names)
        tried.set(xlabel=metric, ylim=(-0.5, len(names) - 0.5), title=f"on {short_list[0].num_images} held-out images")
    _write(path, figure)


def _scores(trials: Sequence[Trial]) -> tuple[Floats, Floats]:
    values = np.array([np.nan if trial.score is None else trial.score for trial in trials])
    return values, np.array([trial.standard_error for trial in trials])


def thumbnail(image: Rgb, cam: Floats | None = None) -> bytes:
    """Return a small JPEG of an image, with a heat map (h, w) from 0 to 1 overlaid if given."""
    shown = Image.fromarray(image if cam is None else _overlaid(image, cam))
    shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def draw_feature_map(path: Path, points: Floats, labels: npt.NDArray[np.int64], classes: Sequence[str]) -> None:
    """Draw images as points in a plane, coloured by class.

    Parameters
    ----------
    points
        (n, 2).
    labels
        (n,), class indices. Up to 20 classes get colours and a legend, more a colour scale.
    """
    figure = _figure(9, 6.5)
    axes = figure.add_subplot()
    axes.set(xticks=[], yticks=[], title=f"{len(points)} images")
    if len(classes) > len(_COLOURS) * len(_MARKS):
        found = axes.scatter(points[:, 0], points[:, 1], c=labels, s=14, cmap="viridis", vmin=0, vmax=len(classes) - 1)
        figure.colorbar(found, ax=axes, label="class index", ticks=MaxNLocator(integer=True))
    else:
        names = [_short(name) for name in classes]
        marks = []
        for number in range(len(classes)):
            (mark, colour), (x, y) = divmod(number, len(_COLOURS)), points[labels == number].T
            marks.append(axes.scatter(x, y, s=22, color=_COLOURS[colour], marker=_MARKS[mark], alpha=0.85))
        figure.legend(marks, names, loc="outside right upper", frameon=False)
    _write(path, figure)


def draw_confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw a confusion matrix of counts, coloured by the fraction of each true class (row).

    Counts are omitted above 30 classes, names above 60.
    """
    if not classes:
        _write_note(path, "no classes")
        return
    counts = np.asarray(matrix, dtype=np.int64).reshape(len(classes), len(classes))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(12.0, 3.0 + 0.42 * len(classes))
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="fraction of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(classes) <= _MOST_NAMED:
        names = [_short(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), names, fontsize=8)
    if len(classes) <= _MOST_COUNTED:
        for row, column in np.argwhere(counts).tolist():
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=7)
    _write(path, figure)


def _figure(width_in: float, height_in: float) -> Figure:
    with style.context("default"):  # regardless of the user's matplotlibrc
        return Figure((width_in, height_in), dpi=_DPI, layout="constrained")


def _write(path: Path, figure: Figure) -> None:
    with style.context("default"), atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})


def _write_note(path: Path, text: str) -> None:
    figure = _figure(4, 1)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    _write(path, figure)


def _show(axes: Axes, image: Rgb, title: str) -> None:
    axes.imshow(image)
    axes.set_axis_off()
    axes.set_title(_plain(title), fontsize=10)


def _curve(axes: Axes, epochs: Sequence[Mapping[str, Any]], *, key: str, colour: int) -> npt.NDArray[np.float64]:
    """Draw one value per epoch; NaN where it is undefined."""
    found = [line.get(key) for line in epochs]
    values = np.array([nan if value is None else float(value) for value in found])
    label = "validation" if key.startswith("val_") else "training"
    axes.plot(range(1, len(values) + 1), values, ".-", color=_COLOURS[colour], label=label)
    return values


def _mark_phases(axes: Axes, phases: Sequence[int]) -> None:
    for before in range(1, len(phases)):
        if phases[before] != phases[before - 1]:
            axes.axvline(before + 0.5, color="grey", linestyle=":", linewidth=1)
    if len(set(phases)) > 1:
        for phase in sorted(set(phases)):
            centre = 1 + float(np.flatnonzero(np.array(phases) == phase).mean())
            axes.text(centre, 1.01, f"phase {phase}", ha="center", transform=axes.get_xaxis_transform(), color="grey")


def _coloured(values: Floats) -> Rgb:
    """Colour values from the 1st to the 99th percentile, or from minimum to maximum where these are equal."""
    low, high = np.quantile(values, (0.01, 0.99))
    low, high = (low, high) if high > low else (values.min(), values.max())
    scaled = (values.astype(np.float64) - low) / (high - low if high > low else 1)
    return np.asarray(colormaps["viridis"](scaled, bytes=True))[..., :3]


def _mosaic(images: Sequence[Rgb]) -> Rgb:
    """Tile small images into an approximate square."""
    columns = isqrt(len(images) - 1) + 1
    rows = ceil(len(images) / columns)
    step = _TILE + _GAP
    canvas = np.full((rows * step + _GAP, columns * step + _GAP, 3), 255, np.uint8)
    for number, image in enumerate(images):
        way = Image.Resampling.BOX if image.shape[0] > _TILE else Image.Resampling.NEAREST
        top, left = (_GAP + step * place for place in divmod(number, columns))
        tile = np.asarray(Image.fromarray(image).resize((_TILE, _TILE), way))
        canvas[top : top + _TILE, left : left + _TILE] = tile
    return canvas


def _overlaid(image: Rgb, cam: Floats) -> Rgb:
    """Overlay the heat map on the grey image, more opaque for higher values."""
    height, width = image.shape[:2]
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    smooth = Image.fromarray(cam.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)
    colours = np.asarray(colormaps["inferno"](heat.astype(np.float64)))[..., :3] * 255
    opacity = (0.25 + 0.45 * heat)[..., None]
    return np.asarray((grey * (1 - opacity) + colours * opacity).round(), dtype=np.uint8)


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    return _plain(name if len(name) <= longest else f"{name[: longest - 3]}...")


def _plain(text: str) -> str:
    """Escape text so that matplotlib does not parse it as a formula."""
    return text.replace("$", r"\$")
