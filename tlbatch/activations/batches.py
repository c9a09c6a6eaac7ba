"""Batches for training and prediction: images, or cached activations."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from tlbatch.activations.store import StoreGroup, view_keys
from tlbatch.config.model import Head
from tlbatch.core.errors import UserError
from tlbatch.data.dataset import SampleBatch, SplitDataset, labels_of
from tlbatch.data.image_set import ImageSet
from tlbatch.data.index import own_groups
from tlbatch.data.loader import load
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views


class BatchSource:
    """Source of the batches of a split: its images, or their cached activations.

    Parameters
    ----------
    head
        With ``view_mean``, a sample is the mean over all views of its image, not the one view it names; with
        ``group_mean``, the mean over the other images of its group is appended. Both need a store.

    Raises
    ------
    UserError
        When an activation is missing.
    """

    def __init__(
        self, images: ImageSet, rows: Positions, views: Views, store: StoreGroup | None, *, workers: int, head: Head,
        strict: bool = True,
    ) -> None:  # fmt: skip
        self._images, self._rows, self._store = images, rows, store
        self._workers, self._strict, self._head = workers, strict, head
        if store is None and strict and (head.view_mean or head.group_mean):
            raise UserError(
                "head.view_mean and head.group_mean need cached vectors, and there are none (see the log of cache); "
                "raise cache.budget_gb, or free disk space"
            )
        if store is not None:
            in_index = images.index[rows]
            keys = view_keys(in_index["content"], views.numbers)
            self._places = store.find(keys).reshape(len(rows), len(views.numbers), len(store.stores))
            self._column = np.zeros(max(views.numbers) + 1, np.int64)
            self._column[list(views.numbers)] = range(len(views.numbers))
            self._labels = labels_of(in_index)
            self._mates = _mates(own_groups(in_index)) if head.group_mean else []

    def batches(self, samples: Samples, batches: Iterable[Positions]) -> Iterator[SampleBatch]:
        """Yield the given batches of samples in order."""
        if self._store is None:
            dataset = SplitDataset(self._images, self._rows, samples, strict=self._strict)
            yield from load(dataset, batches, workers=self._workers)
            return
        for batch in batches:
            positions, views = samples.look_up(batch)
            activations = self._read(positions, views)
            if self._head.group_mean:
                mates = [self._mates[position] for position in positions]
                sizes = np.array([len(some) for some in mates])
                others = self._read(np.concatenate(mates), views.repeat(sizes)).float()
                of = torch.from_numpy(np.arange(len(batch)).repeat(sizes))
                sums = torch.zeros(len(batch), others.shape[1]).index_add_(0, of, others)
                activations = torch.cat([activations.float(), sums / torch.from_numpy(sizes)[:, None]], 1)
            symmetry = torch.zeros(len(batch), dtype=torch.uint8)
            yield SampleBatch(activations, self._labels[positions], torch.from_numpy(positions), symmetry, {})

    def _read(self, positions: Positions, views: Positions) -> torch.Tensor:
        assert self._store is not None
        if not self._head.view_mean:
            return self._store.read(self._places[positions, self._column[views]])
        places = self._places[positions]
        activations = self._store.read(places.reshape(-1, places.shape[2])).float()
        return activations.view(*places.shape[:2], -1).mean(1)


def _mates(groups: npt.NDArray[np.bytes_]) -> list[Positions]:
    """Return the other images in the group of each image, or the image itself if it is alone."""
    _, of = np.unique(groups, return_inverse=True)
    order = np.argsort(of, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(of))[:-1])
    found = [members[group][members[group] != place] for place, group in enumerate(of.tolist())]
    return [mates if len(mates) else np.array([place]) for place, mates in enumerate(found)]
