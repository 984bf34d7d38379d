"""How good replies are: a gold measure, wins against another model with intervals, and the price in nats.

Shapes: S seeds, P prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from groundling.align.preferences.measures import Measure
from groundling.align.replies import Reply
from groundling.evals.statistics import interval


@dataclass(frozen=True)
class Verdict:
    """What a way to reply was like, beside another's replies to the same prompts."""

    gold: float
    """The measure's mean."""
    win_rate: float
    """The part of replies that the measure puts above the other's; a tie counts half."""
    win_low: float
    win_high: float
    """Its 95 % interval, by resampling seeds and prompts."""
    win_seeds: list[float]
    """The same for each seed alone."""
    proxy: float
    """The reward model's mean."""
    kl: float | None
    """Nats a reply, of leaving the reference."""
    length: float
    """Ids a reply, the end included."""
    ended: float
    """The part of replies that came to an end."""
    distinct_1: float
    distinct_2: float
    """Different words, and pairs of neighbours, as parts of all (arXiv:1510.03055)."""


def wins(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """1 where ours is higher, 0 where theirs is, one half where they are equal."""
    return [0.5 if a == b else float(a > b) for a, b in zip(ours, theirs, strict=True)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Different runs of n words, as a part of all."""
    runs = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def best_of_kl(n: int) -> float:
    """How far the best of n has left the model, at most (arXiv:2009.01325, G.3): ln n - (n - 1) / n nats."""
    return math.log(n) - (n - 1) / n


def best_of_n(n: int, groups: Sequence[Sequence[Reply]], rewards: Sequence[Sequence[float]]) -> list[int]:
    """The place of the reply with the highest reward among the first n of each group."""
    return [max(range(n), key=values[:n].__getitem__) for _, values in zip(groups, rewards, strict=True)]


def evaluate_replies(
    replies_SP: Sequence[Sequence[Reply]],
    theirs_SP: Sequence[Sequence[Reply]],
    measure: Measure,
    proxy_SP: Sequence[Sequence[float]],
    kl: float | None,
) -> Verdict:
    """Look at replies of several seeds beside others to the same prompts."""
    won_SP = [
        wins([measure(reply.text) for reply in ours], [measure(reply.text) for reply in theirs])
        for ours, theirs in zip(replies_SP, theirs_SP, strict=True)
    ]
    low, high = interval(won_SP)
    replies = [reply for each in replies_SP for reply in each]
    return Verdict(
        gold=_mean([measure(reply.text) for reply in replies]),
        win_rate=_mean([value for each in won_SP for value in each]),
        win_low=low,
        win_high=high,
        win_seeds=[_mean(each) for each in won_SP],
        proxy=_mean([value for each in proxy_SP for value in each]),
        kl=kl,
        length=_mean([len(reply.said) for reply in replies]),
        ended=_mean([float(reply.ended) for reply in replies]),
        distinct_1=_mean([distinct([reply.text for reply in each], 1) for each in replies_SP]),
        distinct_2=_mean([distinct([reply.text for reply in each], 2) for each in replies_SP]),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
