"""From the bytes of an image file to RGB, strictly: what is broken is an error, never a grey picture."""

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

Rgb = npt.NDArray[np.uint8]
MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs, here for JPEG too."""


class UnreadableImageError(Exception):
    """The bytes are no whole image; the text says why."""


def decode(data: bytes, *, short_side: int = 0) -> Rgb:
    """Decode an image file.

    Parameters
    ----------
    data
        The bytes of the file.
    short_side
        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side stays at least this many
        pixels; 0 keeps the full size.

    Returns
    -------
    uint8 array of shape (height, width, 3), upright (EXIF orientation applied).

    Raises
    ------
    UnreadableImageError
        When the data are truncated, corrupt, no image, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                _refuse_huge(image)
                upright = image.getexif().get(0x0112, 1) == 1
                if image.format == "JPEG" and image.mode in {"RGB", "L"} and upright:
                    return _decode_jpeg(data, image.size, short_side)
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except UnreadableImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        raise UnreadableImageError(" ".join(str(error).split()) or type(error).__name__) from None


def _refuse_huge(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels are too many")


def _decode_jpeg(data: bytes, size: tuple[int, int], short_side: int) -> Rgb:
    width, height = size
    factor = next((f for f in (8, 4, 2) if short_side and min(size) // f >= short_side), 1)
    # simplejpeg takes the smallest factor that reaches these minima; 5/8 to 7/8 have no fast path.
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    rgb: Rgb = simplejpeg.decode_jpeg(data, "RGB", **least)
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip to white
        wide = np.asarray(image, dtype=np.uint32)
        return Image.fromarray((wide // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def shrink(rgb: Rgb, short_side: int) -> Rgb:
    """Scale down so that the short side has so many pixels; smaller images are left alone."""
    height, width = rgb.shape[:2]
    if min(height, width) <= short_side:
        return rgb
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC, reducing_gap=None))


def to_shard(path: Path, *, resize: int) -> tuple[str, bytes]:
    """Read one source image and return what goes into the shard: ending and bytes.

    Every image is decoded once, so that a broken one is found here. With ``resize = 0``, or when a JPEG is no
    larger than asked for, the file's own bytes are kept.

    Raises
    ------
    UnreadableImageError
        When the file cannot be read or decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from None
    rgb = decode(data, short_side=resize)
    ending = path.suffix.lower().lstrip(".").replace("jpeg", "jpg")
    if resize == 0 or (ending == "jpg" and _jpeg_fits(data, resize)):
        return ending, data
    return "jpg", simplejpeg.encode_jpeg(np.ascontiguousarray(shrink(rgb, resize)), quality=92, colorspace="RGB")


def _jpeg_fits(data: bytes, resize: int) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.format == "JPEG" and min(image.size) <= resize
