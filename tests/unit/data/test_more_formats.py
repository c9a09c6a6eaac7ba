import io
from pathlib import Path
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pillow_heif
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1

from tlbatch.core.errors import UserError
from tlbatch.data import more_formats
from tlbatch.data.decode import decode, open_image
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.more_formats import group_of_dicom
from tlbatch.data.shards.encode import to_shard
from tlbatch.data.sources.files import is_image, why_unread
from tlbatch.data.wide_pixels import NoRangeError, Trait

RAMP = np.linspace(0, 4095, 32 * 32).round().astype(np.uint16).reshape(32, 32)


def dicom(values: np.ndarray, *, bits: int, photometric: str = "MONOCHROME2", **attributes: object) -> bytes:
    """Return a DICOM file of some frames, (height, width[, 3]) or (frames, height, width)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    colour = photometric in ("RGB", "YBR_FULL")
    frames = values.ndim == 3 and not colour
    file.Rows, file.Columns = values.shape[1:] if frames else values.shape[:2]
    if frames:
        file.NumberOfFrames = len(values)
    file.SamplesPerPixel, file.PhotometricInterpretation = 3 if colour else 1, photometric
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * values.itemsize, bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    if colour:
        file.PlanarConfiguration = 0
    for name, value in attributes.items():
        setattr(file, name, value)
    file.PixelData = values.tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return ((values.astype(float) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)


def test_bits_stored_of_a_dicom_file_are_its_range_and_monochrome1_is_inverted() -> None:
    np.testing.assert_array_equal(decode(dicom(RAMP, bits=12))[..., 0], shown(RAMP, 0, 4095))
    inverted = dicom(RAMP, bits=12, photometric="MONOCHROME1")
    np.testing.assert_array_equal(decode(inverted)[..., 0], 255 - shown(RAMP, 0, 4095))
    with pytest.raises(NoRangeError):
        open_image(dicom(RAMP, bits=16))
    np.testing.assert_array_equal(
        open_image(dicom(RAMP, bits=16), value_range=(0, 4095)).rgb[..., 0], shown(RAMP, 0, 4095)
    )


def test_rescaling_and_window_of_a_dicom_file_are_applied() -> None:
    ct = dicom(RAMP, bits=12, RescaleSlope=1, RescaleIntercept=-1024)
    np.testing.assert_array_equal(decode(ct)[..., 0], shown(RAMP, 0, 4095))
    window = {"WindowCenter": [40, 600], "WindowWidth": [400, 2000]}
    lung = dicom(RAMP, bits=16, RescaleSlope=1, RescaleIntercept=-1024, **window)
    np.testing.assert_array_equal(decode(lung)[..., 0], shown(RAMP.astype(int) - 1024, 39.5 - 199.5, 39.5 + 199.5))
    exact = dicom(RAMP, bits=16, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(decode(exact)[..., 0], shown(RAMP, 1500, 2500))
    curve = dicom(RAMP, bits=16, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (RAMP.astype(float) - 2000) / 1000))
    np.testing.assert_array_equal(decode(curve)[..., 0], expected.round().astype(np.uint8))
    signed = dicom(RAMP.astype(np.int16) - 2048, bits=12)
    np.testing.assert_array_equal(decode(signed)[..., 0], shown(RAMP, 0, 4095))


def test_colours_frames_and_eight_bits_of_dicom_files() -> None:
    rgb = np.dstack([RAMP // 16, RAMP[::-1] // 16, RAMP.T // 16]).astype(np.uint8)
    np.testing.assert_array_equal(decode(dicom(rgb, bits=8, photometric="RGB")), rgb)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    assert np.abs(decode(dicom(ybr, bits=8, photometric="YBR_FULL")).astype(int) - rgb).max() <= 3
    grey = rgb[..., 0].copy()
    opened = open_image(dicom(grey, bits=8))
    np.testing.assert_array_equal(opened.rgb[..., 0], grey)
    assert opened.traits == Trait.NONE
    moving = open_image(dicom(np.stack([RAMP, RAMP[::-1]]), bits=12))
    np.testing.assert_array_equal(moving.rgb[..., 0], shown(RAMP, 0, 4095))
    assert moving.traits & Trait.PAGES


def test_a_packed_dicom_file_is_decoded_and_kept_or_encoded_anew() -> None:
    file = pydicom.dcmread(io.BytesIO(dicom(RAMP, bits=12)))
    packed = imagecodecs.ljpeg_encode(RAMP, bitspersample=12)
    file.PixelData = pydicom.encaps.encapsulate([packed])
    file["PixelData"].VR = "OB"
    file.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    np.testing.assert_array_equal(decode(buffer.getvalue())[..., 0], shown(RAMP, 0, 4095))
    kept = to_shard(buffer.getvalue(), resize=0)
    assert (kept.ending, kept.plain, kept.data) == ("dcm", False, buffer.getvalue())
    made = to_shard(buffer.getvalue(), resize=16)
    assert (made.ending, made.plain) == ("jpg", True)


def test_a_dicom_file_without_pixels_or_with_too_many_is_refused() -> None:
    file = pydicom.dcmread(io.BytesIO(dicom(RAMP, bits=12)))
    del file.PixelData, file.Rows
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    with pytest.raises(UnreadableImageError, match="a DICOM file without pixels"):
        decode(buffer.getvalue())
    with pytest.raises(UnreadableImageError, match=r"32 x 32 pixels are more than data\.max_pixels"):
        decode(dicom(RAMP, bits=12), max_pixels=1000)
    with pytest.raises(UnreadableImageError):
        decode(dicom(RAMP, bits=12)[:1501])


def test_the_group_of_a_dicom_file_is_an_attribute_of_its_header(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(dicom(RAMP, bits=12, PatientID=" 007 "))
    assert group_of_dicom(str(file), "PatientID") == "007"
    assert group_of_dicom(str(file), "StudyInstanceUID") == ""
    file.write_bytes(b"no image")
    assert group_of_dicom(str(file), "PatientID") == ""
    with pytest.raises(UserError, match="DICOM has no attribute 'Patient'; write its keyword"):
        group_of_dicom(str(file), "Patient")


def test_jpeg_xl_is_read_with_its_transparency() -> None:
    rgb = np.dstack([RAMP // 16, RAMP[::-1] // 16, RAMP.T // 16]).astype(np.uint8)
    opened = open_image(imagecodecs.jpegxl_encode(rgb, lossless=True))
    np.testing.assert_array_equal(opened.rgb, rgb)
    assert (opened.kind, opened.usual, opened.traits) == ("jxl", False, Trait.NONE)
    clear = np.dstack([rgb, np.zeros((32, 32), np.uint8)])
    assert set(decode(imagecodecs.jpegxl_encode(clear, lossless=True)).ravel().tolist()) == {255}
    with pytest.raises(UnreadableImageError, match="48 x 32 pixels are more"):
        decode(imagecodecs.jpegxl_encode(np.zeros((32, 48), np.uint8)), max_pixels=1000)


def test_heic_is_read_and_refused_by_name_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 100, 50)).save(buffer, "HEIF", quality=95)
    rgb = decode(buffer.getvalue())
    assert rgb.shape == (48, 64, 3)
    assert np.abs(rgb.astype(int) - (200, 100, 50)).max() < 8
    monkeypatch.setattr(more_formats, "HAS_HEIC", False)
    monkeypatch.setattr(more_formats, "HAS_DICOM", False)
    with pytest.raises(UnreadableImageError, match=r"HEIC needs the package pillow-heif; install the extra formats"):
        decode(buffer.getvalue())
    with pytest.raises(UnreadableImageError, match="DICOM needs the package pydicom"):
        decode(dicom(RAMP, bits=12))
    assert why_unread("a.HEIC").startswith(".heic needs the package pillow-heif")


def test_images_without_an_extension_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    samples = SimpleNamespace(
        dicom=dicom(RAMP, bits=12),
        jxl=imagecodecs.jpegxl_encode(RAMP.astype(np.uint8)),
        text=b"a list of images\n" * 20,
    )
    for name, data in vars(samples).items():
        (tmp_path / name).write_bytes(data)
    assert [is_image(str(tmp_path), name) for name in ("dicom", "jxl", "text")] == [True, True, False]
