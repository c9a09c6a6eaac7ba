"""Decode image files to RGB, strictly: a damaged file is an error, never a partly grey image."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from tlbatch.data.image_files import (
    BROKEN,
    PIXEL_CHUNKS,
    TIFF_STARTS,
    UnreadableImageError,
    check_pixels_of_png,
    dropped_channels,
    has_header,
    is_usual,
    make_upright,
    only_chunks,
    opened_file,
    orientation_of,
    to_largest_page,
    to_rgb,
    without_segments,
)
from tlbatch.data.more_formats import is_dicom, is_jxl, jxl_size, read_dicom, read_jxl, register_heic
from tlbatch.data.wide_pixels import Limits, NoRangeError, RawPixels, Trait, read_tiff, read_wide

Rgb = npt.NDArray[np.uint8]
MAX_PIXELS = 178_956_970
"""Pillow's limit against decompression bombs, applied here to JPEG too."""
MAX_SIDE = 65_500


def decode(data: bytes, *, short_side: int = 0, max_pixels: int = MAX_PIXELS, value_range: Limits | None = None) -> Rgb:
    """Decode an image file: of an animation its first frame, of several pages the largest.

    Parameters
    ----------
    data
        The bytes of the file.
    short_side
        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side stays at least this many
        pixels; 0 keeps the full size.
    max_pixels
        Images with more pixels (width times height) are refused before decoding.
    value_range
        The values that become 0 and 255 in an image of more than 8 bits whose file does not state them.

    Returns
    -------
    uint8 array of shape (height, width, 3), upright (EXIF orientation applied), transparency composed on white.

    Raises
    ------
    UnreadableImageError
        When the data are truncated, corrupt, not an image, or too large, or need a range that is not known.
    """
    try:
        return open_image(data, short_side=short_side, max_pixels=max_pixels, value_range=value_range).rgb
    except NoRangeError as error:
        raise UnreadableImageError(str(error)) from None


def plain_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of a JPEG, from its header; UnreadableImageError if the header is invalid."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise UnreadableImageError(str(error)) from None
    return width, height


