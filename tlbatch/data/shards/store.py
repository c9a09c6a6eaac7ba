"""The shards of a set on disk: tars, each with a sidecar that lists its images and those that were unusable.

A shard is named after its contents and never changed, so a set can grow while others read it, and shards written before
a kill are used after it.
"""

import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file
from tlbatch.core.typing import Ints
from tlbatch.data.near_duplicates import WORDS, near_hash
from tlbatch.data.shards.encode import ShardImage
from tlbatch.data.shards.tar_writer import TarStream
from tlbatch.data.sources.base import Labelled

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


@dataclass(frozen=True)
class Unusable:
    """An image that cannot be used, and whether a retry might help (``passing``)."""

    image: Labelled
    cause: str
    passing: bool = False


def prepare(image: Labelled, made: ShardImage) -> Prepared:
    """Hash the bytes and the pixels of an image."""
    content = xxhash.xxh3_128_hexdigest(made.data).encode()
    return Prepared(image, made.ending, made.data, (len(made.data), made.plain, content, near_hash(made.rgb)))


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
    rejected: dict[int, str]
    """Causes by stamp."""
    num_sidecars: int

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
    parts, numbers = [np.empty(0, ROW)], [np.empty(0, np.int32)]
    rejected: dict[int, str] = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            with np.load(file, allow_pickle=False) as data:
                tar, size, rows = str(data["tar"]), int(data["size"]), data["rows"]
                causes = zip(data["rejected"].tolist(), data["causes"].tolist(), strict=True)
                if rows.dtype != ROW:
                    raise ValueError("of another version of tlbatch")  # noqa: TRY301
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError, *_BROKEN) as error:
            raise UserError(f"{file}: damaged ({error}); remove it and submit again") from None
        if only is not None and tar not in only:
            continue
        numbers.append(np.full(len(rows), len(tars), np.int32))
        tars.append(tar)
        sizes.append(size)
        parts.append(rows)
        rejected.update(causes)
    return ShardStore(tuple(tars), tuple(sizes), np.concatenate(parts), np.concatenate(numbers), rejected, len(tars))


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
    for number, some in enumerate(groups.values(), store.num_sidecars):
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
    usable = _without(prepared, unusable)
    if labels is None:
        rows = [(one.image.stamp, one.image.offset, *one.row) for one in usable]
        tar = chunk.images[0].path
    else:
        tar = f"{chunk.name}.tar"
        with atomic_file(folder / tar) as file:
            rows = list(_write_members(TarStream(file), usable, dict(zip(chunk.images, labels, strict=True))))
        if not rows:
            (folder / tar).unlink()
    _write_sidecar(folder, chunk, tar if rows else "", rows, unusable)
    return unusable


def _without(prepared: Iterable[Prepared | Unusable], unusable: list[Unusable]) -> Iterator[Prepared]:
    for one in prepared:
        if isinstance(one, Unusable):
            unusable.append(one)
        else:
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


def _write_sidecar(
    folder: Path, chunk: Chunk, tar: str, rows: Sequence[tuple[object, ...]], unusable: Sequence[Unusable]
) -> None:
    lasting = [one for one in unusable if not one.passing]
    if not rows and not lasting:
        return
    size = (folder / tar).stat().st_size if tar else 0  # an absolute path is kept by ``/``
    with atomic_file(folder / chunk.sidecar) as file:
        np.savez(
            file,
            tar=np.array(tar),
            size=np.array(size),
            rows=np.array(list(rows), ROW),
            rejected=np.array([one.image.stamp for one in lasting], np.uint64),
            causes=np.array([one.cause for one in lasting], dtype=np.str_),
        )
