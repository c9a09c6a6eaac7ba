"""Shards of earlier versions: images that are read otherwise by now are written again."""

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.core.text import counted
from tlbatch.data.decode import decode, open_raw
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.near_duplicates import Spectra, low_frequencies
from tlbatch.data.shards.store import NO_SPECTRA, READER, Sidecar, is_current, read_sidecar, write_sidecar
from tlbatch.data.sources.base import Labelled, Source
from tlbatch.data.sources.files import ending_of
from tlbatch.data.value_range import KnownRange
from tlbatch.data.wide_pixels import Trait

log = logging.getLogger(__name__)
_CHANGED = Trait.WIDE | Trait.LATER_PAGE
"""Traits of images that version 1 of the reader reads otherwise."""
_NEVER = 0
"""Stamp of a row that is not used any more."""


def upgrade_sidecars(folder: Path, source: Source, *, workers: int) -> None:
    """Bring the sidecars of earlier versions up to date.

    Images whose reading has changed are dropped from them, so they are sharded again; images that were unusable are
    tried again. Tars are never changed, so indexes of earlier runs stay valid.
    """
    old = [file for file in sorted(folder.glob("*.npz")) if not is_current(file)]
    if not old:
        return
    log.info(
        "%s: reading %s of an earlier version once more, to find cropped copies", folder, counted(len(old), "shard")
    )
    of_stamp = {image.stamp: image for image in source.images}
    num_changed = 0
    for file in old:
        sidecar = _upgraded(read_sidecar(file), of_stamp, source)
        num_changed += int((sidecar.traits & _CHANGED != 0).sum())
        write_sidecar(file, sidecar, _spectra(folder / sidecar.tar, sidecar, workers=workers))
    if num_changed:
        log.warning(
            "%s: %s of more than 8 bits, or with a larger page than the first, are read otherwise than by the version "
            "that sharded them; they are sharded again",
            folder, counted(num_changed, "image"),
        )  # fmt: skip


def _upgraded(sidecar: Sidecar, of_stamp: Mapping[int, Labelled], source: Source) -> Sidecar:
    found = [_traits(of_stamp.get(stamp), source) for stamp in sidecar.rows["stamp"].tolist()]
    traits, rows = np.array(found, np.uint8), sidecar.rows.copy()
    rows["stamp"][traits & _CHANGED != 0] = _NEVER
    return replace(sidecar, rows=rows, traits=traits, rejected={})


def _spectra(tar: Path, sidecar: Sidecar, *, workers: int) -> Spectra:
    """Return the lowest frequencies of the images of a shard; zeros where one can no longer be read."""

    def read(row: np.void) -> Spectra:
        try:
            data = os.pread(file.fileno(), int(row["size"]), int(row["offset"]))
            return low_frequencies(decode(data)).astype(np.float16)
        except (OSError, UnreadableImageError):
            return np.zeros(NO_SPECTRA.shape[1:], np.float16)

    if not len(sidecar.rows) or not tar.is_file():
        return np.zeros((len(sidecar.rows), *NO_SPECTRA.shape[1:]), np.float16)
    with tar.open("rb") as file, ThreadPoolExecutor(workers) as pool:  # the codecs release the GIL
        return np.stack(list(pool.map(read, sidecar.rows)))


def _traits(image: Labelled | None, source: Source) -> Trait:
    """Return the traits of an image file, none if it is gone or a JPEG."""
    if image is None or image.path in source.pixels or ending_of(image.path) in {".jpg", ".jpeg"}:
        return Trait.NONE
    try:
        return open_raw(source.read(image))[1]
    except (OSError, UnreadableImageError):
        return Trait.NONE


def reading_of(traits: npt.NDArray[np.uint8], known: KnownRange) -> str:
    """Return what identifies the reading of images that earlier versions read otherwise, empty if there are none.

    Parameters
    ----------
    traits
        `Trait` of the file of each image, (n,).
    """
    found = np.bitwise_or.reduce(traits, initial=0)
    if not found & _CHANGED:
        return ""
    return f"{READER} {known.get().limits}" if found & Trait.NO_RANGE else str(READER)
