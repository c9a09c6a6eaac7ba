"""Decode image files to RGB, strictly: a damaged file is an error, never a partly grey image."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

Rgb = npt.NDArray[np.uint8]
MAX_PIXELS = 178_956_970
"""Pillow's limit against decompression bombs, applied here to JPEG too."""
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF")
"""Pillow's other formats run external programs or are not used for image data sets."""
MAX_SIDE = 65_500


class UnreadableImageError(Exception):
    """The bytes are not a complete image; the message says why."""


def decode(data: bytes, *, short_side: int = 0, max_pixels: int = MAX_PIXELS) -> Rgb:
    """Decode an image file; of an animation, its first frame.

    Parameters
    ----------
    data
        The bytes of the file.
    short_side
        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side stays at least this many
        pixels; 0 keeps the full size.
    max_pixels
        Images with more pixels (width times height) are refused before decoding.

    Returns
    -------
    uint8 array of shape (height, width, 3), upright (EXIF orientation applied).

    Raises
    ------
    UnreadableImageError
        When the data are truncated, corrupt, not an image, or too large.
    """
    return open_image(data, short_side=short_side, max_pixels=max_pixels)[0]


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
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.format in {"JPEG", "MPO"} and _is_usual(image)
    except _BROKEN:
        return False


def reduction(length: float, wanted: int) -> int:
    """Return the largest reduction of a JPEG (8, 4, 2 or 1) that leaves a length at least the wanted pixels."""
    return next((factor for factor in (8, 4, 2) if wanted and length // factor >= wanted), 1)


def open_image(data: bytes, *, short_side: int, max_pixels: int) -> tuple[Rgb, str, bool, int]:
    """Return the pixels, the format, whether it is upright in 8-bit RGB or grey, and the short side of the file."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise UnreadableImageError(f"{size} pixels are more than data.max_pixels")  # noqa: TRY301
            kind = "JPEG" if image.format == "MPO" else image.format or ""
            usual = _is_usual(image)
            side = min(image.size)
            if usual and kind == "JPEG":
                return decode_plain(data, image.size, factor=reduction(side, short_side)), kind, usual, side
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image))), kind, usual, side
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError("no image of a known format") from None
    except _BROKEN as error:
        raise UnreadableImageError(" ".join(str(error).split()) or type(error).__name__) from None


def _is_usual(image: Image.Image) -> bool:
    """Return whether an image is upright in 8-bit RGB or grey."""
    return image.mode in {"RGB", "L"} and bool(image.getexif().get(0x0112, 1) == 1)


_BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
    MemoryError, RecursionError, NotImplementedError, AssertionError, Image.DecompressionBombError,
    struct.error, zlib.error,
)  # fmt: skip
"""Raised by Pillow's decoders on damaged files."""


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits a pixel: convert() would clip to white
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(wide: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Convert 16 bits by dividing by 257, so white stays white; floats range to 1, or to 255 if any exceeds 1."""
    if wide.dtype.kind == "f":
        whole = np.nan_to_num(wide.astype(np.float64), posinf=0, neginf=0)
        return (whole * (1 if whole.max(initial=0) > 1 else 255)).clip(0, 255).astype(np.uint8)
    return (wide.astype(np.int64) // 257).clip(0, 255).astype(np.uint8)


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
