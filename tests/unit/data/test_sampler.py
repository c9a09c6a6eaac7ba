from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tlbatch.data.sampler import (
    SLAB,
    WINDOW_SLABS,
    EpochOrder,
    SamplerState,
    num_batches,
    prediction_batches,
    training_batches,
)

sizes = st.one_of(st.integers(1, 500), st.integers(SLAB * WINDOW_SLABS - 40, SLAB * WINDOW_SLABS * 3))


def whole(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return EpochOrder(n, seed=seed, epoch=epoch)[:]


def batches(
    state: SamplerState, n: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[tuple[int, list[int]]]:
    found = training_batches(state, n, batch_size=batch_size, rank=rank, world_size=world_size)
    return [(size, share.tolist()) for size, share in found]


@given(sizes, st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_an_epoch_holds_every_sample_once_and_depends_on_seed_and_epoch_alone(n: int, seed: int, epoch: int) -> None:
    order = whole(n, seed, epoch)
    assert (np.sort(order) == np.arange(n)).all()
    assert (order == whole(n, seed, epoch)).all()


@given(sizes, st.data())
def test_any_stretch_can_be_read_by_itself(n: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert (EpochOrder(n, seed=7, epoch=3)[start:stop] == whole(n, 7, 3)[start:stop]).all()


def test_epochs_and_seeds_differ() -> None:
    assert len({tuple(whole(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_order_of_today_is_the_order_of_tomorrow() -> None:
    """A resumed or repeated run must meet the same samples with another version too."""
    assert whole(12, seed=1, epoch=2).tolist() == [0, 7, 2, 3, 6, 11, 10, 8, 4, 5, 9, 1]
    assert EpochOrder(10**8, seed=1, epoch=2)[70_000_000:70_000_003].tolist() == [59636398, 17181459, 75322206]


def test_large_sets_are_read_in_slabs_of_neighbours() -> None:
    n = SLAB * WINDOW_SLABS * 4
    window = np.sort(EpochOrder(n, seed=0, epoch=0)[: SLAB * WINDOW_SLABS]).reshape(-1, SLAB)
    assert (np.diff(window, axis=1) == 1).all()


def test_class_sorted_samples_are_mixed_nearly_as_well_as_by_chance() -> None:
    labels = np.repeat(np.arange(5), 20_000)

    def variance(order: np.ndarray) -> float:
        rows = labels[order][: len(order) // 256 * 256].reshape(-1, 256)
        return float(np.mean([np.var((rows == label).mean(axis=1)) for label in range(5)]))

    ours = np.mean([variance(whole(len(labels), epoch=epoch)) for epoch in range(8)])
    chance = np.mean([variance(np.random.default_rng(epoch).permutation(len(labels))) for epoch in range(8)])
    assert ours <= 1.25 * chance


@given(st.integers(1, 400), st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_the_shares_of_all_ranks_are_the_global_batches_of_one(n: int, batch_size: int, world_size: int) -> None:
    start = SamplerState(1, 2, 0)
    alone = batches(start, n, batch_size)
    assert len(alone) == num_batches(n, batch_size)
    assert [size for size, _ in alone] == [len(batch) for _, batch in alone]
    assert sorted(sample for _, batch in alone for sample in batch) == list(range(n))
    assert max(size for size, _ in alone) <= batch_size
    assert max(size for size, _ in alone) - min(size for size, _ in alone) <= 1
    ranks = [batches(start, n, batch_size, rank, world_size) for rank in range(world_size)]
    for number, (size, batch) in enumerate(alone):
        assert {each[number][0] for each in ranks} == {size}
        assert [sample for each in ranks for sample in each[number][1]] == batch
        assert max(len(each[number][1]) for each in ranks) - min(len(each[number][1]) for each in ranks) <= 1


@given(st.integers(1, 400), st.integers(1, 64), st.data())
def test_from_any_batch_on_the_rest_of_the_epoch_is_the_same(n: int, batch_size: int, data: st.DataObject) -> None:
    state = SamplerState(5, 0, 0)
    all_batches = batches(state, n, batch_size)
    done = data.draw(st.integers(0, len(all_batches)))
    state = replace(state, position=sum(size for size, _ in all_batches[:done]))
    assert batches(state, n, batch_size) == all_batches[done:]


@given(st.integers(0, 400), st.integers(1, 64), st.integers(1, 20))
def test_prediction_deals_out_the_same_batches_for_any_number_of_ranks(
    n: int, batch_size: int, world_size: int
) -> None:
    alone = list(prediction_batches(n, batch_size=batch_size, rank=0, world_size=1))
    dealt = [
        b
        for rank in range(world_size)
        for b in prediction_batches(n, batch_size=batch_size, rank=rank, world_size=world_size)
    ]
    assert [batch.tolist() for batch in dealt] == [batch.tolist() for batch in alone]
    assert [position for batch in alone for position in batch.tolist()] == list(range(n))
