"""Row 3: whatever interrupts a run, and however many ranks go on with it, each sample comes once and in its turn."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from groundling.data.batches import Batches

ORDERS = st.sampled_from(["random", "epochs"])


def make(n_tokens, block_size, batch_size, order, seed, rank=0, world_size=1, micro=None):
    """The tokens count up, so that a window's first id is its offset."""
    return Batches(
        np.arange(n_tokens, dtype=np.uint32),
        block_size=block_size,
        batch_size=batch_size,
        micro_batch_size=micro,
        order=order,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def rows(micro_batches):
    """The sequences of a step, each with its targets."""
    return [
        (tuple(idx.tolist()), tuple(targets.tolist()))
        for batch in micro_batches
        for idx, targets in zip(batch.idx_BT, batch.targets_BT, strict=True)
    ]


def resumed(segments, **what):
    """The sequences of each step of a run in segments of (steps, ranks); between two of them all is built anew."""
    state, steps = None, []
    for n_steps, world_size in segments:
        ranks = [make(**what, rank=rank, world_size=world_size) for rank in range(world_size)]
        for batches in ranks:
            if state is not None:
                batches.load_state_dict(json.loads(state))
        for _ in range(n_steps):
            steps.append([row for batches in ranks for row in rows(batches.next_step())])
        states = {json.dumps(batches.state_dict()) for batches in ranks}
        assert len(states) == 1, "every rank would save the same place"
        (state,) = states
    return steps


@given(
    segments=st.lists(st.tuples(st.integers(0, 7), st.sampled_from([1, 2, 4])), min_size=1, max_size=5),
    n_tokens=st.integers(12, 150),
    block_size=st.integers(1, 10),
    batch_size=st.sampled_from([4, 8]),
    micro=st.sampled_from([None, 1]),
    order=ORDERS,
    seed=st.integers(0, 2**32),
)
def test_any_interrupts_and_any_ranks_give_the_same_steps(segments, micro, **what):
    whole = make(**what)
    expected = [rows(whole.next_step()) for _ in range(sum(n_steps for n_steps, _ in segments))]
    assert resumed(segments, **what, micro=micro) == expected


@given(
    n_windows=st.sampled_from([4, 8, 12]),
    block_size=st.integers(1, 6),
    at=st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4),
    world_size=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**32),
)
def test_interrupted_exactly_at_an_epochs_end_and_twice_within_one(n_windows, block_size, at, world_size, seed):
    """Three epochs whose ends are step ends; in each, every window comes exactly once, whatever the interrupts."""
    what = {"n_tokens": (n_windows + 1) * block_size, "block_size": block_size, "batch_size": 4, "order": "epochs"}
    per_epoch = n_windows // 4
    # Stop at each epoch's end, and besides at the steps of `at`, some of them twice.
    marks = sorted([per_epoch, 2 * per_epoch, *(min(step, 3 * per_epoch) for step in [*at, *at])])
    lengths = np.diff([0, *marks, 3 * per_epoch]).tolist()
    steps = resumed([(length, world_size) for length in lengths], **what, seed=seed)
    assert len(steps) == 3 * per_epoch
    orders = []
    for epoch in range(3):
        offsets = [row[0][0] for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for row in step]
        shift = min(offsets)
        assert sorted(offsets) == [shift + window * block_size for window in range(n_windows)]
        orders.append(tuple(offset - shift for offset in offsets))
    whole = make(**what, seed=seed)
    assert steps == [rows(whole.next_step()) for _ in steps]
    if n_windows == 12:
        assert len(set(orders)) == 3, "each epoch has an order of its own"


@given(seed=st.integers(0, 2**32), order=ORDERS)
def test_a_place_that_is_lost_would_be_noticed(seed, order):
    what = {"n_tokens": 400, "block_size": 4, "batch_size": 8, "order": order, "seed": seed}
    whole, forgetful = make(**what), make(**what)
    first, second = rows(whole.next_step()), rows(whole.next_step())
    assert first != second
    assert rows(forgetful.next_step()) == first


@given(n_samples=st.integers(1, 5000), seed=st.integers(0, 2**32), order=ORDERS)
def test_the_place_is_one_number_and_reaches_any_sample_at_once(n_samples, seed, order):
    """Nothing has to be replayed: the state does not grow, and the step at a far place is found directly."""
    what = {"n_tokens": 300, "block_size": 5, "batch_size": 4, "order": order, "seed": seed}
    far, stepping = make(**what), make(**what)
    start = n_samples // 4 * 4
    far.load_state_dict({"next_sample": start})
    assert far.state_dict() == {"next_sample": start}
    if start <= 400:
        for _ in range(start // 4):
            stepping.next_step()
        assert rows(stepping.next_step()) == rows(far.next_step())
