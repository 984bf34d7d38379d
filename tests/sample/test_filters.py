"""Each filter against the plainest way to say what it does, on scores with ties and with tokens already dropped."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundling.errors import CheckpointError
from groundling.sample import filters
from groundling.sample.sampler import SamplingConfig, choose

# Few different values, so that ties are common; some tokens are dropped already, never all.
scores = st.lists(st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.25, 0.5, 2.0]), min_size=1, max_size=9).filter(
    lambda row: max(row) > -math.inf
)


def kept(logits_BV: torch.Tensor) -> set[int]:
    return set((logits_BV[0] > -math.inf).nonzero().flatten().tolist())


def best_first(row: list[float]) -> list[int]:
    """The ids that are not dropped, best first, the lower first where equal."""
    return sorted((i for i, score in enumerate(row) if score > -math.inf), key=lambda i: (-row[i], i))


def probabilities(row: list[float]) -> list[float]:
    weights = [math.exp(score - max(row)) for score in row]
    return [weight / sum(weights) for weight in weights]


@given(row=scores)
def test_greedy_takes_the_lowest_of_the_best(row):
    assert filters.greedy(torch.tensor([row])).tolist() == [best_first(row)[0]]


@given(row=scores, n_ids=st.integers(1, 12))
def test_below_keeps_the_first_ids(row, n_ids):
    assert kept(filters.below(torch.tensor([row]), n_ids)) == {i for i in best_first(row) if i < n_ids}


@given(row=scores, k=st.integers(1, 12))
def test_top_k_keeps_the_k_best_and_the_lower_of_equals(row, k):
    assert kept(filters.top_k(torch.tensor([row]), k)) == set(best_first(row)[:k])


@given(row=scores, p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p(row, p):
    found = kept(filters.top_p(torch.tensor([row], dtype=torch.float64), p))
    order, probs = best_first(row), probabilities(row)
    assert found == set(order[: len(found)]), "the kept ones are the best ones"
    assert found
    if p == 1:
        assert found == set(order)
    assert sum(probs[i] for i in found) >= p - 1e-9
    assert sum(probs[i] for i in order[: len(found) - 1]) < p + 1e-9, "one less would not do"


@pytest.mark.parametrize("p", [1e-300, 1e-45, 1e-9])
def test_the_smallest_p_still_keeps_the_best(p):
    """In float32 some of these are 0, which nothing has to reach."""
    assert kept(filters.top_p(torch.tensor([[0.0, 2.0, 2.0]]), p)) == {1}


@given(row=scores, p=st.floats(0.0, 0.99))
def test_min_p_keeps_what_is_likely_enough_beside_the_best(row, p):
    found = kept(filters.min_p(torch.tensor([row], dtype=torch.float64), p))
    probs = probabilities(row)
    assert best_first(row)[0] in found
    for i in best_first(row):
        if abs(probs[i] / max(probs) - p) > 1e-9:
            assert (i in found) == (probs[i] / max(probs) >= p)


@given(row=scores, p=st.floats(0.01, 1.0))
def test_typical_p_keeps_the_fewest_of_about_the_expected_surprise(row, p):
    found = kept(filters.typical_p(torch.tensor([row], dtype=torch.float64), p))
    probs = probabilities(row)
    surprise = [-math.log(prob) if prob else math.inf for prob in probs]
    entropy = sum(prob * s for prob, s in zip(probs, surprise, strict=True) if prob)
    order = sorted(best_first(row), key=lambda i: abs(surprise[i] - entropy))
    assert found
    assert found <= set(order)
    if p == 1:
        assert found == set(order)
    farthest = max(abs(surprise[i] - entropy) for i in found)
    assert all(i in found for i in order if abs(surprise[i] - entropy) < farthest - 1e-9), "the nearest are kept"
    assert sum(probs[i] for i in found) >= p - 1e-9
    last = max(probs[i] for i in found if abs(surprise[i] - entropy) > farthest - 1e-9)
    assert sum(probs[i] for i in found) - last < p + 1e-9, "one less would not do"


@given(row=scores, counts=st.lists(st.integers(0, 3), min_size=9, max_size=9), a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_count_penalties_are_taken_once_and_each_time(row, counts, a, b):
    counts = counts[: len(row)]
    changed = filters.count_penalties(torch.tensor([row], dtype=torch.float64), torch.tensor([counts]), a, b)
    expected = [score - a * (count > 0) - b * count for score, count in zip(row, counts, strict=True)]
    assert changed[0].tolist() == pytest.approx(expected)


def test_a_bias_of_minus_infinity_forbids():
    assert kept(filters.logit_bias(torch.tensor([[5.0, 1.0, 0.0]]), {0: -math.inf})) == {1, 2}


def test_the_race_draws_each_id_with_its_probability_and_a_dropped_one_never():
    """Chi-squared with 3 degrees of freedom is below 16.3 in 999 of 1,000 cases."""
    probs = torch.tensor([0.5, 0.3, 0.0, 0.15, 0.05])
    noise_BV = torch.empty(20_000, 5).exponential_(generator=torch.Generator().manual_seed(1))
    counts = filters.exponential_race(probs.log().expand(20_000, -1), noise_BV).bincount(minlength=5)
    assert counts[2] == 0
    alive = probs > 0
    assert ((counts - 20_000 * probs)[alive] ** 2 / (20_000 * probs)[alive]).sum() < 16.3


@given(row=scores, t=st.floats(1e-3, 10.0))
def test_temperature_divides_the_differences(row, t):
    changed = filters.temperature(torch.tensor([row], dtype=torch.float64), t)[0].tolist()
    for before, after in zip(row, changed, strict=True):
        assert after == pytest.approx((before - max(row)) / t) or before == after == -math.inf


@pytest.mark.parametrize("t", [5e-324, 1e-300, 1e-45, 1e-10])
def test_the_smallest_temperature_is_nearly_greedy_and_never_nan(t):
    probs_V = filters.temperature(torch.tensor([[1.0, 3.0, 2.0, -math.inf]]), t).softmax(-1)[0]
    assert probs_V.tolist() == [0, 1, 0, 0]


@given(row=scores, context=st.lists(st.integers(0, 8), max_size=6), penalty=st.floats(0.5, 2.0))
def test_repetition_penalty_moves_each_seen_token_once_and_down(row, context, penalty):
    seen = torch.tensor([[i in context for i in range(len(row))]])
    changed = filters.repetition_penalty(torch.tensor([row], dtype=torch.float64), seen, penalty)[0].tolist()
    for i, (before, after) in enumerate(zip(row, changed, strict=True)):
        expected = before if i not in context else before / penalty if before > 0 else before * penalty
        assert after == pytest.approx(expected)
        if penalty >= 1:
            assert after <= before


def test_every_filter_leaves_its_argument_alone_and_treats_rows_apart():
    logits_BV = torch.tensor([[0.0, 1.0, 2.0, 3.0], [9.0, 0.0, 0.0, 0.0]])
    before = logits_BV.clone()
    seen_BV = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]])
    for change in (
        lambda x: filters.below(x, 2),
        lambda x: filters.top_k(x, 2),
        lambda x: filters.top_p(x, 0.7),
        lambda x: filters.min_p(x, 0.2),
        lambda x: filters.typical_p(x, 0.6),
        lambda x: filters.temperature(x, 0.5),
    ):
        assert torch.equal(change(logits_BV), torch.cat([change(row[None]) for row in logits_BV]))
        assert torch.equal(logits_BV, before)
    assert filters.repetition_penalty(logits_BV, seen_BV > 0, 2.0).tolist() == [[0, 1, 2, 1.5], [9, 0, 0, 0]]
    assert filters.count_penalties(logits_BV, 3 * seen_BV, 1.0, 0.5).tolist() == [[0, 1, 2, 0.5], [9, -2.5, 0, 0]]
    assert filters.logit_bias(logits_BV, {1: 2.0, 0: -1.0}).tolist() == [[-1, 3, 2, 3], [8, 2, 0, 0]]
    assert filters.exponential_race(logits_BV, torch.ones(2, 4)).tolist() == [3, 0]
    assert torch.equal(logits_BV, before)


WAYS = {
    "greedy": SamplingConfig(temperature=0),
    "drawn from all": SamplingConfig(temperature=1.0),
    "drawn from some": SamplingConfig(temperature=1.0, top_k=3),
}


def chosen(logits_BV: torch.Tensor, config: SamplingConfig) -> list[int]:
    return choose(logits_BV, config, [], torch.ones_like(logits_BV) if config.temperature else None).tolist()


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused_with_their_row(bad, config):
    logits_BV = torch.zeros(3, 4)
    logits_BV[2, 1] = bad
    with pytest.raises(CheckpointError, match=rf"best score is {bad} \(sample 2\)"):
        chosen(logits_BV, config)


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS.keys())
def test_a_row_with_nothing_left_is_refused(config):
    with pytest.raises(CheckpointError, match="-inf"):
        chosen(torch.full((1, 4), -math.inf), config)


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS.keys())
def test_dropped_tokens_are_fine_as_long_as_one_is_left(config):
    assert chosen(torch.tensor([[-math.inf, 1.0]]), config) == [1]


@given(
    row=scores,
    t=st.sampled_from([1e-42, 1e-3, 0.5, 1.0, 1.7, 1e4]),
    noise=st.lists(st.floats(1e-3, 20.0), min_size=9, max_size=9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_race_of_few_equals_the_race(row, t, noise, dtype):
    logits_BV = torch.tensor([row, row[::-1]], dtype=dtype)
    noise_BV = torch.tensor([noise[: len(row)]] * 2, dtype=torch.float32)
    expected = filters.exponential_race(filters.temperature(logits_BV, t), noise_BV)
    few = filters.exponential_race_of_few(logits_BV, t, noise_BV)
    weights_BV = filters.temperature(logits_BV.double(), t).exp() / noise_BV
    for drawn in (expected, few):  # equal but for ties that rounding decides
        torch.testing.assert_close(weights_BV.gather(1, drawn[:, None])[:, 0], weights_BV.amax(-1), rtol=1e-5, atol=0)
