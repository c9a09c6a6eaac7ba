"""Encode images for shards: pre-processed and resized once, before training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from tlbatch.config.data import StepName
from tlbatch.data.decode import MAX_PIXELS, MAX_SIDE, Rgb, open_image, shrink
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.wide_pixels import Limits, Trait

_QUALITY = 92
_ENDINGS = {"JPEG": "jpg"}
"""Extension in a shard by Pillow's name of the format, where the two differ."""
_STEPS_SCALE = 2
"""The disc may fill only half of the short side, so images for steps are decoded at twice the target size."""


@dataclass(frozen=True)
class ShardImage:
    """An image to be written to a shard."""

    ending: str
    data: bytes
    plain: bool
    """Whether `decode_plain` can read it."""
    rgb: Rgb
    """Pixels, at full or reduced size."""
    traits: Trait
    """Properties of the source file."""


def to_shard(
    data: bytes,
    *,
    resize: int,
    steps: Sequence[StepName] = (),
    max_pixels: int = MAX_PIXELS,
    value_range: Limits | None = None,
) -> ShardImage:
    """Return what goes into the shard for one source image.

    Every image is decoded once, so damaged ones are found here. With ``resize = 0``, and for an upright 8-bit JPEG or
    PNG that is not larger than ``resize`` if there are no steps, the bytes of the file are kept. Raises
    UnreadableImageError if the image cannot be decoded, or a step fails on it; NoRangeError if it needs a range of
    values (see `tlbatch.data.decode.decode`).
    """
    short_side = resize * (_STEPS_SCALE if steps else 1)
    source = open_image(data, short_side=short_side, max_pixels=max_pixels, value_range=value_range)
    rgb, kind, usual = source.rgb, source.kind, source.usual
    if resize == 0 or (source.side <= resize and not steps and usual and kind in {"JPEG", "PNG"}):
        return ShardImage(_ENDINGS.get(kind, kind.lower()), data, usual and kind == "JPEG", rgb, source.traits)
    if steps:
        from tlbatch.data.preprocess import apply_steps  # noqa: PLC0415 (scikit-image takes seconds to import)

        rgb = apply_steps(rgb, steps, size=resize)
    else:
        rgb = shrink(rgb, resize)
    if max(rgb.shape) > MAX_SIDE:
        raise UnreadableImageError(f"{rgb.shape[1]} x {rgb.shape[0]} pixels are too long for a JPEG")
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgb), quality=_QUALITY, colorspace="RGB", colorsubsampling="420"
    )
    return ShardImage("jpg", encoded, plain=True, rgb=rgb, traits=source.traits)
