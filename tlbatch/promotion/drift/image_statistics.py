"""Statistics of images that tell how they look, computed once for each content."""

import logging
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.core.files import atomic_file
from tlbatch.data.decode import Rgb, UnreadableImageError, decode, shrink
from tlbatch.promotion.drift.new_images import Some

log = logging.getLogger(__name__)
COLUMNS = (
    "brightness", "contrast", "red", "green", "blue", "saturation", "sharpness", "black share", "white share",
    "aspect ratio", "log bytes",
)  # fmt: skip
"""What a vector of statistics holds: see `image_statistics`."""
_SHORT_SIDE = 256
_BLACK, _WHITE = 16, 239
_CHUNK = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_DAMAGED = (
    OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    SyntaxError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What numpy and zipfile raise on bytes that are no .npz file, or one of something else."""
Table = npt.NDArray[np.float32]


def image_statistics(rgb: Rgb, *, num_bytes: int) -> Table:
    """How an image looks, in the order of `COLUMNS`.

    Brightness and contrast are mean and standard deviation of the luma (ITU-R BT.601), all from 0 to 1 as are the
    means of the channels; saturation is the mean of (max - min) / max of the channels, as HSV has it; sharpness is the
    natural logarithm of the variance of the luma's Laplacian (Pech-Pacheco et al. 2000) in grey levels from 0 to 255,
    plus 1; the shares are of pixels whose channels are all below 16, or all above 239; the aspect ratio is width by
    height; bytes are those of the file, as natural logarithm.

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
    """The statistics of some images, of which those are read whose content is not known yet; these are added.

    Parameters
    ----------
    known
        An .npz file of all statistics that were ever computed, by content; it is made where it is not there, and made
        anew, with a warning, where it is damaged.
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
        log.info("statistics of %d new images of %d", int(read.sum()), len(contents))
    found = np.full((len(contents), len(COLUMNS)), np.nan, np.float32)
    if len(keys):
        at = np.searchsorted(keys, contents).clip(max=len(keys) - 1)
        there = keys[at] == contents
        found[there] = table[at[there]]
    return found


def _read_known(known: Path) -> tuple[npt.NDArray[np.bytes_], Table]:
    """Contents, sorted, and their statistics; none where there are none, or they are damaged."""
    nothing = np.empty(0, "S32"), np.empty((0, len(COLUMNS)), np.float32)
    try:
        with np.load(known, allow_pickle=False) as data:
            keys, table, columns = data["keys"], data["table"], data["columns"]
    except FileNotFoundError:
        return nothing
    except _DAMAGED as error:
        log.warning("%s: damaged (%s); it is made anew", known, error)
        return nothing
    if tuple(columns.tolist()) != COLUMNS or table.shape != (len(keys), len(COLUMNS)):
        log.warning("%s: of another version of tlbatch; it is made anew", known)
        return nothing
    return keys, table


def _computed(some: Some, workers: int) -> Table:
    """Read, decode and measure images, few of them in memory at a time; NaN where one cannot be read."""
    found: list[Table] = []
    with ThreadPoolExecutor(workers) as pool:  # the codecs release the GIL
        for part in some.parts(_CHUNK):
            found.extend(pool.map(_measured, list(part.files())))
    return np.stack(found)


def _measured(data: bytes | None) -> Table:
    try:
        if data is not None:
            return image_statistics(shrink(decode(data, short_side=_SHORT_SIDE), _SHORT_SIDE), num_bytes=len(data))
    except UnreadableImageError:
        pass
    return np.full(len(COLUMNS), np.nan, np.float32)
