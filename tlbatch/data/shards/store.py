"""The shards of a set on disk: tars, each with a sidecar that lists its images and those that were unusable.

A shard is named after its contents and never changed, so a set can grow while others read it, and shards written before
a kill are used after it.
"""

import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file
from tlbatch.core.typing import Ints
from tlbatch.data.near_duplicates import FREQUENCIES, WORDS, Spectra, hashes_of, low_frequencies
from tlbatch.data.shards.encode import ShardImage
from tlbatch.data.shards.tar_writer import TarStream
from tlbatch.data.sources.base import Labelled
from tlbatch.data.wide_pixels import Trait

ROW = np.dtype(
    [
        ("stamp", "<u8"),
        ("offset", "<i8"),
        ("size", "<i8"),
        ("plain", "?"),
        ("content", "S32"),
        ("near", "<u8", (WORDS,)),
    ]
)
"""An image in a shard: what it was made from, its location, and the hashes of its bytes and pixels."""
READER = 1
"""Version of the reader of images, stored in sidecars: a change for some kind of image makes these be read again."""
NO_SPECTRA = np.empty((0, FREQUENCIES, FREQUENCIES), np.float16)
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, AttributeError)


@dataclass(frozen=True)
class Chunk:
    """Images to be written to one shard."""

    name: str
    images: tuple[Labelled, ...]

    @property
    def sidecar(self) -> str:
        """File name of the sidecar, which is written last."""
        return f"{self.name}.npz"


@dataclass(frozen=True)
class Prepared:
    """An image ready to be written."""

    image: Labelled
    ending: str
    data: bytes
    row: tuple[object, ...]
    """Its `ROW`, without stamp and offset."""
    traits: Trait
    """Properties of the source file."""
    spectrum: Spectra
    """See `low_frequencies` in `tlbatch.data.near_duplicates`."""


@dataclass(frozen=True)
class Unusable:
    """An image that cannot be used, and whether a retry might help (``passing``)."""

    image: Labelled
    cause: str
    passing: bool = False


def prepare(image: Labelled, made: ShardImage) -> Prepared:
    """Hash the bytes and the pixels of an image."""
    content = xxhash.xxh3_128_hexdigest(made.data).encode()
    frequencies = low_frequencies(made.rgb)
    row = len(made.data), made.plain, content, hashes_of(frequencies)
    return Prepared(image, made.ending, made.data, row, made.traits, frequencies.astype(np.float16))


@dataclass(frozen=True)
class Sidecar:
    """What lies beside a shard."""

    tar: str
    """Name of the tar, or its absolute path; empty if all images were unusable."""
    size: int
    """Bytes of the tar."""
    rows: npt.NDArray[np.void]
    """`ROW` of every image."""
    traits: npt.NDArray[np.uint8]
    """`Trait` of the source file of every image."""
    rejected: dict[int, str]
    """Causes by stamp."""


