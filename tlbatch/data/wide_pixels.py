"""Images of more than 8 bits a sample: their values as they are, and the range that their file states."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntFlag
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

if TYPE_CHECKING:
    from tifffile import TiffPage

Limits = tuple[float, float]
"""The values that become 0 and 255."""
Values = npt.NDArray[Any]
_TYPE_BITS = frozenset({8, 16, 32, 64})
"""Bits of the usual number types: a file of so many bits says nothing about its range."""


class Trait(IntFlag):
    """Properties of an image file that its reader counts."""

    NONE = 0
    WIDE = 1
    """More than 8 bits a sample."""
    NO_RANGE = 2
    """Wide, and the file does not state its range."""
    PAGES = 4
    """Several pages or frames, of which one is read."""
    LATER_PAGE = 8
    """That page is not the first."""
    DROPPED = 16
    """Channels beyond colour and transparency, which are not read."""
    ALPHA = 32
    """Transparency, which is composed on white."""
    FLOAT = 64
    """RawPixels are floating-point numbers."""


class NoRangeError(Exception):
    """An image needs a range of values, and none is known; the message describes the image."""


@dataclass(frozen=True)
class RawPixels:
    """The samples of an image file."""

    values: Values
    """Numbers of any type, (height, width) or (height, width, 3)."""
    traits: Trait = Trait.NONE
    stated: Limits | None = None
    """Limits that the file states."""
    alpha: npt.NDArray[np.float64] | None = None
    """Opacity in 0..1, (height, width)."""
    premultiplied: bool = False
    """Whether the values are already multiplied by the opacity."""
    inverted: bool = False
    """Whether the lowest value is white."""
    orientation: int = 1
    """As in EXIF, of a TIFF."""

    def to_rgb(self, known: Limits | None) -> npt.NDArray[np.uint8]:
        """Return uint8 RGB (height, width, 3): linear between the ends of the range, which become 0 and 255.

        The range is the stated one, or else the known one. Values beyond it are clipped, and what is no number becomes
        0. Transparency is composed on white.

        Raises NoRangeError if there is neither, and the samples have more than 8 bits.
        """
        grey = self.values if self.values.dtype == np.uint8 else self._scaled(self.stated or known)
        if self.inverted:
            grey = 255 - grey
        rgb = np.repeat(grey[..., None], 3, axis=2) if grey.ndim == 2 else grey
        if self.alpha is None:
            return np.ascontiguousarray(rgb)
        opacity = self.alpha[..., None]
        mixed = rgb * (1 if self.premultiplied else opacity) + 255 * (1 - opacity)
        return mixed.round().clip(0, 255).astype(np.uint8)

    def _scaled(self, limits: Limits | None) -> npt.NDArray[np.uint8]:
        if limits is None:
            kind = "floating-point numbers" if self.values.dtype.kind == "f" else f"{8 * self.values.itemsize} bits"
            raise NoRangeError(f"samples of {kind}, and no range of their values is known")
        if self.values.dtype == np.uint16:
            return _linear(np.arange(1 << 16), limits)[self.values]
        return _linear(self.values, limits)


def _linear(values: Values, limits: Limits) -> npt.NDArray[np.uint8]:
    low, high = limits
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).round().clip(0, 255).astype(np.uint8)


def read_wide(data: bytes, image: Image.Image) -> RawPixels | None:
    """Return the samples of an opened file at its present page, or None if they have 8 bits.

    Pillow reads colours of 16 bits as 8, so these are read by other decoders.
    """
    match image.format:
        case "PNG" if data[24] == 16:
            return _png(data)
        case "TIFF" if isinstance(image, TiffImageFile) and _is_wide_tiff(image):
            return read_tiff(data, page=image.tell())
        case "JPEG2000":
            return _jpeg2000(data)
        case "PPM":
            return _netpbm(data, image)
    if image.mode.startswith(("I", "F")):
        return raw_pixels(Channels(np.asarray(image)), None)
    return None


class Channels(NamedTuple):
    """Colour or grey (height, width[, 3]), opacity, and what was found in dividing them."""

    values: Values
    alpha: npt.NDArray[np.float64] | None = None
    traits: Trait = Trait.NONE


def raw_pixels(
    found: Channels,
    stated: Limits | None,
    *,
    traits: Trait = Trait.NONE,
    premultiplied: bool = False,
    inverted: bool = False,
) -> RawPixels:
    """Return the samples of a file, with the traits of their type beside the given ones."""
    values, alpha, of_channels = found
    traits |= of_channels
    if values.dtype != np.uint8:
        traits |= Trait.WIDE | (Trait.NONE if stated else Trait.NO_RANGE)
        traits |= Trait.FLOAT if values.dtype.kind == "f" else Trait.NONE
    return RawPixels(values, traits, stated, alpha, premultiplied, inverted)


def split_channels(samples: Values, *, alpha_at: int | None = None) -> Channels:
    """Separate colour and opacity of samples (height, width, channels), and drop the rest.

    Three channels or more are red, green, blue and others; fewer are grey and others.
    """
    num = samples.shape[2]
    colours = 3 if num - (alpha_at is not None) >= 3 else 1
    traits = Trait.DROPPED if num > colours + (alpha_at is not None) else Trait.NONE
    alpha = None
    if alpha_at is not None:
        top = np.iinfo(samples.dtype).max if samples.dtype.kind in "ui" else 1
        alpha, traits = samples[..., alpha_at].astype(np.float64) / top, traits | Trait.ALPHA
    return Channels(samples[..., 0] if colours == 1 else samples[..., :3], alpha, traits)


def split_usual(samples: Values) -> Channels:
    """Separate the samples of a decoder that gives grey, grey and opacity, RGB, or RGB and opacity."""
    if samples.ndim == 2:
        return Channels(samples)
    num = samples.shape[2]
    return split_channels(samples, alpha_at=num - 1 if num in (2, 4) else None)


def _png(data: bytes) -> RawPixels:
    import imagecodecs  # noqa: PLC0415 (for files of few kinds)

    found = split_usual(imagecodecs.png_decode(data))
    bits = next((max(chunk[8:-4]) for kind, chunk in png_chunks(data) if kind == b"sBIT" and len(chunk) > 12), 16)
    return raw_pixels(found, _png_range(found.values, bits))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and bytes of the chunks of a PNG, as far as they are complete."""
    place = 8
    while place + 12 <= len(data):
        stop = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if stop <= len(data):
            yield data[place + 4 : place + 8], data[place:stop]
        place = stop


