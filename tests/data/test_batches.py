"""Batches: what they hold, that nothing is left out or seen twice, and that any step can be gone on from.

Shapes: B sequences, T block_size.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundling.data.batches import Batch, Batches, RandomOffsets, ShuffledEpochs, whole_split
from groundling.errors import ConfigError
from groundling.model.loss import IGNORE

ORDERS = ["random", "epochs"]


def ids(n: int) -> np.ndarray:
    """Each id is its own place, so that a batch tells where it was taken from."""
    return np.arange(n, dtype=np.uint16)


def idx_of(step: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.idx_BT for batch in step])


@pytest.mark.parametrize("order", ORDERS)
def test_the_target_of_each_position_is_the_token_after_it(order):
    batches = Batches(ids(100), block_size=7, batch_size=4, order=order)
    for _ in range(20):
        (batch,) = batches.next_step()
        assert batch.idx_BT.shape == (4, 7)
        assert batch.idx_BT.dtype == batch.targets_BT.dtype == torch.int64
        assert torch.equal(batch.targets_BT, batch.idx_BT + 1)
        assert torch.equal(batch.idx_BT, batch.idx_BT[:, :1] + torch.arange(7))
        assert batch.n_targets == 28
        assert batch.to(torch.device("cpu")) is batch


@given(n_tokens=st.integers(2, 300), block_size=st.integers(1, 40), batch_size=st.integers(1, 9), n=st.integers(1, 3))
def test_a_whole_split_has_every_token_but_the_first_as_a_target_exactly_once(n_tokens, block_size, batch_size, n):
    seen: list[int] = []
    for rank in range(n):
        for batch in whole_split(ids(n_tokens), block_size, batch_size, rank, world_size=n):
            assert len(batch.idx_BT) <= batch_size
            counted_BT = batch.targets_BT != IGNORE
            assert batch.n_targets == int(counted_BT.sum())
            assert torch.equal(batch.targets_BT[counted_BT], batch.idx_BT[counted_BT] + 1)
            seen += batch.targets_BT[counted_BT].tolist()
    assert sorted(seen) == list(range(1, n_tokens))


@given(n_tokens=st.integers(2, 400), block_size=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_has_each_window_once_and_all_of_them_lie_in_the_text(n_tokens, block_size, seed):
    if n_tokens <= block_size:
        return
    offset_of = ShuffledEpochs(n_tokens, block_size, seed)
    n = offset_of.n_windows
    assert n_tokens - 2 * block_size < n * block_size + 1 <= n_tokens
    for epoch in range(3):
        offsets = sorted(offset_of(sample) for sample in range(epoch * n, (epoch + 1) * n))
        assert np.diff(offsets).tolist() == [block_size] * (n - 1), "side by side, none twice"
        assert offsets[0] >= 0
        assert offsets[-1] + block_size + 1 <= n_tokens


def test_epochs_have_other_orders_and_other_window_borders():
    offset_of = ShuffledEpochs(1000, 10, seed=3)
    n = offset_of.n_windows
    epochs = [[offset_of(sample) for sample in range(e * n, (e + 1) * n)] for e in range(12)]
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 12
    assert len({min(epoch) for epoch in epochs}) > 4
    assert epochs[0] != sorted(epochs[0])


def test_random_offsets_reach_the_first_place_and_the_last_evenly():
    offset_of = RandomOffsets(n_tokens=15, block_size=10, seed=0)
    drawn = np.bincount([offset_of(sample) for sample in range(5000)])
    assert len(drawn) == 5, "15 tokens have 5 windows of 10 and a target more"
    assert 850 < drawn.min() <= drawn.max() < 1150


@given(order=st.sampled_from(ORDERS), steps=st.lists(st.integers(0, 9), max_size=4), seed=st.integers(0, 99))
def test_it_goes_on_from_any_step_however_often_it_was_interrupted(order, steps, seed):
    def new(**ranks: int) -> Batches:
        return Batches(ids(60), block_size=6, batch_size=4, order=order, seed=seed, **ranks)

    unbroken = new()
    expected = [idx_of(unbroken.next_step()) for _ in range(sum(steps) + 1)]
    current, got = new(), []
    for n in steps:
        got += [idx_of(current.next_step()) for _ in range(n)]
        state, current = current.state_dict(), new()
        current.load_state_dict(state)
    got.append(idx_of(current.next_step()))
    assert torch.equal(torch.stack(got), torch.stack(expected))
    # With another number of ranks it goes on as well: together they have the same sequences.
    ranks = [new(rank=rank, world_size=2) for rank in (0, 1)]
    for batches in ranks:
        batches.load_state_dict(current.state_dict())
    together = torch.cat([idx_of(batches.next_step()) for batches in ranks])
    assert torch.equal(together, idx_of(current.next_step()))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro", [None, 1, 2])
def test_the_batch_of_a_step_is_the_same_however_it_is_cut_and_spread(order, world_size, micro):
    whole = Batches(ids(90), block_size=8, batch_size=8, order=order, seed=5)
    ranks = [
        Batches(
            ids(90),
            block_size=8,
            batch_size=8,
            micro_batch_size=micro,
            order=order,
            seed=5,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for _ in range(5):
        steps = [batches.next_step() for batches in ranks]
        assert all(len(batch.idx_BT) == (micro or 8 // world_size) for step in steps for batch in step)
        assert torch.equal(torch.cat([idx_of(step) for step in steps]), idx_of(whole.next_step()))


def test_seeds_and_orders_differ():
    def first(order: str, seed: int) -> list[int]:
        return idx_of(Batches(ids(5000), block_size=4, batch_size=16, order=order, seed=seed).next_step())[
            :, 0
        ].tolist()

    drawn = [first(order, seed) for order in ORDERS for seed in (0, 1, 2**62)]
    assert len({tuple(offsets) for offsets in drawn}) == 6


def test_reading_ahead_changes_nothing_that_was_drawn_before():
    """Offsets follow from their number alone: asked in another order, they are the same."""
    for draw in (RandomOffsets, ShuffledEpochs):
        there, back = draw(3000, 4, 9), draw(3000, 4, 9)
        numbers = range(0, 5000, 7)
        forwards = [there(n) for n in numbers]
        assert [back(n) for n in reversed(numbers)] == forwards[::-1]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"block_size": 10, "batch_size": 1}, "10 tokens are too few for one window; a block_size of 10 needs 11"),
        ({"block_size": 4, "batch_size": 3, "world_size": 2}, "batch_size 3 does not divide over 2 ranks"),
        ({"block_size": 4, "batch_size": 4, "micro_batch_size": 3}, "micro_batch_size 3 does not divide the 4 seq"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, said):
    with pytest.raises(ConfigError, match=said):
        Batches(ids(10), **sizes)


def test_the_shortest_text_is_one_window():
    for order in ORDERS:
        batches = Batches(ids(11), block_size=10, batch_size=2, micro_batch_size=8, order=order)
        for _ in range(3):
            (batch,) = batches.next_step()
            assert batch.idx_BT.tolist() == [list(range(10))] * 2
