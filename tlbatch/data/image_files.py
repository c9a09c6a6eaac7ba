"""Image files as Pillow opens them: pages, orientation, transparency, and damaged metadata."""

import io
import struct
import zlib
from collections.abc import Collection

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from tlbatch.data.wide_pixels import Trait, png_chunks

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF")
"""Pillow's other formats run external programs or are not used for image data sets."""
PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"sBIT", b"IDAT", b"IEND"})
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
    MemoryError, RecursionError, NotImplementedError, AssertionError, Image.DecompressionBombError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
"""Raised by decoders on damaged files."""


class UnreadableImageError(Exception):
    """The bytes are not a complete image; the message says why."""


def without_segments(data: bytes) -> bytes:
    """Return a JPEG without comments and metadata: APP1 to APP13, but not JFIF (APP0) and Adobe (APP14)."""
    place, kept = 2, [data[:2]]
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] not in (b"\xda", b"\xff", b""):
        stop = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if not (0xE1 <= data[place + 1] <= 0xED or data[place + 1] == 0xFE):
            kept.append(data[place:stop])
        place = stop
    return b"".join([*kept, data[place:]])


def check_pixels_of_png(data: bytes) -> None:
    """Raise UnreadableImageError if a check sum of the pixels is wrong, which Pillow does not look at."""
    for kind, chunk in png_chunks(data):
        if kind == b"IDAT" and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise UnreadableImageError("the check sum of its pixels is wrong")


def has_header(data: bytes) -> bool:
    """Return whether Pillow can open a file."""
    try:
        opened_file(data).close()
    except BROKEN:
        return False
    return True


def only_chunks(data: bytes, kept: Collection[bytes]) -> bytes:
    """Return a PNG with some kinds of chunks alone; ValueError if its end is missing."""
    chunks = list(png_chunks(data))
    if not chunks or chunks[-1][0] != b"IEND":
        raise ValueError("the end is missing")
    return data[:8] + b"".join(chunk for kind, chunk in chunks if kind in kept)


def opened_file(data: bytes) -> Image.Image:
    """Open a file, without decoding its pixels; an error of `BROKEN` if it is none of the known formats."""
    return Image.open(io.BytesIO(data), formats=_FORMATS if "HEIF" not in Image.OPEN else (*_FORMATS, "HEIF"))


def to_largest_page(image: Image.Image) -> Trait:
    """Go to the largest page of a TIFF, the first of several; of other files, the first frame is read."""
    try:
        num_pages: int = getattr(image, "n_frames", 1)
    except BROKEN:
        num_pages = 1
    if num_pages <= 1:
        return Trait.NONE
    if image.format != "TIFF":
        return Trait.PAGES
    areas = []
    for page in range(num_pages):
        image.seek(page)
        areas.append(image.width * image.height)
    largest = areas.index(max(areas))
    image.seek(largest)
    return Trait.PAGES | (Trait.LATER_PAGE if largest else Trait.NONE)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright, 0 is none that can be read."""
    try:
        found = image.getexif().get(0x0112, 1)
    except BROKEN:
        return 0
    return found if isinstance(found, int) else 0


def make_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image by its EXIF orientation."""
    how = _TURNS.get(orientation)
    return image if how is None else image.transpose(how)


def is_usual(image: Image.Image) -> bool:
    """Return whether an image is upright in 8-bit RGB or grey."""
    return image.mode in {"RGB", "L"} and orientation_of(image) == 1


def to_rgb(image: Image.Image) -> tuple[Image.Image, Trait]:
    """Convert to RGB, transparency composed on white."""
    if image.mode not in {"RGBA", "LA", "PA", "RGBa", "La"} and "transparency" not in image.info:
        return image.convert("RGB"), Trait.NONE
    rgba = image.convert("RGBA")
    is_opaque = np.asarray(rgba)[..., 3].min() == 255
    composed = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return composed, Trait.NONE if is_opaque else Trait.ALPHA


def dropped_channels(image: Image.Image) -> Trait:
    """Return whether a TIFF has channels that Pillow does not read."""
    if not isinstance(image, TiffImageFile):
        return Trait.NONE
    colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(image.tag_v2.get(262, 1), 1)
    has_alpha = any(one in (1, 2) for one in image.tag_v2.get(338, ()))
    return Trait.DROPPED if image.tag_v2.get(277, 1) > colours + has_alpha else Trait.NONE
