"""The order of samples: a pure function of (seed, epoch), for any number of ranks and workers.

Samples are grouped into slabs of neighbours, the slabs are permuted, and the samples in a window of slabs are permuted
among themselves: reads stay local, and any position of any epoch is found in constant time and memory. Small sets are
one window, so an epoch is a plain permutation.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlbatch.core.typing import Ints

Positions = Ints
_Words = npt.NDArray[np.uint64]
SLAB = 16
"""Neighbouring samples that are always in the same window."""
WINDOW_SLABS = 2048
"""Enough that the class mix of a batch of 512 from class-sorted shards varies little more than in random sampling."""
_ROUNDS = 6


class EpochOrder:
    """A permutation of 0..num_samples-1, computed lazily."""

    def __init__(self, num_samples: int, *, seed: int, epoch: int) -> None:
        self._num_samples = num_samples
        self._key = np.array([seed, epoch], dtype=np.uint64)
        self._num_slabs = -(-num_samples // SLAB)
        self._slabs = _Permutation(max(1, self._num_slabs), self._key)
        self._missing = self._num_slabs * SLAB - num_samples  # the last slab may be short
        self._short_place = int(self._slabs.inverse(np.array([max(0, self._num_slabs - 1)], np.uint64))[0])
        self._window: tuple[int, Positions] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, where: slice) -> Positions:
        """Return the samples at a range of positions of the epoch.

        Returns
        -------
        int64 array, (stop - start,).
        """
        start, stop, step = where.indices(self._num_samples)
        assert step == 1, "an order is read forwards"
        found = []
        while start < stop:
            number = start // (WINDOW_SLABS * SLAB)
            number += start >= self._start_of(number + 1)
            first = self._start_of(number)
            window = self._read_window(number)
            found.append(window[start - first : stop - first])
            start = first + len(window)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _start_of(self, window: int) -> int:
        start = window * WINDOW_SLABS * SLAB
        return start - self._missing if window * WINDOW_SLABS > self._short_place else start

    def _read_window(self, number: int) -> Positions:
        if self._window[0] != number:
            stop = min((number + 1) * WINDOW_SLABS, self._num_slabs)
            slabs = self._slabs.forward(np.arange(number * WINDOW_SLABS, stop, dtype=np.uint64)).astype(np.int64)
            samples = (slabs[:, None] * SLAB + np.arange(SLAB)).ravel()
            samples = samples[samples < self._num_samples]
            generator = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, number, 2]))
            self._window = number, generator.permutation(samples)
        return self._window[1]


class _Permutation:
    """A keyed permutation of 0..size-1: a Feistel network over the next square number, with cycle walking.

    Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), their generalised Feistel construction; the round
    function is the mixer of splitmix64.
    """

    def __init__(self, size: int, key: npt.NDArray[np.uint64]) -> None:
        self._size = np.uint64(size)
        self._side = np.uint64(math.isqrt(size - 1) + 1)
        self._rounds = np.random.Philox(key=key, counter=[0, 0, 0, 3]).random_raw(_ROUNDS).astype(np.uint64)

    def forward(self, values: _Words) -> _Words:
        """Return the images of some values."""
        return self._walk(values, self._encrypt)

    def inverse(self, values: _Words) -> _Words:
        """Return the preimages of some values."""
        return self._walk(values, self._decrypt)

    def _walk(self, values: _Words, step: Callable[[_Words], _Words]) -> _Words:
        found = step(values)
        while (outside := found >= self._size).any():
            found[outside] = step(found[outside])
        return found

    def _encrypt(self, values: _Words) -> _Words:
        left, right = np.divmod(values, self._side)
        for key in self._rounds:
            left, right = right, (left + _mixed(right ^ key) % self._side) % self._side
        return left * self._side + right

    def _decrypt(self, values: _Words) -> _Words:
        left, right = np.divmod(values, self._side)
        for key in self._rounds[::-1]:
            left, right = (right + self._side - _mixed(left ^ key) % self._side) % self._side, left
        return left * self._side + right


def _mixed(values: _Words) -> _Words:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def random_words(samples: Positions, *, seed: int, epoch: int) -> _Words:
    """Return a random 64-bit number for each sample of an epoch, (n,): a pure function of its arguments."""
    key = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64), counter=[0, 0, 0, 1]).random_raw(2)
    return _mixed(_mixed(samples.astype(np.uint64) + np.uint64(key[0])) ^ np.uint64(key[1]))


def class_balanced(labels: Positions, *, strength: float, seed: int, epoch: int) -> Positions:
    """Return as many positions as labels, with rare classes oversampled: a pure function of its arguments.

    With strength 1 all classes are equally frequent, with 0 they keep their frequencies; the images of a class are
    cycled through, in an order that is redrawn in every epoch.

    Returns
    -------
    int64 array, (n,), sorted by class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = (1 - strength) * counts / len(labels) + strength / len(classes)
    stops = np.round(np.cumsum(shares) * len(labels)).astype(np.int64)
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, 4]))
    return np.concatenate([
        np.resize(generator.permutation(np.flatnonzero(labels == name)), wanted)
        for name, wanted in zip(classes, np.diff(stops, prepend=0), strict=True)
    ])  # fmt: skip


@dataclass(frozen=True)
class SamplerState:
    """Position of a training in its data: all that is needed to resume in the middle of an epoch."""

    seed: int
    epoch: int
    position: int
    """Samples of the epoch consumed by all ranks together."""


def training_batches(
    state: SamplerState, num_samples: int, *, batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[int, Positions]]:
    """Yield the remaining batches of the epoch: the size of each global batch, and this rank's share of it.

    The remaining samples are cut into batches of at most ``batch_size`` whose sizes differ by at most one, so every
    sample comes once, all ranks have equally many batches, and a resumed epoch is cut at the same places. The shares
    of all ranks together are the global batch, for any number of ranks.
    """
    order = EpochOrder(num_samples, seed=state.seed, epoch=state.epoch)
    rest = num_samples - state.position
    total = num_batches(rest, batch_size)
    size, larger = divmod(rest, max(1, total))  # the larger batches come first
    for number in range(total):
        start, stop = (state.position + at * size + min(at, larger) for at in (number, number + 1))
        first, last = (start + (stop - start) * r // world_size for r in (rank, rank + 1))
        yield stop - start, order[first:last]


def num_batches(num_samples: int, batch_size: int) -> int:
    """Return the number of batches of a complete epoch."""
    return -(-num_samples // batch_size)


def prediction_batches(num_samples: int, *, batch_size: int, rank: int, world_size: int) -> Iterator[Positions]:
    """Yield the batches of one rank in prediction: every sample once, no padding, possibly none for a rank.

    Batches are cut before they are distributed, so each has the same images for any number of ranks.
    """
    total = num_batches(num_samples, batch_size)
    first, last = (total * r // world_size for r in (rank, rank + 1))
    for number in range(first, last):
        yield np.arange(number * batch_size, min((number + 1) * batch_size, num_samples), dtype=np.int64)
