"""A map-style dataset that reads whole batches at arbitrary positions of the index with pread."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset

from tlbatch.core.errors import UserError
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.image_set import ImageSet
from tlbatch.data.index import Index
from tlbatch.data.sampler import Positions
from tlbatch.data.sources.base import shown_key
from tlbatch.data.views import Samples

_MOST_OPEN = 128
"""Shards that a process keeps open, well below the usual limit of 1,024 files."""


class SampleBatch(NamedTuple):
    """Some samples of a split."""

    inputs: torch.Tensor
    """Images, uint8 (n, size, size, 3); or their activations at a cut."""
    labels: torch.Tensor
    """int64, (n,); with tags (n, tags), padded with -1."""
    positions: torch.Tensor
    """int64, (n,): row of each image in its split."""
    symmetry: torch.Tensor
    """uint8, (n,): the symmetry of the square still to be applied, see `tlbatch.model.symmetries`."""
    errors: dict[int, str]
    """Cause by place in the batch, for images that could not be read; their pixels are black."""


class SplitDataset(Dataset[SampleBatch]):
    """Samples of one split; asked for whole batches at a time.

    Parameters
    ----------
    rows
        Of the split, or whatever is to be read, in the index, (n,).
    strict
        Raise where an image cannot be read; otherwise say so in ``Batch.errors``.
    """

    def __init__(self, images: ImageSet, rows: Positions, samples: Samples, *, strict: bool = True) -> None:
        self._images = images
        self._rows = rows
        self._samples = samples
        self._strict = strict
        self._index: Index | None = None
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the index and the open shards: a spawned worker opens its own."""
        return self.__dict__ | {"_index": None, "_open": {}}

    def __getitems__(self, samples: Sequence[int]) -> SampleBatch:
        """Read, decode and view some images; UserError if one cannot be read and the dataset is strict."""
        positions, views = self._samples.look_up(np.asarray(samples, dtype=np.int64))
        rows = self._look_up(positions)
        size = self._samples.views.size
        images = np.zeros((len(rows), size, size, 3), dtype=np.uint8)
        symmetry = np.zeros(len(rows), dtype=np.uint8)
        errors: dict[int, str] = {}
        value_range = self._images.manifest.limits
        for place, (row, view) in enumerate(zip(rows, views.tolist(), strict=True)):
            try:
                images[place], symmetry[place] = self._samples.views.read(
                    self.read(row), view, content=row["content"], plain=bool(row["plain"]), value_range=value_range
                )
            except UnreadableImageError as error:
                if self._strict:
                    raise UserError(
                        f"{self._images.shards[int(row['shard'])]}: image {shown_key(row['key'].decode())} can no "
                        f"longer be read ({error}); remove the folder {self._images.paths.folder} and submit again"
                    ) from None
                errors[place] = str(error)
        symmetries = torch.from_numpy(symmetry)
        return SampleBatch(torch.from_numpy(images), labels_of(rows), torch.from_numpy(positions), symmetries, errors)

    def will_need(self, samples: Sequence[int]) -> None:
        """Ask the kernel to read ahead some images."""
        positions, _ = self._samples.look_up(np.asarray(samples, dtype=np.int64))
        for row in self._look_up(positions):
            os.posix_fadvise(self._descriptor(row), int(row["offset"]), int(row["size"]), os.POSIX_FADV_WILLNEED)

    def read(self, row: np.void) -> bytes:
        """Return the bytes of an image file.

        Raises UnreadableImageError if the shard was truncated or changed, or the disk fails.
        """
        try:
            data = os.pread(self._descriptor(row), int(row["size"]), int(row["offset"]))
        except OSError as error:
            raise UnreadableImageError(error.strerror or str(error)) from None
        if len(data) != row["size"]:
            raise UnreadableImageError(f"{len(data)} bytes are left of {row['size']}")
        if xxhash.xxh3_128_hexdigest(data).encode() != row["content"]:
            raise UnreadableImageError("its bytes have changed since it was indexed")
        return data

    def _look_up(self, positions: Positions) -> Index:
        if self._index is None:
            self._index = self._images.index
        return np.asarray(self._index[self._rows[positions]])

    def _descriptor(self, row: np.void) -> int:
        shard = int(row["shard"])
        if shard not in self._open:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self._images.shards[shard], os.O_RDONLY)
        return self._open[shard]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def labels_of(rows: Index) -> torch.Tensor:
    """Return the labels, int64, (n,); with tags (n, tags)."""
    labels = rows["tags"] if rows["tags"].shape[1] else rows["label"]
    return torch.from_numpy(labels.astype(np.int64))
