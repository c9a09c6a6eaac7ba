import io
import random
import struct
import zlib

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from tlbatch.data.decode import decode, open_image
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.wide_pixels import NoRangeError, Trait

Wide = npt.NDArray[np.uint16]
RAMP: Wide = np.linspace(0, 4095, 32 * 32).round().astype(np.uint16).reshape(32, 32)
"""12 bits in 16."""
SHOWN = (RAMP * (255 / 4095)).round().astype(np.uint8)


def tiff(values: npt.NDArray[np.generic], **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def png(values: Wide, *, significant_bits: int = 0) -> bytes:
    data = imagecodecs.png_encode(values)
    if not significant_bits:
        return data
    body = b"sBIT" + bytes([significant_bits] * (1 if values.ndim == 2 else values.shape[2]))
    return data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def pnm(values: Wide, *, top: int) -> bytes:
    kind = b"P5" if values.ndim == 2 else b"P6"
    return (
        kind
        + f"\n# of a microscope\n{values.shape[1]} {values.shape[0]}\n{top}\n".encode()
        + values.astype(">u2").tobytes()
    )


def colour(values: Wide) -> Wide:
    return np.dstack([values, values[::-1], values.T])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(RAMP), id="PNG"),
        pytest.param(tiff(RAMP), id="TIFF"),
        pytest.param(tiff(RAMP, compression="lzw"), id="TIFF with LZW"),
        pytest.param(tiff(RAMP.astype(np.int32)), id="32 bits"),
        pytest.param(tiff(RAMP.astype(np.float32)), id="floats"),
        pytest.param(tiff(RAMP.astype(np.float64)), id="doubles"),
        pytest.param(tiff(RAMP, byteorder=">"), id="big-endian"),
        pytest.param(imagecodecs.jpeg2k_encode(RAMP, level=0, bitspersample=16), id="JPEG 2000"),
        pytest.param(imagecodecs.jpegxl_encode(RAMP, lossless=True), id="JPEG XL"),
        pytest.param(pnm(RAMP, top=65535), id="PGM"),
    ],
)
def test_samples_that_fill_their_type_need_a_range_and_are_linear_in_it(data: bytes) -> None:
    with pytest.raises(NoRangeError, match="no range of their values is known"):
        open_image(data)
    opened = open_image(data, value_range=(0, 4095))
    np.testing.assert_array_equal(opened.rgb, np.dstack([SHOWN] * 3))
    assert opened.traits & ~Trait.FLOAT == Trait.WIDE | Trait.NO_RANGE
    assert not opened.usual


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(colour(RAMP)), id="PNG"),
        pytest.param(tiff(colour(RAMP)), id="TIFF"),
        pytest.param(tiff(colour(RAMP), compression="zlib", predictor=True), id="TIFF with Deflate"),
        pytest.param(tiff(colour(RAMP).transpose(2, 0, 1), planarconfig="separate", photometric="rgb"), id="planes"),
        pytest.param(pnm(colour(RAMP), top=65535), id="PPM"),
        pytest.param(imagecodecs.jpegxl_encode(colour(RAMP), lossless=True), id="JPEG XL"),
    ],
)
def test_colours_of_sixteen_bits_keep_all_their_levels(data: bytes) -> None:
    rgb = open_image(data, value_range=(0, 4095)).rgb
    np.testing.assert_array_equal(rgb, np.dstack([SHOWN, SHOWN[::-1], SHOWN.T]))


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (png(RAMP, significant_bits=12), "PNG, written as they are"),
        (png(RAMP << 4 | RAMP >> 8, significant_bits=12), "PNG, high bits repeated"),
        (png(colour(RAMP) << 4, significant_bits=12), "PNG, zeros added"),
        (tiff(RAMP, extratags=[(340, 3, 1, 0, True), (341, 3, 1, 4095, True)]), "TIFF, SMaxSampleValue"),
        (tiff(RAMP.astype(np.float32), extratags=[(340, 11, 1, 0.0, True), (341, 11, 1, 4095.0, True)]), "floats"),
        (tiff(RAMP, bitspersample=12, compression=None), "TIFF of 12 bits"),
        (imagecodecs.jpeg2k_encode(RAMP, level=0, bitspersample=12), "JPEG 2000"),
        (pnm(RAMP, top=4095), "PGM"),
    ],
)
def test_a_range_that_the_file_states_is_used_before_any_other(data: bytes, bits: str) -> None:
    opened = open_image(data, value_range=(0, 65535))
    assert np.abs(opened.rgb[..., 0].astype(int) - SHOWN).max() <= 1, bits
    assert opened.traits & ~Trait.FLOAT == Trait.WIDE
    np.testing.assert_array_equal(decode(data), opened.rgb)