def _png_range(values: Values, bits: int) -> Limits | None:
    """Return the range of 16-bit samples with so many significant bits (sBIT); None if that says nothing.

    The PNG specification asks writers to scale samples to all 16 bits, by repeating the high bits or with zeros, but
    many write them as they are.
    """
    if not 8 <= bits < 16:
        return None
    shift, top = 16 - bits, (1 << bits) - 1
    high = values >> shift
    written = (high << shift, high << shift | high >> (bits - shift), (high * (65535 / top)).round())
    if any(np.array_equal(values, one) for one in written):
        return 0.0, 65535.0
    return (0.0, float(top)) if values.max(initial=0) <= top else None


def _is_wide_tiff(image: TiffImageFile) -> bool:
    """Return whether samples have more than 8 bits; ink (CMYK), Lab and YCbCr fill their range by definition."""
    bits, kinds = image.tag_v2.get(258, (1,)), image.tag_v2.get(339, (1,))
    wide = max(np.atleast_1d(bits)) > 8 or 3 in np.atleast_1d(kinds)
    return bool(wide and image.tag_v2.get(262, 1) in (0, 1, 2))


def read_tiff(data: bytes, *, page: int | None = None, max_pixels: int | None = None) -> RawPixels:
    """Return the samples of one page of a TIFF, the largest if none is named, unless it has too many pixels.

    Raises ValueError, or an error of the decoder, if they cannot be read.
    """
    import tifffile  # noqa: PLC0415 (for files of few kinds)

    tifffile.logger().setLevel(logging.CRITICAL)  # it lists what is odd in a file, which is decoded or refused here
    with tifffile.TiffFile(BytesIO(data)) as file:
        pages: list[Any] = list(file.pages)
        at = max(range(len(pages)), key=lambda n: (pages[n].imagewidth * pages[n].imagelength, -n), default=0)
        chosen = pages[at if page is None else page].aspage()
        if max_pixels is not None and chosen.imagewidth * chosen.imagelength > max_pixels:
            raise ValueError("too many pixels")
        if any(start + size > len(data) for start, size in zip(chosen.dataoffsets, chosen.databytecounts, strict=True)):
            raise ValueError("the file is truncated")
        samples = _channels_last(chosen)
        tags = {tag.code: tag.value for tag in chosen.tags}
    photometric = int(tags.get(262, 1))
    if photometric not in (0, 1, 2):
        raise ValueError(f"samples of {tags.get(258)} bits with photometric interpretation {photometric} are not read")
    extra = [int(one) for one in np.atleast_1d(tags.get(338, ()))]
    opacity = next((number for number, one in enumerate(extra) if one in (1, 2)), None)
    alpha_at = None if opacity is None else samples.shape[2] - len(extra) + opacity
    found = split_channels(samples, alpha_at=alpha_at)
    traits = Trait.NONE
    if len(pages) > 1 and page is None:
        traits |= Trait.PAGES | (Trait.LATER_PAGE if at else Trait.NONE)
    made = raw_pixels(
        found, _tiff_range(tags, found.values), traits=traits,
        premultiplied=opacity is not None and extra[opacity] == 1, inverted=photometric == 0,
    )  # fmt: skip
    return replace(made, orientation=int(tags.get(274, 1)))


