"""IDX files, as MNIST and Fashion-MNIST are published."""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.core.errors import UserError
from tlbatch.data.sources.base import Found

_MOST_PACKED = 1032
"""Largest compression ratio of gzip."""


def from_idx(folder: Path, pixels: dict[str, npt.NDArray[np.uint8]]) -> Iterator[Found]:
    """Yield the images of the pairs ``<part>-images-idx3-ubyte`` and ``<part>-labels-idx1-ubyte``, gzipped or not."""
    files = sorted(folder.glob("*-images-idx3-ubyte*"))
    if not files:
        raise UserError(f"{folder}: no *-images-idx3-ubyte.gz; set data.images to the folder of the IDX files")
    for file in files:
        part = file.name.split("-images-")[0]
        beside = file.with_name(file.name.replace("-images-idx3-", "-labels-idx1-"))
        images, labels = _read_idx(file, ndim=3), _read_idx(beside, ndim=1)
        if len(images) != len(labels):
            raise UserError(f"{beside}: {len(labels)} labels for {len(images)} images; download the pair again")
        pixels[str(file)] = images
        for number, label in enumerate(labels.tolist()):
            yield Found(f"{part}/{number:06d}", str(file), str(label), part=part, offset=number, size=0)


def _read_idx(path: Path, *, ndim: int) -> npt.NDArray[np.uint8]:
    """Read unsigned bytes from an IDX file, whose header is 0, 0, 8, ndim and the big-endian sizes (LeCun, MNIST)."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * ndim)
            if header[:4] != bytes((0, 0, 8, ndim)) or len(header) < 4 + 4 * ndim:
                raise UserError(f"{path}: not an IDX file of {ndim} dimensions with unsigned bytes; download it again")
            shape = np.frombuffer(header, ">u4", offset=4).astype(np.int64)
            wanted = math.prod(shape.tolist())
            if not 0 < wanted <= path.stat().st_size * _MOST_PACKED:
                raise UserError(f"{path}: damaged (cannot hold the {wanted} bytes of its header); download it again")
            data = file.read(wanted + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; put images and labels in the same folder") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); download it again") from None
    if len(data) != wanted:
        more = "more" if len(data) > wanted else "fewer"
        raise UserError(f"{path}: damaged ({more} bytes than its header states); download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
