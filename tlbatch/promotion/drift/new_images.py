"""Two nights of a set: which images of the later are new, and which have another label than before."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.core.errors import UserError
from tlbatch.data.dataset import ImageSet, SplitDataset
from tlbatch.data.decode import UnreadableImageError
from tlbatch.data.index import Index, read_index
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.records import load_record
from tlbatch.runs.workspace import SetPaths

_NONE = np.empty(0, np.int64)
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Some:
    """Some images of a set."""

    images: ImageSet
    rows: Positions
    """In its index, (n,), each content once."""

    @property
    def index(self) -> Index:
        """Their rows."""
        found: Index = self.images.index[self.rows]
        return found

    def files(self) -> Iterator[bytes | None]:
        """The bytes of each as they lie in its shard; None where they can no longer be read."""
        dataset = SplitDataset(self.images, self.rows, Samples(len(self.rows), Views(1)))
        for row in self.index:
            try:
                yield dataset.read(row)
            except UnreadableImageError:
                yield None

    def parts(self, size: int) -> Iterator["Some"]:
        """The same, so many at a time."""
        for start in range(0, len(self.rows), size):
            yield Some(self.images, self.rows[start : start + size])


@dataclass(frozen=True)
class Growth:
    """What changed from one night to the next; an image is known by its content, whatever its name or split."""

    new: Some
    """Images that were not there before."""
    before: Some
    """Those of the images before whose contents have the lowest hashes; none where nothing can be compared."""
    num_before: int
    """Different contents before."""
    num_relabelled: int
    """Images that were there before with another label."""
    why: str = ""
    """Why nothing can be compared."""


def compare_nights(images: ImageSet, before: Path | None, *, most: int) -> Growth:
    """Compare a set with what it was the night before.

    Parameters
    ----------
    before
        Folder of the index of the night before; None: there was none.
    most
        How many of the images before are chosen.
    """
    index = images.index
    contents, first = _contents(index)
    if before is None:
        return _alone(images, first, "no night before")
    try:
        then = _open(before)
    except UserError as error:
        return _alone(images, first, f"the night before cannot be read: {error}")
    known, of = _contents(then.index)
    shared = np.isin(contents, known)
    if not shared.any():
        return _alone(images, first, "no image was there the night before")
    return Growth(
        new=Some(images, np.sort(first[~shared])),
        before=Some(then, of[:most]),
        num_before=len(known),
        num_relabelled=_num_relabelled(images, then, contents[shared]),
    )


def _alone(images: ImageSet, rows: Positions, why: str) -> Growth:
    return Growth(Some(images, np.sort(rows)), Some(images, _NONE), num_before=0, num_relabelled=0, why=why)


def _open(folder: Path) -> ImageSet:
    """A set by the folder of an index; its shards may no longer be what they were."""
    paths = SetPaths(folder.parent, folder.name)
    manifest = load_record(Manifest, paths.manifest, missing="without it nothing is compared")
    read_index(paths.index_file)
    return ImageSet(manifest, paths, tuple(paths.shard(shard.name) for shard in manifest.shards))


def _contents(index: Index) -> tuple[npt.NDArray[np.bytes_], Positions]:
    """Different contents, sorted, and the first row of each."""
    contents, first = np.unique(index["content"], return_index=True)
    return contents, first.astype(np.int64)


def _num_relabelled(now: ImageSet, then: ImageSet, shared: npt.NDArray[np.bytes_]) -> int:
    """How many contents that both have got a label that they had not."""
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
    """Of the rows whose content is shared: its place, (n,), and numbers of the classes, sorted, (n, 1 or tags)."""
    index = images.index
    places = np.searchsorted(shared, index["content"]).clip(max=len(shared) - 1)
    rows = np.flatnonzero(shared[places] == index["content"])
    numbers = np.array([classes.index(name) for name in images.manifest.classes] + [-1], np.int64)
    labels = index["tags"][rows] if images.manifest.tags else index["label"][rows, None]
    return places[rows].astype(np.int64), np.sort(numbers[labels], axis=1)
