"""Comparison of a set on two nights: new images, and images whose label has changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.core.errors import UserError
from tlbatch.core.typing import Ints
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.image_set import ImageSet
from tlbatch.data.index import Index, read_index
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.records import load_record
from tlbatch.runs.workspace import SetPaths

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Some:
    """Some images of a set."""

    images: ImageSet
    rows: Positions
    """Rows of its index, (n,), each content once."""

    @property
    def index(self) -> Index:
        """Index rows of the images."""
        return np.asarray(self.images.index[self.rows])

    def files(self) -> Iterator[bytes | None]:
        """Yield the bytes of each image from its shard; None if they can no longer be read."""
        dataset = SplitDataset(self.images, self.rows, Samples(len(self.rows), Views(1)))
        for row in self.index:
            try:
                yield dataset.read(row)
            except UnreadableImageError:
                yield None

    def parts(self, size: int) -> Iterator["Some"]:
        """Yield the images in parts of ``size``."""
        for start in range(0, len(self.rows), size):
            yield Some(self.images, self.rows[start : start + size])


@dataclass(frozen=True)
class Growth:
    """Changes from one night to the next; images are identified by their content, not by name or split."""

    new: Some
    """Images whose content is new."""
    before: Some
    """Earlier images with the lowest content hashes; none if nothing can be compared."""
    num_before: int
    """Number of different contents before."""
    num_relabelled: int
    """Number of earlier images whose label has changed."""
    why: str = ""
    """Why nothing can be compared."""


def compare_nights(images: ImageSet, before: Path | None, *, most: int) -> Growth:
    """Compare a set with its state of the previous night.

    Parameters
    ----------
    before
        Folder of the index of the previous night; None: there was none.
    most
        Number of earlier images to choose.
    """
    index = images.index
    contents, first = np.unique(index["content"], return_index=True)
    if before is None:
        return _alone(images, first, "no previous night")
    try:
        then = _open(before)
    except UserError as error:
        return _alone(images, first, f"the previous night cannot be read: {error}")
    known, of = np.unique(then.index["content"], return_index=True)
    shared = np.isin(contents, known)
    if not shared.any():
        return _alone(images, first, "no image of the previous night is left")
    return Growth(
        new=Some(images, np.sort(first[~shared])),
        before=Some(then, of[:most]),
        num_before=len(known),
        num_relabelled=_num_relabelled(images, then, contents[shared]),
    )


def _alone(images: ImageSet, rows: Positions, why: str) -> Growth:
    return Growth(Some(images, np.sort(rows)), Some(images, _NONE), num_before=0, num_relabelled=0, why=why)


def _open(folder: Path) -> ImageSet:
    """Open a set by the folder of its index; its shards may have changed since then."""
    paths = SetPaths(folder.parent, folder.name)
    manifest = load_record(Manifest, paths.manifest, missing="nothing can be compared without it")
    read_index(paths.index_file)
    return ImageSet(manifest, paths, tuple(paths.shard(shard.name) for shard in manifest.shards))


def _num_relabelled(now: ImageSet, then: ImageSet, shared: npt.NDArray[np.bytes_]) -> int:
    """Return how many contents of both sets have a new label."""
    classes = now.manifest.classes
    every = (*classes, *(name for name in then.manifest.classes if name not in classes))
    found = [_labelled(one, shared, every) for one in (now, then)]
    width = max(marks.shape[1] for _, marks in found)
    wide = [np.pad(marks, ((0, 0), (width - marks.shape[1], 0)), constant_values=-1) for _, marks in found]
    kinds, of = np.unique(np.concatenate(wide), axis=0, return_inverse=True)
    contents = np.concatenate([places for places, _ in found])
    pairs, number = contents * len(kinds) + of.ravel(), len(wide[0])
    other = ~np.isin(pairs[:number], pairs[number:])
    return len(np.unique(contents[:number][other]))


def _labelled(images: ImageSet, shared: npt.NDArray[np.bytes_], classes: tuple[str, ...]) -> tuple[Ints, Ints]:
    """For rows with shared content, return its position, (n,), and sorted class numbers, (n, 1 or tags)."""
    index = images.index
    places = np.searchsorted(shared, index["content"]).clip(max=len(shared) - 1)
    rows = np.flatnonzero(shared[places] == index["content"])
    numbers = np.array([classes.index(name) for name in images.manifest.classes] + [-1], np.int64)
    labels = index["tags"][rows] if images.manifest.tags else index["label"][rows, None]
    return places[rows].astype(np.int64), np.sort(numbers[labels], axis=1)
