"""A map-style dataset over index and pread: any batch of any position, read at once."""

import atexit
import functools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from tlbatch.data.decode import UnreadableImageError, decode
from tlbatch.data.index import Index, read_index
from tlbatch.data.order import Positions, prediction_batches
from tlbatch.data.sources import name_of
from tlbatch.data.views import View
from tlbatch.job.config import Train
from tlbatch.job.errors import UserError
from tlbatch.job.paths import SetPaths
from tlbatch.job.records import SPLITS, Manifest, SplitName, load_record
from tlbatch.job.stop import ignore_in_worker
from tlbatch.job.world import World


class Batch(NamedTuple):
    """Some images of a split."""

    images: torch.Tensor
    """uint8, (n, size, size, 3)."""
    labels: torch.Tensor
    """int64, (n,)."""
    positions: torch.Tensor
    """int64, (n,): row of each image in its split."""


@dataclass(frozen=True)
class ImageSet:
    """A sharded set, opened."""

    manifest: Manifest
    index: Index
    folder: Path

    def split(self, name: SplitName) -> Index:
        """Rows of one split in the order of the index."""
        return self.index[self.split_mask(name)]

    def split_mask(self, name: SplitName) -> npt.NDArray[np.bool_]:
        """Which rows of the index belong to a split, of shape (rows of the index,)."""
        mask: npt.NDArray[np.bool_] = self.index["split"] == SPLITS.index(name)
        return mask

    def shards(self) -> tuple[Path, ...]:
        """The tars in the order of the index's numbers."""
        return tuple(self.folder / shard.name for shard in self.manifest.shards)


def open_set(paths: SetPaths) -> ImageSet:
    """Open a set and compare the size of every shard with the manifest.

    Raises
    ------
    UserError
        When the set is incomplete or a file is not as it was written.
    """
    manifest = load_record(Manifest, paths.manifest, missing="run shard first: python -m tlbatch.shard RUN")
    for shard in manifest.shards:
        path = paths.shard(shard.name)
        size = path.stat().st_size if path.exists() else None
        if size != shard.size:
            was = "missing" if size is None else f"{size} bytes, not {shard.size}"
            raise UserError(f"{path}: {was}; remove the folder {paths.folder} and submit again")
    return ImageSet(manifest, read_index(paths.index), paths.folder)


class SplitDataset(Dataset[Batch]):
    """The images of one split through one view; asked for whole batches at a time."""

    def __init__(self, shards: Sequence[Path], rows: Index, view: View) -> None:
        self._shards = tuple(shards)
        self._rows = rows
        self._view = view
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """Read, decode and view some images."""
        rows = self._rows[np.asarray(positions, dtype=np.int64)]
        images = np.empty((len(rows), self._view.size, self._view.size, 3), dtype=np.uint8)
        for place, (row, position) in enumerate(zip(rows, positions, strict=True)):
            images[place] = self._view.apply(self._decode(row), int(position))
        labels = torch.from_numpy(rows["label"].astype(np.int64))
        return Batch(torch.from_numpy(images), labels, torch.as_tensor(positions, dtype=torch.int64))

    def _decode(self, row: np.void) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        shard, size = int(row["shard"]), int(row["size"])
        if shard not in self._open:
            self._open[shard] = os.open(self._shards[shard], os.O_RDONLY)
        data = os.pread(self._open[shard], size, int(row["offset"]))
        try:
            return decode(data, short_side=self._view.size)
        except UnreadableImageError as error:
            name = name_of(row["key"].decode())
            raise UserError(
                f"{self._shards[shard]}: image {name} can no longer be read ({error}); "
                f"remove the folder {self._shards[shard].parent} and submit again"
            ) from None

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def num_workers(train: Train, world: World, device: str) -> int:
    """Loader processes of a rank: what the job says, else one less than its cores beside a GPU and none on a CPU."""
    if train.workers is not None:
        return train.workers
    return max(1, world.num_threads - 1) if device == "cuda" else 0


def load(dataset: SplitDataset, batches: Sequence[Positions], *, workers: int) -> Iterator[Batch]:
    """The given batches in the given order, for any number of workers."""
    if workers:
        _kill_workers_at_exit()
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # __getitems__ has made the batch
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_in_worker,
        multiprocessing_context="fork" if workers else None,
    )
    try:
        yield from loader
    except UserError as error:  # from a worker torch wraps it in a traceback; its own text is the last line
        raise UserError(
            str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
        ) from None


def load_for_prediction(
    images: ImageSet, split: SplitName, train: Train, world: World, *, size: int, device: str
) -> Iterator[Batch]:
    """Read the share of this rank in a split: over all ranks every image once, as it is predicted."""
    rows = images.split(split)
    batches = prediction_batches(len(rows), batch_size=train.batch_size, rank=world.rank, world_size=world.world_size)
    dataset = SplitDataset(images.shards(), rows, View(size=size))
    return load(dataset, batches, workers=num_workers(train, world, device))


@functools.cache
def _kill_workers_at_exit() -> None:
    """Make sure that no exit waits for a worker: multiprocessing ends those left by SIGTERM, which they ignore."""

    def kill() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    atexit.register(kill)  # runs before multiprocessing's own, which was registered earlier


def _as_it_is(batch: Batch) -> Batch:
    return batch
