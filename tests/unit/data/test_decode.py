import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tlbatch.data.decode import decode, is_plain, open_image, shrink
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.shards.encode import to_shard
from tlbatch.data.wide_pixels import Trait


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    wave = np.linspace(0, 6, 96)
    pixels = np.stack([np.add.outer(np.sin(wave), np.cos(wave[:64])) * 60 + 120 + c for c in (0, 20, 40)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_progressive_palette_and_animated_files_are_read(photo: Image.Image) -> None:
    rgb = np.asarray(photo).astype(int)
    assert np.abs(decode(encoded(photo, "JPEG", quality=95, progressive=True)) - rgb).mean() < 2
    assert np.abs(decode(encoded(photo.quantize(256), "PNG")) - rgb).mean() < 8
    moving = encoded(photo, "GIF", save_all=True, append_images=[Image.new("RGB", photo.size, "red")])
    assert np.abs(decode(moving) - rgb).mean() < 8
    see_through = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert decode(encoded(see_through, "PNG"))[0, 0].tolist() == [255, 127, 127]


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


def test_exif_rotation_cmyk_and_alpha_are_converted_by_rule(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(photo, "JPEG", exif=exif)).shape == (64, 96, 3)
    assert decode(encoded(photo.convert("CMYK"), "JPEG")).shape == (96, 64, 3)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert set(decode(encoded(clear, "PNG")).ravel().tolist()) == {255}


def png_with(photo: Image.Image, *chunks: tuple[bytes, bytes], damaged: bool = False) -> bytes:
    """Return a PNG with more chunks behind its header, with wrong check sums if they are damaged."""
    data = encoded(photo, "PNG")
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damaged)
        for kind, body in chunks
    )
    return data[:33] + more + data[33:]


@pytest.mark.parametrize(
    ("chunk", "damaged"),
    [
        pytest.param((b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"history " * 200_000)), False, id="long text"),
        pytest.param((b"zTXt", b"key\0\0" + zlib.compress(b"history " * 200_000)), False, id="long packed text"),
        pytest.param((b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000))), False, id="long profile"),
        pytest.param((b"iCCP", b"x\0\0notzlib"), False, id="no profile"),
        pytest.param((b"eXIf", b"garbage!"), False, id="no EXIF"),
        pytest.param((b"tEXt", b"key\0text"), True, id="wrong check sum"),
        pytest.param((b"pHYs", b"\1"), False, id="short pHYs"),
        pytest.param((b"gAMA", b""), False, id="empty gAMA"),
        pytest.param((b"cHRM", b"\1\2"), False, id="short cHRM"),
    ],
)
def test_metadata_never_cost_a_png_its_pixels(photo: Image.Image, chunk: tuple[bytes, bytes], *, damaged: bool) -> None:
    data = png_with(photo, chunk, damaged=damaged)
    np.testing.assert_array_equal(decode(data), np.asarray(photo))
    assert decode(to_shard(data, resize=64).data).shape == (96, 64, 3)


def test_a_png_keeps_its_orientation_beside_text_that_is_too_long(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"history " * 200_000)
    data = png_with(photo, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), text)
    np.testing.assert_array_equal(decode(data), np.rot90(np.asarray(photo), -1))


