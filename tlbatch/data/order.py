"""The order of samples: a pure function of (seed, epoch), whatever the number of ranks and workers."""

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> Positions:
    """A permutation of 0..num_samples-1, drawn by a counter-based generator keyed by (seed, epoch).

    Returns
    -------
    int64 array of shape (num_samples,).
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    return generator.permutation(num_samples).astype(np.int64)


def global_batches(order: Positions, batch_size: int) -> list[Positions]:
    """Cut an epoch into its batches: every sample once, sizes equal to within one, none above ``batch_size``."""
    return np.array_split(order, -(-len(order) // batch_size))


def share(batch: Positions, *, rank: int, world_size: int) -> Positions:
    """The part of a global batch that one rank takes: the shares of all ranks, joined, are the batch."""
    start, stop = (len(batch) * r // world_size for r in (rank, rank + 1))
    return batch[start:stop]


def prediction_batches(num_samples: int, *, batch_size: int, rank: int, world_size: int) -> list[Positions]:
    """The batches of one rank in prediction: every sample once, no padding, possibly none for a rank.

    The batches are cut before they are dealt out, so an image meets the same neighbours for any number of ranks.
    """
    batches = [
        np.arange(start, min(start + batch_size, num_samples), dtype=np.int64)
        for start in range(0, num_samples, batch_size)
    ]
    start, stop = (len(batches) * r // world_size for r in (rank, rank + 1))
    return batches[start:stop]
