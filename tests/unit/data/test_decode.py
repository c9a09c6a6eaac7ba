import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlbatch.data.decode import UnreadableImageError, decode, shrink, to_shard


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    wave = np.linspace(0, 6, 96)
    pixels = np.stack([np.add.outer(np.sin(wave), np.cos(wave[:64])) * 60 + 120 + c for c in (0, 20, 40)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_formats_decode_to_nearly_the_same_rgb(photo: Image.Image, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    rgb = decode(encoded(photo, kind, **options))
    assert rgb.shape == (96, 64, 3)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - np.asarray(photo)).mean() < (8 if kind == "GIF" else 2)


def test_a_large_jpeg_is_decoded_at_a_fraction_never_below_the_side_asked_for(photo: Image.Image) -> None:
    big = encoded(photo.resize((640, 960)), "JPEG")
    assert decode(big, short_side=100).shape == (240, 160, 3)
    assert decode(big, short_side=161).shape == (480, 320, 3)
    assert decode(big, short_side=641).shape == (960, 640, 3)
    assert decode(big).shape == (960, 640, 3)


def test_exif_rotation_cmyk_sixteen_bits_and_alpha_are_converted_by_rule(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(photo, "JPEG", exif=exif)).shape == (64, 96, 3)
    assert decode(encoded(photo.convert("CMYK"), "JPEG")).shape == (96, 64, 3)
    grey = Image.fromarray(np.full((8, 8), 36249, dtype=np.uint16))
    assert set(decode(encoded(grey, "PNG")).ravel().tolist()) == {141}
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert set(decode(encoded(clear, "PNG")).ravel().tolist()) == {255}


def corrupt_scan(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\x00" * 40 + data[middle + 40 :]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: data[:-100], id="last 100 bytes"),
        pytest.param(corrupt_scan, id="nulls in the scan"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"<html>not found</html>", id="web page"),
    ],
)
def test_broken_jpegs_are_errors_and_never_grey_pictures(photo: Image.Image, broken: Callable[[bytes], bytes]) -> None:
    data = encoded(photo.resize((320, 480)), "JPEG", quality=90)
    with pytest.raises(UnreadableImageError):
        decode(broken(data))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UnreadableImageError):
        decode(encoded(Image.new("1", (30000, 30000)), "PNG"))


def test_small_jpegs_enter_the_shard_untouched_and_large_ones_scaled(tmp_path: Path, photo: Image.Image) -> None:
    small, large, png = tmp_path / "s.jpeg", tmp_path / "l.JPG", tmp_path / "p.png"
    photo.save(small)
    photo.resize((300, 450)).save(large)
    photo.save(png)
    assert to_shard(small, resize=64) == ("jpg", small.read_bytes())
    assert to_shard(large, resize=0) == ("jpg", large.read_bytes())
    ending, data = to_shard(large, resize=100)
    assert (ending, decode(data).shape) == ("jpg", (150, 100, 3))
    assert to_shard(png, resize=64)[0] == "jpg"


def test_shrink_keeps_the_aspect_and_never_enlarges() -> None:
    assert shrink(np.zeros((200, 100, 3), np.uint8), 50).shape == (100, 50, 3)
    assert shrink(np.zeros((20, 10, 3), np.uint8), 50).shape == (20, 10, 3)