def test_sixteen_significant_bits_and_contradicting_ones_state_nothing() -> None:
    for data in (png(RAMP, significant_bits=16), png(RAMP * 16 + 1, significant_bits=12)):
        with pytest.raises(NoRangeError):
            open_image(data)


def test_values_beyond_the_range_are_clipped_and_no_numbers_are_black() -> None:
    values = np.array([[-2000, -1000, 0, 1000, 3000, np.nan, np.inf, -np.inf]], np.float32).repeat(2, axis=0)
    rgb = open_image(tiff(values), value_range=(-1000, 1000)).rgb
    assert rgb[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255, 0]


def test_white_is_zero_and_opacity_hold_for_many_bits_too() -> None:
    inverted = tiff(RAMP, photometric="miniswhite")
    np.testing.assert_array_equal(open_image(inverted, value_range=(0, 4095)).rgb[..., 0], 255 - SHOWN)
    clear = np.dstack([colour(RAMP), np.zeros_like(RAMP)])
    half = np.dstack([np.zeros((4, 4, 3), np.uint16), np.full((4, 4), 32768, np.uint16)])
    for encode in (png, lambda values: tiff(values, extrasamples=["unassalpha"])):
        opened = open_image(encode(clear), value_range=(0, 4095))
        assert set(opened.rgb.ravel().tolist()) == {255}
        assert opened.traits & Trait.ALPHA
        assert set(open_image(encode(half), value_range=(0, 4095)).rgb.ravel().tolist()) == {127}


def test_the_largest_page_is_read_and_dropped_channels_are_told() -> None:
    grey = SHOWN
    buffer = io.BytesIO()
    Image.fromarray(grey[:8, :8]).save(
        buffer, "TIFF", save_all=True, append_images=[Image.fromarray(grey), Image.fromarray(grey[::-1].copy())]
    )
    opened = open_image(buffer.getvalue())
    np.testing.assert_array_equal(opened.rgb[..., 0], grey)
    assert opened.traits == Trait.PAGES | Trait.LATER_PAGE
    wide = io.BytesIO()
    with tifffile.TiffWriter(wide) as writer:
        writer.write(RAMP[:8, :8])
        writer.write(RAMP)
    opened = open_image(wide.getvalue(), value_range=(0, 4095))
    np.testing.assert_array_equal(opened.rgb[..., 0], grey)
    assert opened.traits & (Trait.PAGES | Trait.LATER_PAGE) == Trait.PAGES | Trait.LATER_PAGE
    five = tiff(np.dstack([colour(SHOWN), grey, grey]), photometric="rgb", extrasamples=["unspecified"] * 2)
    assert open_image(five).traits == Trait.DROPPED
    np.testing.assert_array_equal(open_image(five).rgb, colour(SHOWN))
    fluorescence = tiff(np.dstack([colour(SHOWN), grey]), photometric="minisblack", planarconfig="contig")
    assert open_image(fluorescence).traits == Trait.DROPPED


def test_a_truncated_file_of_many_bits_is_refused() -> None:
    for data in (tiff(RAMP), png(RAMP), imagecodecs.jpegxl_encode(RAMP, lossless=True), pnm(RAMP, top=4095)):
        for end in (len(data) // 2, len(data) - 40):
            with pytest.raises(UnreadableImageError):
                open_image(data[:end], value_range=(0, 4095))


def mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(min(len(changed), draw.choice([200, 100_000])))
        if draw.random() < 0.7:
            changed[place] = draw.randrange(256)
        else:
            del changed[place : place + draw.randrange(1, 20)]
    return bytes(changed)


def test_a_thousand_mutated_files_of_many_bits_are_decoded_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    files = [
        png(colour(RAMP)),
        tiff(colour(RAMP)),
        tiff(RAMP.astype(np.float32), compression="zlib", predictor=True),
        imagecodecs.jpegxl_encode(colour(RAMP), lossless=True),
        imagecodecs.jpeg2k_encode(RAMP, level=0, bitspersample=16),
        pnm(RAMP, top=4095),
    ]
    draw, read = random.Random(0), 0
    for number in range(1200):
        try:
            rgb = open_image(mutated(files[number % 6], draw), value_range=(0, 4095), max_pixels=1_000_000).rgb
        except UnreadableImageError:
            continue
        read += 1
        assert (rgb.dtype, rgb.shape[2:]) == (np.uint8, (3,))
    assert 100 < read < 1100
    assert "tifffile" not in {record.name for record in caplog.records}


def test_sizes_are_checked_before_many_bits_are_decoded() -> None:
    for data in (tiff(RAMP), png(RAMP), imagecodecs.jpegxl_encode(RAMP, lossless=True), pnm(RAMP, top=4095)):
        with pytest.raises(UnreadableImageError, match=r"32 x 32 pixels are more than data\.max_pixels"):
            open_image(data, max_pixels=1023)
