import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tlbatch.data.order import epoch_order, global_batches, prediction_batches, share


@given(st.integers(1, 500), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_an_epoch_holds_every_sample_once_and_depends_on_seed_and_epoch_alone(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == epoch_order(n, seed=seed, epoch=epoch)).all()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed=s, epoch=e)) for s in range(3) for e in range(3)}
    assert len(orders) == 9


@given(st.integers(1, 400), st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_the_shares_of_all_ranks_are_the_global_batches_of_one(n: int, batch_size: int, world_size: int) -> None:
    batches = global_batches(epoch_order(n, seed=1, epoch=2), batch_size)
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert sum(map(len, batches)) == n
    for batch in batches:
        shares = [share(batch, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert (np.concatenate(shares) == batch).all()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 400), st.integers(1, 64), st.integers(1, 20))
def test_prediction_deals_out_the_same_batches_for_any_number_of_ranks(
    n: int, batch_size: int, world_size: int
) -> None:
    alone = prediction_batches(n, batch_size=batch_size, rank=0, world_size=1)
    dealt = [
        b
        for rank in range(world_size)
        for b in prediction_batches(n, batch_size=batch_size, rank=rank, world_size=world_size)
    ]
    assert [batch.tolist() for batch in dealt] == [batch.tolist() for batch in alone]
    assert [position for batch in alone for position in batch.tolist()] == list(range(n))
