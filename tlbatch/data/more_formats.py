"""Formats that Pillow does not read: JPEG XL, HEIC and DICOM, the latter two by packages of the extra ``formats``."""

from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from tlbatch.core.errors import UserError
from tlbatch.data.wide_pixels import Channels, Limits, RawPixels, Trait, Values, raw_pixels, split_usual

if TYPE_CHECKING:
    from pydicom import Dataset

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
HAS_HEIC = find_spec("pillow_heif") is not None
HAS_DICOM = find_spec("pydicom") is not None
INSTALL = "install the extra formats, e.g. with bash slurm/env.sh quickstart,export,formats"


def register_heic(data: bytes) -> None:
    """Let Pillow read a HEIC file; ValueError if the package is missing."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIC_BRANDS:
        return
    if not HAS_HEIC:
        raise ValueError(f"HEIC needs the package pillow-heif; {INSTALL}")
    import pillow_heif  # noqa: PLC0415 (optional)

    pillow_heif.register_heif_opener()


def is_jxl(data: bytes) -> bool:
    """Return whether a file is JPEG XL, by its first bytes."""
    return data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"))


def jxl_size(data: bytes) -> tuple[int, int]:
    """Return width and height by the header of the codestream (ISO/IEC 18181-1, SizeHeader); ValueError without one."""
    box = max(data.find(b"jxlc"), data.find(b"jxlp"), 0)
    start = data.find(b"\xff\x0a", box)
    if start < 0:
        raise ValueError("a JPEG XL without a codestream")
    bits = int.from_bytes(data[start + 2 : start + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def length() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = length()
    ratio = take(3)
    width = height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else length()
    return width, height


def read_jxl(data: bytes) -> RawPixels:
    """Return the samples of the first frame of a JPEG XL."""
    import imagecodecs  # noqa: PLC0415 (for files of few kinds)

    found = split_usual(imagecodecs.jpegxl_decode(data, index=0))
    return raw_pixels(found, None)


def is_dicom(data: bytes) -> bool:
    """Return whether a file is DICOM, by the letters behind its preamble."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes, max_pixels: int) -> RawPixels:
    """Return the samples of the first frame of a DICOM file, as its attributes say they are to be shown.

    Rescale slope and intercept are applied. The stated range is that of the first window, or else that of Bits Stored
    where these are fewer than Bits Allocated (DICOM PS3.3, C.11.2.1.2.1 and C.7.6.3.1).

    Raises ValueError if a package is missing or there are no pixels or too many, and other errors on damaged files.
    """
    if not HAS_DICOM:
        raise ValueError(f"DICOM needs the package pydicom; {INSTALL}")
    from pydicom.errors import BytesLengthException, InvalidDicomError  # noqa: PLC0415 (optional)

    try:
        return _read_dicom(data, max_pixels)
    except (BytesLengthException, InvalidDicomError) as error:
        raise ValueError(str(error)) from None


def _read_dicom(data: bytes, max_pixels: int) -> RawPixels:
    import pydicom  # noqa: PLC0415 (optional)
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut  # noqa: PLC0415
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415

    attributes: Dataset = pydicom.dcmread(BytesIO(data))
    if "Rows" not in attributes or "Columns" not in attributes:
        raise ValueError("a DICOM file without pixels")
    if attributes.Rows * attributes.Columns > max_pixels:
        raise ValueError(f"{attributes.Columns} x {attributes.Rows} pixels are more than data.max_pixels")
    traits = Trait.PAGES if int(attributes.get("NumberOfFrames") or 1) > 1 else Trait.NONE
    values: Values = pixel_array(attributes, index=0)  # colours are converted to RGB
    photometric = attributes.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, attributes)
    if values.ndim == 3:
        top = (1 << (8 * values.itemsize if photometric == "PALETTE COLOR" else attributes.BitsStored)) - 1
        return raw_pixels(Channels(values), (0.0, float(top)), traits=traits)
    values, stated = _shown(np.asarray(apply_modality_lut(values, attributes)), attributes)
    return raw_pixels(Channels(values), stated, traits=traits, inverted=photometric == "MONOCHROME1")


def group_of_dicom(file: str, attribute: str) -> str:
    """Return the text of an attribute of a DICOM file; empty if it is missing, or the file is not DICOM.

    Raises UserError if the package is missing, or there is no such attribute.
    """
    if not HAS_DICOM:
        raise UserError(f"data.dicom_group: needs the package pydicom; {INSTALL}")
    import pydicom  # noqa: PLC0415 (optional)
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415

    if tag_for_keyword(attribute) is None:
        raise UserError(f"data.dicom_group: DICOM has no attribute {attribute!r}; write its keyword, e.g. PatientID")
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[attribute])
    except (OSError, ValueError, EOFError, pydicom.errors.InvalidDicomError):  # listed when it is decoded
        return ""
    return str(header.get(attribute) or "").strip()


def _shown(values: Values, attributes: "Dataset") -> tuple[Values, Limits | None]:
    """Return the values, after a table of values of interest if there is one, and the range in which to show them."""
    from pydicom.pixels.processing import apply_voi  # noqa: PLC0415 (optional)

    if attributes.get("VOILUTSequence"):
        bits = attributes.VOILUTSequence[0].LUTDescriptor[2]
        return apply_voi(values, attributes), (0.0, float((1 << bits) - 1))
    centre, width = (_first_number(attributes.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        stated = _stored_range(attributes)
        return (values if stated == (0.0, 255.0) else _not_bytes(values)), stated
    function = attributes.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width)), (0.0, 1.0)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    half = max(width, 1e-6) / 2
    return _not_bytes(values), (centre - half, centre + half)


def _first_number(value: object) -> float | None:
    """Return the first of several numbers."""
    if value is None or value == "":
        return None
    return float(np.ravel(np.asarray(value, np.float64))[0])


def _stored_range(attributes: "Dataset") -> Limits | None:
    """Return the range of Bits Stored after rescaling; None if the bits fill their type, or a table maps them."""
    bits = attributes.BitsStored
    if (bits > 8 and bits == attributes.BitsAllocated) or attributes.get("ModalityLUTSequence"):
        return None
    half = 1 << (bits - 1)
    low, high = (-half, half - 1) if attributes.PixelRepresentation else (0, 2 * half - 1)
    slope, intercept = float(attributes.get("RescaleSlope", 1)), float(attributes.get("RescaleIntercept", 0))
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0], ends[1]


def _not_bytes(values: Values) -> Values:
    """Return values in a type that is scaled to a range, which bytes are not."""
    return values.astype(np.int16) if values.dtype == np.uint8 else values
