"""Counting as a teacher: it says what a slow count says, and never knows its own answer."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from groundling.train.distill.ngrams import leave_one_out

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


def test_a_token_that_occurs_once_does_not_predict_itself():
    ids_N = torch.zeros(100, dtype=torch.long)
    ids_N[50] = 3
    probs_NV = leave_one_out(ids_N, V, order=3, smoothing=1.0)
    others = torch.arange(100) != 50
    assert probs_NV[50, 3] < probs_NV[others, 3].min()


def test_it_knows_more_than_chance_of_a_text_with_a_rule():
    probs_NV = leave_one_out(torch.from_numpy(TEXT), V, order=4, smoothing=1.0)
    of_targets = probs_NV[torch.arange(len(TEXT)), torch.from_numpy(TEXT)]
    assert of_targets.log().mean() > 0.3 + np.log(1 / V)
