"""Image statistics such as brightness and sharpness, computed once for each content."""

import logging
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.core.files import atomic_file
from tlbatch.core.text import counted
from tlbatch.data.decode import Rgb, decode, shrink
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.wide_pixels import Limits
from tlbatch.promotion.drift.new_images import Some

log = logging.getLogger(__name__)
COLUMNS = (
    "brightness", "contrast", "red", "green", "blue", "saturation", "sharpness", "black share", "white share",
    "aspect ratio", "log bytes",
)  # fmt: skip
"""Columns of a vector of statistics, see `image_statistics`."""
_SHORT_SIDE = 256
_BLACK, _WHITE = 16, 239
_CHUNK = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_DAMAGED = (
    OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    SyntaxError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""Exceptions of numpy and zipfile for damaged or foreign .npz files."""
Table = npt.NDArray[np.float32]


def image_statistics(rgb: Rgb, *, num_bytes: int) -> Table:
    """Compute the statistics of an image, in the order of `COLUMNS`.

    Brightness and contrast are the mean and standard deviation of the luma (ITU-R BT.601). Luma and channel means lie
    in 0..1. Saturation is the mean over pixels of (max - min) / max of the channels, as in HSV. Sharpness is
    log(1 + variance of the Laplacian of the luma) in grey levels 0..255 (Pech-Pacheco et al. 2000). Black and white
    shares are the fractions of pixels whose channels are all below 16 or all above 239. The aspect ratio is width by
    height. The file size enters as the natural logarithm of its bytes.

    Parameters
    ----------
    rgb
        uint8, (height, width, 3).

    Returns
    -------
    float32, (11,).
    """
    highest, lowest = rgb.max(axis=2), rgb.min(axis=2)
    luma = rgb.astype(np.float32) @ _LUMA
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    saturation = (highest - lowest) / np.maximum(highest, np.float32(1))
    return np.array(
        [
            luma.mean() / 255,
            luma.std() / 255,
            *(rgb.mean(axis=(0, 1)) / 255),
            saturation.mean(),
            np.log1p(laplacian.var()) if laplacian.size else 0.0,
            np.mean(highest < _BLACK),
            np.mean(lowest > _WHITE),
            rgb.shape[1] / rgb.shape[0],
            np.log(max(1, num_bytes)),
        ],
        np.float32,
    )


def known_statistics(some: Some, *, known: Path, workers: int) -> Table:
    """Return the statistics of some images; unknown contents are read, and their statistics added to the file.

    Parameters
    ----------
    known
        An .npz file of all statistics computed so far, by content. It is created if it is missing, and recreated with a
        warning if it is damaged.
    workers
        Threads.

    Returns
    -------
    (n, 11); NaN where an image can no longer be read.
    """
    contents = some.index["content"]
    keys, table = _read_known(known)
    missing, first = np.unique(contents, return_index=True)
    lacking = ~np.isin(missing, keys)
    if lacking.any():
        computed = _computed(Some(some.images, some.rows[first[lacking]]), workers)
        read = ~np.isnan(computed).any(axis=1)
        keys = np.concatenate([keys, missing[lacking][read]])
        table = np.concatenate([table, computed[read]])
        order = np.argsort(keys)
        keys, table = keys[order], table[order]
        with atomic_file(known) as file:
            np.savez(file, keys=keys, table=table, columns=np.array(COLUMNS))
        log.info("computed the statistics of %s, %d in all", counted(int(read.sum()), "new image"), len(contents))
    found = np.full((len(contents), len(COLUMNS)), np.nan, np.float32)
    if len(keys):
        at = np.searchsorted(keys, contents).clip(max=len(keys) - 1)
        there = keys[at] == contents
        found[there] = table[at[there]]
    return found


def _read_known(known: Path) -> tuple[npt.NDArray[np.bytes_], Table]:
    """Return the sorted contents and their statistics; both are empty if the file is missing or damaged."""
    nothing = np.empty(0, "S32"), np.empty((0, len(COLUMNS)), np.float32)
    try:
        with np.load(known, allow_pickle=False) as data:
            keys, table, columns = data["keys"], data["table"], data["columns"]
    except FileNotFoundError:
        return nothing
    except _DAMAGED as error:
        log.warning("%s: damaged (%s); recreating it", known, error)
        return nothing
    if tuple(columns.tolist()) != COLUMNS or table.shape != (len(keys), len(COLUMNS)):
        log.warning("%s: from another version of tlbatch; recreating it", known)
        return nothing
    return keys, table


def _computed(some: Some, workers: int) -> Table:
    """Read, decode and measure images in small batches; NaN if one cannot be read."""
    found: list[Table] = []
    with ThreadPoolExecutor(workers) as pool:  # the codecs release the GIL
        for part in some.parts(_CHUNK):
            found.extend(pool.map(_measured, list(part.files()), repeat(some.images.manifest.limits)))
    return np.stack(found)


def _measured(data: bytes | None, value_range: Limits | None) -> Table:
    with suppress(UnreadableImageError):
        if data is not None:
            rgb = decode(data, short_side=_SHORT_SIDE, value_range=value_range)
            return image_statistics(shrink(rgb, _SHORT_SIDE), num_bytes=len(data))
    return np.full(len(COLUMNS), np.nan, np.float32)