def decode_plain(data: bytes, size: tuple[int, int], *, factor: int = 1) -> Rgb:
    """Decode an upright RGB or grey JPEG at 1, 1/2, 1/4 or 1/8 of its size (width, height), without further checks.

    Raises UnreadableImageError if the data are truncated or corrupt.
    """
    # simplejpeg takes the smallest factor that reaches these minima; 5/8 to 7/8 have no fast path.
    least = {"min_height": -(-size[1] // factor), "min_width": -(-size[0] // factor)} if factor > 1 else {}
    try:
        rgb: Rgb = simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError as error:
        raise UnreadableImageError(str(error)) from None
    return rgb


def is_plain(data: bytes) -> bool:
    """Return whether `decode_plain` can read an image, by its header."""
    try:
        with opened_file(data) as image:
            return image.format in {"JPEG", "MPO"} and is_usual(image)
    except BROKEN:
        return False


def reduction(length: float, wanted: int) -> int:
    """Return the largest reduction of a JPEG (8, 4, 2 or 1) that leaves a length at least the wanted pixels."""
    return next((factor for factor in (8, 4, 2) if wanted and length // factor >= wanted), 1)


@dataclass(frozen=True)
class Opened:
    """A decoded image file."""

    rgb: Rgb
    kind: str
    """Pillow's name of the format."""
    usual: bool
    """Whether it is upright, in 8-bit RGB or grey."""
    side: int
    """Short side of the file in pixels."""
    traits: Trait


def open_image(
    data: bytes, *, short_side: int = 0, max_pixels: int = MAX_PIXELS, value_range: Limits | None = None
) -> Opened:
    """Decode an image file as `decode` does, and describe it.

    Raises UnreadableImageError if it cannot be decoded, or NoRangeError if it needs a range of values.
    """
    with _refusing():
        other = _other_format(data, max_pixels)
        if other is not None:
            return _shown(*other, value_range)
        try:
            return _open_by_pillow(data, short_side, max_pixels, value_range)
        except BROKEN:
            again = _second_try(data, max_pixels, value_range)
            if again is None:
                raise
            return again


def open_raw(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[RawPixels | None, Trait]:
    """Return the samples of an image of more than 8 bits as they are in its file, None for others, and its traits.

    The transparency and the channels of images of 8 bits are not looked at.

    Raises UnreadableImageError if they cannot be decoded.
    """
    with _refusing():
        other = _other_format(data, max_pixels)
        if other is not None:
            return other[1], other[1].traits
        try:
            with opened_file(data) as image:
                pages = to_largest_page(image)
                _check_size(image.size, max_pixels)
                wide = read_wide(data, image)
                return wide, pages if wide is None else pages | wide.traits
        except BROKEN:
            if not data.startswith(TIFF_STARTS):
                raise
            raw = read_tiff(data, max_pixels=max_pixels)
            return raw, raw.traits


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn the errors of decoders into UnreadableImageError."""
    try:
        yield
    except UnidentifiedImageError:
        raise UnreadableImageError("no image of a known format") from None
    except BROKEN as error:
        raise UnreadableImageError(" ".join(str(error).split()) or type(error).__name__) from None


def _shown(kind: str, raw: RawPixels, value_range: Limits | None) -> Opened:
    """Return raw pixels as an image."""
    rgb = np.asarray(make_upright(Image.fromarray(raw.to_rgb(value_range)), raw.orientation))
    return Opened(rgb, kind, usual=False, side=min(rgb.shape[:2]), traits=raw.traits)


def _other_format(data: bytes, max_pixels: int) -> tuple[str, RawPixels] | None:
    """Return format and samples of a file that Pillow does not read."""
    if is_dicom(data):
        return "dcm", read_dicom(data, max_pixels)
    if is_jxl(data):
        _check_size(jxl_size(data), max_pixels)
        return "jxl", read_jxl(data)
    register_heic(data)
    return None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise UnreadableImageError(f"{size[0]} x {size[1]} pixels are more than data.max_pixels")


def _open_by_pillow(data: bytes, short_side: int, max_pixels: int, value_range: Limits | None) -> Opened:
    with opened_file(data) as image:
        pages = to_largest_page(image)
        _check_size(image.size, max_pixels)
        kind = "JPEG" if image.format == "MPO" else image.format or ""
        usual, side = is_usual(image), min(image.size)
        if usual and kind == "JPEG":
            factor = reduction(side, short_side)
            try:
                return Opened(decode_plain(data, image.size, factor=factor), kind, usual, side, pages)
            except UnreadableImageError:
                rgb = decode_plain(without_segments(data), image.size, factor=factor)
                return Opened(rgb, kind, usual=False, side=side, traits=pages)
        if kind == "PNG":
            check_pixels_of_png(data)
        wide = read_wide(data, image)
        if wide is None:
            image.load()
            shown, traits = to_rgb(image)
            traits |= dropped_channels(image)
        else:
            shown, traits = Image.fromarray(wide.to_rgb(value_range)), wide.traits
        upright = make_upright(shown, orientation_of(image))
        return Opened(np.asarray(upright), kind, usual and wide is None, side, pages | traits)


def _second_try(data: bytes, max_pixels: int, value_range: Limits | None) -> Opened | None:
    """Decode a file whose metadata are damaged, or a TIFF that Pillow cannot read; None if that fails too."""
    with suppress(UnreadableImageError, *BROKEN):
        if data.startswith(TIFF_STARTS):
            return _shown("TIFF", read_tiff(data, max_pixels=max_pixels), value_range)
        if data.startswith(b"\xff\xd8") and not has_header(data):
            bare = without_segments(data)
            size = plain_size(bare)
            _check_size(size, max_pixels)
            return Opened(decode_plain(bare, size), "JPEG", usual=False, side=min(size), traits=Trait.NONE)
    for kept in ({b"eXIf", *PIXEL_CHUNKS}, PIXEL_CHUNKS) if data.startswith(b"\x89PNG") else ():
        with suppress(UnreadableImageError, *BROKEN):
            return replace(_open_by_pillow(only_chunks(data, kept), 0, max_pixels, value_range), usual=False)
    return None


def shrink(rgb: Rgb, short_side: int) -> Rgb:
    """Scale down to the given short side; smaller images are returned unchanged."""
    height, width = rgb.shape[:2]
    if min(height, width) <= short_side:
        return rgb
    scale = short_side / min(height, width)
    return resized(rgb, (max(short_side, round(height * scale)), max(short_side, round(width * scale))))


def resized(rgb: Rgb, size: tuple[int, int]) -> Rgb:
    """Scale to (height, width), bilinear with antialiasing."""
    import torch  # noqa: PLC0415 (not needed by a shard stage that only copies files)

    # Permuted like this, torch recognises channels-last memory and keeps the layout.
    pixels = torch.from_numpy(rgb if rgb.flags.writeable else rgb.copy())[None].permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1)[0].contiguous().numpy()