def test_a_png_whose_pixels_are_damaged_is_refused_whatever_its_metadata(photo: Image.Image) -> None:
    data = png_with(photo, (b"tEXt", b"key\0text"), damaged=True)
    middle = data.index(b"IDAT") + 40
    good = encoded(photo, "PNG")
    for broken in (
        data[:middle] + b"\0\0\0" + data[middle + 3 :],
        good[:90] + b"\0\0\0" + good[93:],
        data[:-12],
        data[: len(data) // 2],
    ):
        with pytest.raises(UnreadableImageError):
            decode(broken)


def jpeg_with(photo: Image.Image, body: bytes, marker: int = 0xE1) -> bytes:
    data = encoded(photo, "JPEG", quality=95)
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


@pytest.mark.parametrize(
    ("body", "marker"),
    [
        (b"Exif\0\0garbage garbage", 0xE1),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\5" + struct.pack(">HHII", 0x112, 3, 1, 1 << 16), 0xE1),
        (b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta \xff\xfe tiff:Orientation='", 0xE1),
        (b"ICC_PROFILE\0\1\5truncated", 0xE2),
        (b"MPF\0MM\0*garbage", 0xE2),
        (b"Photoshop 3.0\08BIM\4\4", 0xED),
        (b"JFIF\0", 0xE0),
    ],
)
def test_metadata_never_cost_a_jpeg_its_pixels(photo: Image.Image, body: bytes, marker: int) -> None:
    rgb = decode(jpeg_with(photo, body, marker))
    assert np.abs(rgb.astype(int) - np.asarray(photo)).mean() < 2


def test_transparency_is_counted_only_where_something_shows_through(photo: Image.Image) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_image(encoded(clear, "PNG")).traits == Trait.ALPHA
    assert open_image(encoded(photo.convert("RGBA"), "PNG")).traits == Trait.NONE
    assert open_image(encoded(photo, "GIF", save_all=True, append_images=[clear.convert("RGB")])).traits == Trait.PAGES


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
    with pytest.raises(UnreadableImageError, match=r"100 x 100 pixels are more than data\.max_pixels"):
        decode(encoded(Image.new("RGB", (100, 100)), "JPEG"), max_pixels=9_999)
    assert decode(encoded(Image.new("RGB", (100, 100)), "JPEG"), max_pixels=10_000).shape == (100, 100, 3)


def test_what_is_small_enough_is_kept_and_what_is_large_is_scaled(photo: Image.Image) -> None:
    small, png = encoded(photo, "JPEG"), encoded(photo, "PNG")
    large = encoded(photo.resize((300, 450)), "JPEG")
    for data, ending, plain in ((small, "jpg", True), (png, "png", False)):
        made = to_shard(data, resize=64)
        assert (made.data, made.ending, made.plain) == (data, ending, plain)
    assert to_shard(large, resize=0).data == large
    made = to_shard(large, resize=100)
    assert (made.ending, made.plain, decode(made.data).shape) == ("jpg", True, (150, 100, 3))
    assert to_shard(encoded(photo, "TIFF"), resize=64).ending == "jpg"
    assert to_shard(encoded(photo, "TIFF"), resize=0).ending == "tiff"


def test_what_other_readers_would_see_differently_is_converted_even_when_small(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.full((8, 8), 36249, dtype=np.uint16))
    for data in (encoded(photo, "JPEG", exif=exif), encoded(photo.convert("CMYK"), "JPEG"), encoded(wide, "PNG")):
        made = to_shard(data, resize=500, value_range=(0, 65535))
        assert (made.ending, made.plain) == ("jpg", True)
        assert decode(made.data).shape == decode(data, value_range=(0, 65535)).shape
        kept = to_shard(data, resize=0, value_range=(0, 65535))
        assert (kept.data, kept.plain) == (data, False)


def test_a_header_tells_what_can_be_decoded_without_looking_further(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        encoded(photo, "JPEG"),
        encoded(photo.convert("L"), "JPEG", progressive=True),
        encoded(photo, "JPEG", exif=exif),
        encoded(photo.convert("CMYK"), "JPEG"),
        encoded(photo, "PNG"),
    ]
    assert [is_plain(data) for data in files] == [True, True, False, False, False]
    assert [to_shard(data, resize=0).plain for data in files] == [is_plain(data) for data in files]
    assert not is_plain(b"")
    assert not is_plain(files[0][:30])


def test_odd_shapes_and_values_are_refused_or_kept_in_range() -> None:
    with pytest.raises(UnreadableImageError, match="76800 x 256 pixels are too long for a JPEG"):
        to_shard(encoded(Image.new("RGB", (90_000, 300)), "PNG"), resize=256)
    floats = Image.fromarray(np.full((4, 4), 141.0, np.float32))
    with pytest.raises(UnreadableImageError, match="samples of floating-point numbers, and no range"):
        decode(encoded(floats, "TIFF"))
    with pytest.raises(UnreadableImageError, match="no image of a known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for shape in ((1, 1), (1, 500), (500, 1)):
        assert decode(to_shard(encoded(Image.new("RGB", shape), "PNG"), resize=64).data).shape == (*shape[::-1], 3)


def test_steps_are_applied_before_the_image_is_scaled() -> None:
    rows, columns = np.ogrid[:300, :400]
    disc = np.where(np.hypot(rows - 150, columns - 180) < 120, 180, 0)[..., None].repeat(3, axis=2).astype(np.uint8)
    data = encoded(Image.fromarray(disc), "JPEG")
    square = decode(to_shard(data, resize=64, steps=("fundus_crop",)).data)
    assert square.shape == (64, 64, 3)
    assert (square[32] > 90).mean() > 0.95
    grey = decode(to_shard(data, resize=64, steps=("fundus_crop", "local_average")).data)
    assert abs(int(grey[32, 32].mean()) - 128) < 12
    with pytest.raises(UnreadableImageError, match="no fundus disc found"):
        to_shard(encoded(Image.new("RGB", (90, 90)), "PNG"), resize=64, steps=("fundus_crop",))


def test_shrink_keeps_the_aspect_and_never_enlarges() -> None:
    assert shrink(np.zeros((200, 100, 3), np.uint8), 50).shape == (100, 50, 3)
    assert shrink(np.zeros((20, 10, 3), np.uint8), 50).shape == (20, 10, 3)


def mutated(data: bytes, draw: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(spoilt))
        match draw.randrange(5):
            case 0:
                spoilt[place] ^= 1 << draw.randrange(8)
            case 1:
                spoilt[place : place + draw.randrange(64)] = draw.randbytes(draw.randrange(64))
            case 2:
                spoilt[place : place + 4] = draw.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
            case 3:
                del spoilt[place : place + draw.randrange(1, 200)]
            case 4:
                spoilt[min(place, 64) :] = spoilt[place:]
        spoilt = spoilt or bytearray(b"x")
    return bytes(spoilt)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ten_thousand_mutated_files_are_decoded_or_refused(photo: Image.Image) -> None:
    small = photo.resize((48, 64))
    files = [
        encoded(small, "JPEG", quality=80),
        encoded(small, "JPEG", progressive=True),
        encoded(small.convert("CMYK"), "JPEG"),
        encoded(small, "PNG"),
        encoded(small.quantize(16), "PNG"),
        encoded(small, "WEBP"),
        encoded(small, "TIFF", compression="tiff_lzw"),
        encoded(small, "GIF"),
        encoded(small, "BMP"),
    ]
    draw = random.Random(0)
    read = 0
    for number in range(10_000):
        data = mutated(files[number % len(files)], draw)
        try:
            made = to_shard(data, resize=draw.choice([0, 32]), max_pixels=1_000_000)
        except UnreadableImageError:
            continue
        read += 1
        assert made.rgb.dtype == np.uint8
        assert made.rgb.shape[2:] == (3,)
        assert decode(made.data, max_pixels=1_000_000).ndim == 3
    assert 500 < read < 9_500
