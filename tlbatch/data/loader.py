"""Load the batches of a dataset, in worker processes or in this one."""

import atexit
import functools
import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch.utils.data import DataLoader

from tlbatch.config.training import Train
from tlbatch.core.errors import UserError
from tlbatch.data.dataset import SampleBatch, SplitDataset
from tlbatch.data.sampler import Positions
from tlbatch.runs.signals import ignore_in_worker, signals_held
from tlbatch.runs.world import World

StartMethod = Literal["fork", "spawn"]


class _Batches:
    """Iterates over the given batches; while one is loaded, the kernel reads ahead the next."""

    def __init__(self, dataset: SplitDataset, batches: Iterable[Positions]) -> None:
        self._dataset = dataset
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        before: list[int] | None = None
        for batch in self._batches:
            positions = batch.tolist()
            self._dataset.will_need(positions)
            if before is not None:
                yield before
            before = positions
        if before is not None:
            yield before


def num_workers(train: Train, world: World, device: str) -> int:
    """Return the number of loader workers of a rank; by default one less than its cores with a GPU, else 0."""
    if train.workers is not None:
        return train.workers
    return max(1, world.num_threads - 1) if device == "cuda" else 0


def load(
    dataset: SplitDataset, batches: Iterable[Positions], *, workers: int, start_method: StartMethod = "fork"
) -> Iterator[SampleBatch]:
    """Yield the given batches in the given order, for any number of workers."""
    if workers:
        _kill_workers_at_exit()
    loader: DataLoader[SampleBatch] = DataLoader(
        dataset,
        batch_sampler=_Batches(dataset, batches),
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # __getitems__ already returns a batch
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_in_worker,
        multiprocessing_context=start_method if workers else None,
        generator=torch.Generator(),  # the default generator is the one that dropout uses
    )
    with signals_held():
        loaded = iter(loader)
    try:
        yield from loaded
    except UserError as error:  # torch wraps an error of a worker in a traceback, which ends in its message
        message = str(error).strip().splitlines()[-1]
        raise UserError(message.removeprefix(f"{UserError.__module__}.UserError: ")) from None


@functools.cache
def _kill_workers_at_exit() -> None:
    """Kill workers at exit: multiprocessing would end them by SIGTERM, which they ignore, and wait."""

    def kill() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    atexit.register(kill)  # runs before the handler of multiprocessing, which was registered earlier


def _as_it_is(batch: SampleBatch) -> SampleBatch:
    return batch
