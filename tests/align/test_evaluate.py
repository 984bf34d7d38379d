"""What the report's figures mean."""

import math

import numpy as np
import pytest

from groundling.align.replies import Reply
from groundling.align.report.evaluate import best_of_kl, best_of_n, distinct, evaluate_replies, wins
from groundling.evals.statistics import interval


def reply(text: str, ended: bool = True) -> Reply:
    return Reply([1], list(range(len(text))), ended, text)


def test_a_tie_is_half_a_win() -> None:
    assert wins([1.0, 0.0, 2.0], [0.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]


@pytest.mark.slow
def test_the_interval_has_its_nominal_coverage() -> None:
    """Coins of probability 0.7: 95 % of intervals hold it, give or take."""
    generator, covered = np.random.Generator(np.random.Philox(key=1)), 0
    for _ in range(60):
        low, high = interval((generator.random((1, 120)) < 0.7).astype(float).tolist())
        covered += low <= 0.7 <= high
    assert covered >= 52


def test_correlation_within_seeds_widens_the_interval() -> None:
    """Three seeds that differ are three observations, however many prompts each has."""
    agreeing = interval([[0.0, 1.0] * 50] * 3)
    apart = interval([[0.0] * 100, [1.0] * 100, [0.5] * 100])
    assert apart[1] - apart[0] > 3 * (agreeing[1] - agreeing[0])


def test_the_same_values_give_the_same_interval() -> None:
    values = [[0.0, 1.0, 1.0, 0.5]] * 2
    assert interval(values) == interval(values)
    assert interval([[1.0, 1.0]]) == (1.0, 1.0)


def test_the_kl_of_best_of_n() -> None:
    assert best_of_kl(1) == 0
    assert best_of_kl(16) == pytest.approx(math.log(16) - 15 / 16)


def test_the_best_is_picked_among_the_first_n() -> None:
    groups = [[reply("a"), reply("b"), reply("c")]]
    assert best_of_n(2, groups, [[0.0, 1.0, 9.0]]) == [1]
    assert best_of_n(3, groups, [[0.0, 1.0, 9.0]]) == [2]


def test_distinct_words() -> None:
    assert distinct(["a a a a"], 1) == 0.25
    assert distinct(["a b", "b a"], 2) == 1.0
    assert distinct(["", "a"], 2) == 0.0


def test_a_verdict_is_of_all_seeds() -> None:
    ours = [[reply("ee"), reply("e", ended=False)], [reply("x"), reply("eee")]]
    theirs = [[reply("e"), reply("e")], [reply("e"), reply("e")]]
    verdict = evaluate_replies(ours, theirs, lambda text: float(text.count("e")), [[1.0, 2.0], [3.0, 4.0]], 0.5)
    assert verdict.gold == pytest.approx(1.5)
    assert verdict.win_seeds == [0.75, 0.5]
    assert verdict.win_rate == pytest.approx(0.625)
    assert verdict.win_low <= 0.625 <= verdict.win_high
    assert (verdict.proxy, verdict.kl, verdict.length, verdict.ended) == (2.5, 0.5, 1.75, 0.75)
