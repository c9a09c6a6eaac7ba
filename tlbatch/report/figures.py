"""Pictures of filters, activations and images, as PNG or JPEG; the same values give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from math import ceil, isqrt

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tlbatch.core.typing import Floats
from tlbatch.report.page import Picture

_TILE, _GAP, _COLUMNS = 56, 2, 3
_SIDE = 8 * (_TILE + _GAP) + _GAP
"""Side of a mosaic of 64 channels."""
_MOST_CHANNELS, _MOST_FILTERS, _THUMBNAIL = 64, 144, 224
_VIRIDIS, _INFERNO = ("#440154", "#21918c", "#fde725"), ("#000004", "#bc3754", "#fcffa4")
"""Colours of low, middle and high values of these colour maps."""
Rgb = npt.NDArray[np.uint8]


def draw_activations(image: Rgb, maps: Mapping[str, Floats]) -> Picture:
    """Draw an image and the 64 channels that vary most at some layers, each scaled from low, dark, to high.

    Parameters
    ----------
    image
        uint8, (size, size, 3).
    maps
        (channels, h, w), by the name of the layer.
    """
    panels, captions = [Image.fromarray(image).resize((_SIDE, _SIDE))], ["the image"]
    for name, values in maps.items():
        varied = np.sort(np.argsort(-values.std(axis=(1, 2)), kind="stable")[:_MOST_CHANNELS])
        panels.append(_mosaic([_scaled(values[at]) for at in varied]).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
        captions.append(f"{name} ({len(varied)} of {len(values)} channels, {values.shape[1]} x {values.shape[2]})")
    columns, step = min(_COLUMNS, len(panels)), _SIDE + 8 * _GAP
    canvas = Image.new("RGB", (columns * step, ceil(len(panels) / columns) * step), "white")
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        canvas.paste(panel, (column * step, row * step))
    caption = f"From left to right, top to bottom: {'; '.join(captions)}. In each channel, high values are bright."
    return Picture("activations", "Activations of the network for one test image", caption, _png(canvas))


def draw_filters(filters: Floats) -> Picture:
    """Draw the first 144 filters of a convolution on RGB input, (n, k, k, 3), from 0 to 1; n > 0."""
    shown = [Image.fromarray((values * 255).round().astype(np.uint8)) for values in filters[:_MOST_FILTERS]]
    caption = f"{len(shown)} of {len(filters)} filters, {filters.shape[1]} x {filters.shape[2]}, each scaled by itself."
    return Picture("filters", "First-layer filters of the network", caption, _png(_mosaic(shown)))


def thumbnail(image: Rgb, cam: Floats | None = None) -> bytes:
    """Return a small JPEG of an image, with a heat map (h, w) from 0 to 1 overlaid if given."""
    shown = Image.fromarray(image) if cam is None else _overlaid(Image.fromarray(image), cam)
    shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _scaled(values: Floats) -> Image.Image:
    """Colour values from the 1st to the 99th percentile, or from minimum to maximum where these are equal."""
    low, high = np.quantile(values, (0.01, 0.99))
    low, high = (low, high) if high > low else (values.min(), values.max())
    return _coloured((values.astype(np.float64) - low) / (high - low if high > low else 1), _VIRIDIS)


def _coloured(values: Floats, colours: tuple[str, str, str]) -> Image.Image:
    """Colour values from 0 to 1."""
    grey = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    return ImageOps.colorize(grey, colours[0], colours[2], colours[1])


def _mosaic(images: Sequence[Image.Image]) -> Image.Image:
    """Tile small images into an approximate square."""
    columns, step = isqrt(len(images) - 1) + 1, _TILE + _GAP
    canvas = Image.new("RGB", (columns * step + _GAP, ceil(len(images) / columns) * step + _GAP), "white")
    for number, image in enumerate(images):
        way = Image.Resampling.BOX if image.height > _TILE else Image.Resampling.NEAREST
        row, column = divmod(number, columns)
        canvas.paste(image.resize((_TILE, _TILE), way), (_GAP + column * step, _GAP + row * step))
    return canvas


def _overlaid(image: Image.Image, cam: Floats) -> Image.Image:
    """Overlay the heat map on the grey image, more opaque for higher values."""
    smooth = Image.fromarray(cam.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)
    opacity = Image.fromarray(((0.25 + 0.45 * heat) * 255).round().astype(np.uint8))
    return Image.composite(_coloured(heat, _INFERNO), image.convert("L").convert("RGB"), opacity)