def _channels_last(page: "TiffPage") -> Values:
    """Return the samples of a page, (height, width, channels)."""
    samples: Values = np.asarray(page.asarray())
    match page.axes:
        case "YX":
            return samples[..., None]
        case "YXS":
            return samples
        case "SYX":
            return samples.transpose(1, 2, 0)
    raise ValueError(f"a page with the axes {page.axes} is no image")


def _tiff_range(tags: dict[int, Any], values: Values) -> Limits | None:
    """Return the range by the tags SMinSampleValue and SMaxSampleValue, or by unusual BitsPerSample."""
    low, high = (tags.get(code) for code in (340, 341))
    if high is not None and (low is not None or values.dtype.kind == "u"):
        limits = float(np.min(low or 0)), float(np.max(high))
        return limits if np.isfinite(limits).all() and limits[0] < limits[1] else None
    bits = int(np.max(tags.get(258, 1)))
    return (0.0, float((1 << bits) - 1)) if values.dtype.kind == "u" and bits not in _TYPE_BITS else None


def _jpeg2000(data: bytes) -> RawPixels | None:
    """Return the samples if the header of the codestream states more than 8 bits."""
    start = data.find(b"\xff\x4f\xff\x51")
    num = int.from_bytes(data[start + 40 : start + 42], "big")
    depth = max(data[start + 42 : start + 42 + 3 * num : 3], default=0)
    bits, signed = 1 + (depth & 0x7F), depth >= 0x80
    if start < 0 or bits <= 8:
        return None
    import imagecodecs  # noqa: PLC0415 (for files of few kinds)

    found = split_usual(imagecodecs.jpeg2k_decode(data))
    stated = None if bits in _TYPE_BITS else (-float(1 << bits - 1), float((1 << bits - 1) - 1)) if signed else (
        0.0, float((1 << bits) - 1)
    )  # fmt: skip
    return raw_pixels(found, stated)


def _netpbm(data: bytes, image: Image.Image) -> RawPixels | None:
    """Return the samples if the header states a maximum above 255; Pillow scales the others by it."""
    if image.mode == "F":
        return raw_pixels(Channels(np.asarray(image)), None)
    header = re.match(rb"P[2356]\s+(?:#[^\n]*\n\s*)*(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s", data)
    if header is None or int(header[3]) <= 255:
        return None
    width, height, top = map(int, header.groups())
    stated = (0.0, float(top)) if top < (1 << 16) - 1 else None
    colours = 3 if data[1:2] in b"36" else 1
    num = width * height * colours
    if data[1:2] in b"23":
        values = np.array(data[header.end() :].split()[:num], np.uint16)
    else:
        values = np.frombuffer(data, ">u2", num, header.end()).astype(np.uint16)
    return raw_pixels(Channels(values.reshape((height, width, 3) if colours == 3 else (height, width))), stated)
