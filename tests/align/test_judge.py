"""The judge errs as often as Bradley and Terry say, and its answers follow from seed and prompt alone."""

import itertools
import math

import pytest

from groundling.align.preferences.simulated_rater import SimulatedRater, equal_groups, named_generator
from groundling.errors import ConfigError


def value(text: str) -> float:
    return float(text)


def share_of_wins(judge: SimulatedRater, a: str, b: str, others: tuple[str, ...] = (), n: int = 4000) -> float:
    """How often `a` comes before `b`."""
    candidates = (*others, a, b)
    wins = 0
    for prompt in range(n):
        place = {c: rank for rank, group in enumerate(judge.rank(prompt, candidates)) for c in group}
        wins += place[len(others)] < place[len(others) + 1]
    return wins / n


@pytest.mark.parametrize(("gap", "noise"), [(0.5, 1.0), (1.0, 0.5), (-0.3, 0.2)])
@pytest.mark.parametrize("others", [(), ("0.4", "-1")], ids=["a pair", "two of four"])
def test_win_rates_follow_the_sigmoid(gap, noise, others):
    judge = SimulatedRater(value, noise, seed=5)
    expected = 1 / (1 + math.exp(-gap / noise))
    assert judge.probability(str(gap), "0") == pytest.approx(expected)
    four_sigma = 4 * math.sqrt(expected * (1 - expected) / 4000)
    assert share_of_wins(judge, str(gap), "0", others) == pytest.approx(expected, abs=four_sigma)


def test_a_tied_candidate_wins_as_often_as_alone():
    judge = SimulatedRater(value, 1.0, seed=5)
    expected = 1 / (1 + math.exp(-0.5))
    assert share_of_wins(judge, "0.5", "0", ("0.5", "0.5")) == pytest.approx(expected, abs=0.032)


def test_equal_measures_are_a_tie():
    judge = SimulatedRater(value, 1.0, seed=5)
    assert judge.rank("p", ["0.1", "0.1"]) == ((0, 1),)
    assert judge.rank("p", ["0.1", str(0.1 + 1e-10)]) == ((0, 1),)
    assert len(judge.rank("p", ["0.1", str(0.1 + 1e-8)])) == 2
    assert sorted(judge.rank("p", ["1", "2", "1", "2"])) == [(0, 2), (1, 3)]
    assert judge.probability("3", "3") == 0.5


def test_near_equals_are_chained_so_that_a_tie_holds_both_ways():
    chain = [0.0, 1.8e-9, 0.9e-9, 5.0]
    for order in itertools.permutations(range(4)):
        groups = equal_groups([chain[i] for i in order])
        assert sorted(sorted(order[place] for place in group) for group in groups) == [[0, 1, 2], [3]]


def test_answers_do_not_depend_on_earlier_ones():
    candidates = ["0", "0.1", "0.2"]
    forwards = {prompt: SimulatedRater(value, 1.0, 7).rank(prompt, candidates) for prompt in range(50)}
    judge = SimulatedRater(value, 1.0, 7)
    assert {prompt: judge.rank(prompt, candidates) for prompt in reversed(range(50))} == forwards
    assert {prompt: SimulatedRater(value, 1.0, 8).rank(prompt, candidates) for prompt in range(50)} != forwards
    assert len(set(forwards.values())) == 6, "every order comes up among fifty prompts"


def test_a_number_and_its_name_are_two_prompts():
    assert named_generator("x", 1).random() != named_generator("x", "1").random()


def test_without_noise_the_judge_follows_the_measure():
    judge = SimulatedRater(value, 0.0, seed=1)
    for prompt in range(20):
        assert judge.rank(prompt, ["2", "3", "1", "3"]) == ((1, 3), (0,), (2,))
    assert [judge.probability("2", "1"), judge.probability("1", "2"), judge.probability("1", "1")] == [1, 0, 0.5]


def test_the_measure_reaches_the_ceiling_and_nothing_exceeds_it():
    judge = SimulatedRater(value, 0.5, seed=2)
    pairs = [(str(a / 4), str(b / 4)) for a, b in itertools.permutations(range(5), 2)] * 200
    answers = [judge.rank(number, pair)[0] == (0,) for number, pair in enumerate(pairs)]
    knowing = [value(a) > value(b) for a, b in pairs]
    accuracy = sum(answer == guess for answer, guess in zip(answers, knowing, strict=True)) / len(pairs)
    ceiling = judge.ceiling(pairs)
    assert 0.6 < ceiling < 0.9
    assert accuracy == pytest.approx(ceiling, abs=0.03)
    assert judge.ceiling([("1", "1")]) == 0.5
    assert math.isnan(judge.ceiling([]))


def test_large_gaps_do_not_overflow():
    judge = SimulatedRater(value, 1e-6, seed=0)
    assert judge.probability("1e6", "0") == 1.0
    assert judge.probability("0", "1e6") == 0.0


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_an_invalid_noise_is_refused(noise):
    with pytest.raises(ConfigError, match="noise must be"):
        SimulatedRater(value, noise, seed=0)
