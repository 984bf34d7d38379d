"""The counting teacher: it says what a slow count says, never knows its own answer, and hands out the right rows."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from groundling.data.batches import Batches
from groundling.data.ngrams import learn_from_ngrams, leave_one_out
from groundling.data.teacher import TeacherConfig
from groundling.errors import ConfigError

V = 5
TEXT = (np.arange(400) ** 2 // 3 + np.arange(400) // 7) % V


def slowly(ids: list[int], place: int, order: int, smoothing: float) -> list[float]:
    """The definition, for one place: count all other places, with contexts as tuples."""
    n = len(ids)
    probs = [1 / V] * V
    for n_seen in range(order):
        after: dict[tuple, Counter] = defaultdict(Counter)
        everywhere: dict[tuple, set] = defaultdict(set)
        for i in range(n):
            context = tuple(ids[(i - j) % n] for j in range(1, n_seen + 1))
            everywhere[context].add(ids[i])
            if i != place:
                after[context][ids[i]] += 1
        context = tuple(ids[(place - j) % n] for j in range(1, n_seen + 1))
        trust = smoothing * len(everywhere[context])
        total = sum(after[context].values())
        probs = [(after[context][v] + trust * probs[v]) / (total + trust) for v in range(V)]
    return probs


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("smoothing", [0.5, 2.0])
def test_it_counts_as_the_definition_does(order, smoothing):
    probs_NV = leave_one_out(torch.from_numpy(TEXT), V, order, smoothing)
    for place in (0, 1, 2, 57, 200, 399):
        expected = torch.tensor(slowly(TEXT.tolist(), place, order, smoothing))
        torch.testing.assert_close(probs_NV[place], expected, rtol=1e-4, atol=1e-6)


def test_every_row_is_a_distribution():
    probs_NV = leave_one_out(torch.from_numpy(TEXT), V, order=6, smoothing=1.0)
    assert probs_NV.min() >= 0
    torch.testing.assert_close(probs_NV.sum(1), torch.ones(len(TEXT)))


def test_a_token_that_stands_once_is_not_known_to_its_own_place():
    ids_N = torch.zeros(100, dtype=torch.long)
    ids_N[50] = 3
    probs_NV = leave_one_out(ids_N, V, order=3, smoothing=1.0)
    others = torch.arange(100) != 50
    assert probs_NV[50, 3] < probs_NV[others, 3].min()


def test_it_knows_more_than_chance_of_a_text_with_a_rule():
    probs_NV = leave_one_out(torch.from_numpy(TEXT), V, order=4, smoothing=1.0)
    of_targets = probs_NV[torch.arange(len(TEXT)), torch.from_numpy(TEXT)]
    assert of_targets.log().mean() > 0.3 + np.log(1 / V)


def test_its_hints_stand_at_the_targets_of_their_batch():
    teacher = learn_from_ngrams(TEXT.astype(np.uint16), V, TeacherConfig(weight=0.5, order=3, smoothing=1.0))
    table_NV = leave_one_out(torch.from_numpy(TEXT), V, 3, 1.0).half()
    batches = Batches(
        TEXT.astype(np.uint16), block_size=8, batch_size=4, micro_batch_size=2, seed=3, order="epochs", teacher=teacher
    )
    places_of = Batches(
        np.arange(400, dtype=np.uint16), block_size=8, batch_size=4, micro_batch_size=2, seed=3, order="epochs"
    )
    for batch, places in zip(batches.next_step(), places_of.next_step(), strict=True):
        assert torch.equal(batch.hints_BTV, table_NV[places.targets_BT])
        assert batch.to(torch.device("cpu")).hints_BTV is batch.hints_BTV


def test_without_a_teacher_there_are_no_hints():
    assert Batches(TEXT.astype(np.uint16), block_size=8, batch_size=2).next_step()[0].hints_BTV is None


def test_a_table_that_would_fill_the_memory_is_refused():
    with pytest.raises(ConfigError, match=r"would take 100\.0 GB.*set teacher\.weight to 0"):
        learn_from_ngrams(np.zeros(1_000_000, np.uint16), 50_000, TeacherConfig(weight=0.5))


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"weight": 1.5}, "weight is 1.5"), ({"order": 0}, "order is 0"), ({"smoothing": 0.0}, "smoothing is 0")],
)
def test_a_teacher_that_cannot_work_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        TeacherConfig(**fields)