@dataclass(frozen=True)
class ShardStore:
    """All shards of a set."""

    tars: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of each tar."""
    rows: npt.NDArray[np.void]
    """`ROW` of every image."""
    tar: npt.NDArray[np.int32]
    """Number of the tar of every row."""
    traits: npt.NDArray[np.uint8]
    """`Trait` of the source file of every row."""
    rejected: dict[int, str]
    """Causes by stamp."""
    sidecars: tuple[Path, ...]

    def find(self, images: Sequence[Labelled]) -> Ints:
        """Return the row of each image, -1 where no shard holds it."""
        stamps = np.fromiter((image.stamp for image in images), np.uint64, len(images))
        if not len(self.rows):
            return np.full(len(images), -1)
        order = np.argsort(self.rows["stamp"], kind="stable")
        place = np.searchsorted(self.rows["stamp"], stamps, sorter=order)
        found = order[np.minimum(place, len(order) - 1)]
        return np.where(self.rows["stamp"][found] == stamps, found, -1)


def read_store(folder: Path, *, only: Collection[str] | None = None) -> ShardStore:
    """Read the sidecars of a set, or only those of some tars; UserError if a sidecar is damaged."""
    tars: list[str] = []
    sizes: list[int] = []
    parts, numbers, traits = [np.empty(0, ROW)], [np.empty(0, np.int32)], [np.empty(0, np.uint8)]
    rejected: dict[int, str] = {}
    files: list[Path] = []
    for file in sorted(folder.glob("*.npz")):
        sidecar = read_sidecar(file)
        if only is not None and sidecar.tar not in only:
            continue
        files.append(file)
        numbers.append(np.full(len(sidecar.rows), len(tars), np.int32))
        tars.append(sidecar.tar)
        sizes.append(sidecar.size)
        parts.append(sidecar.rows)
        traits.append(sidecar.traits)
        rejected.update(sidecar.rejected)
    return ShardStore(
        tuple(tars),
        tuple(sizes),
        np.concatenate(parts),
        np.concatenate(numbers),
        np.concatenate(traits),
        rejected,
        tuple(files),
    )


def read_spectra(store: ShardStore) -> Spectra:
    """Read the lowest frequencies of the image of every row of a store, (n, 24, 24), see `low_frequencies`.

    Raises UserError if a sidecar is damaged.
    """
    parts = [NO_SPECTRA]
    for file in store.sidecars:
        with _opened(file) as data:
            parts.append(data["spectra"])
    return np.concatenate(parts)


def is_current(file: Path) -> bool:
    """Return whether a sidecar was written with this version of the reader; UserError if it is damaged."""
    with _opened(file) as data:
        return "reader" in data and int(data["reader"]) >= READER


@contextmanager
def _opened(file: Path) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Open a sidecar, whose arrays are read when they are asked for; UserError if it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as data:
            yield data
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError, *_BROKEN) as error:
        raise UserError(f"{file}: damaged ({error}); remove it and submit again") from None


def read_sidecar(file: Path) -> Sidecar:
    """Read the sidecar of a shard; UserError if it is damaged."""
    with _opened(file) as data:
        rows, reader = data["rows"], int(data["reader"]) if "reader" in data else 0
        if rows.dtype != ROW or reader > READER:
            raise ValueError("of another version of tlbatch")
        traits = data["traits"] if reader else np.zeros(len(rows), np.uint8)
        rejected = dict(zip(data["rejected"].tolist(), data["causes"].tolist(), strict=True))
        return Sidecar(str(data["tar"]), int(data["size"]), rows, traits, rejected)


def write_sidecar(file: Path, sidecar: Sidecar, spectra: Spectra) -> None:
    """Write a sidecar atomically, with the lowest frequencies of its images, (n, 24, 24)."""
    with atomic_file(file) as opened:
        np.savez(
            opened,
            tar=np.array(sidecar.tar),
            size=np.array(sidecar.size),
            rows=sidecar.rows,
            traits=sidecar.traits,
            spectra=spectra,
            reader=np.array(READER),
            rejected=np.array(list(sidecar.rejected), np.uint64),
            causes=np.array(list(sidecar.rejected.values()), dtype=np.str_),
        )


def plan_chunks(images: Sequence[Labelled], store: ShardStore, *, size: int, in_place: bool) -> list[Chunk]:
    """Cut the images that the store lacks into shards; images indexed in place are grouped by their tar."""
    missing = [
        image
        for image, row in zip(images, store.find(images).tolist(), strict=True)
        if row < 0 and image.stamp not in store.rejected
    ]
    groups: dict[object, list[Labelled]] = defaultdict(list)
    for number, image in enumerate(missing):
        groups[image.path if in_place else number // size].append(image)
    chunks = []
    for number, some in enumerate(groups.values(), len(store.sidecars)):
        digest = xxhash.xxh3_64_hexdigest(np.array([image.stamp for image in some], "<u8").tobytes())[:8]
        chunks.append(Chunk(f"{number:06d}-{digest}", tuple(some)))
    return chunks


def write_chunk(
    folder: Path,
    chunk: Chunk,
    prepared: Iterable[Prepared | Unusable],
    labels: Iterable[tuple[str, bytes]] | None,
) -> list[Unusable]:
    """Write a shard, then its sidecar; return the images that were left out.

    Parameters
    ----------
    prepared
        The images of the chunk, in order.
    labels
        Extension and bytes of the label member of each image; None if the images are indexed in place, and only the
        sidecar is written.
    """
    unusable: list[Unusable] = []
    of_source: list[tuple[Trait, Spectra]] = []
    usable = _usable(prepared, unusable, of_source)
    if labels is None:
        rows = [(one.image.stamp, one.image.offset, *one.row) for one in usable]
        tar = chunk.images[0].path
    else:
        tar = f"{chunk.name}.tar"
        with atomic_file(folder / tar) as file:
            rows = list(_write_members(TarStream(file), usable, dict(zip(chunk.images, labels, strict=True))))
        if not rows:
            (folder / tar).unlink()
    lasting = {one.image.stamp: one.cause for one in unusable if not one.passing}
    if rows or lasting:
        size = (folder / tar).stat().st_size if rows else 0  # an absolute path is kept by ``/``
        traits = np.array([traits for traits, _ in of_source], np.uint8)
        spectra = np.stack([spectrum for _, spectrum in of_source]) if of_source else NO_SPECTRA
        sidecar = Sidecar(tar if rows else "", size, np.array(rows, ROW), traits, lasting)
        write_sidecar(folder / chunk.sidecar, sidecar, spectra)
    return unusable


def _usable(
    prepared: Iterable[Prepared | Unusable], unusable: list[Unusable], of_source: list[tuple[Trait, Spectra]]
) -> Iterator[Prepared]:
    """Yield the usable images and note traits and spectra; note the others."""
    for one in prepared:
        if isinstance(one, Unusable):
            unusable.append(one)
        else:
            of_source.append((one.traits, one.spectrum))
            yield one


def _write_members(
    stream: TarStream, usable: Iterable[Prepared], labels: dict[Labelled, tuple[str, bytes]]
) -> Iterator[tuple[object, ...]]:
    """Add the members of every image, adjacent and sorted, and yield its row, with its offset."""
    for one in usable:
        ending, label = labels[one.image]
        members = sorted({ending: label, one.ending: one.data}.items())
        places = {name: stream.add(f"{one.image.key}.{name}", data) for name, data in members}
        yield (one.image.stamp, places[one.ending], *one.row)
    stream.close()
