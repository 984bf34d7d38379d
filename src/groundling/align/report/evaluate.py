"""Metrics of sampled replies: gold measure, win rate against a baseline, diversity, and the KL of best-of-n.

Shapes: S seeds, P prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from groundling.align.preferences.measures import Measure
from groundling.align.replies import Reply
from groundling.evals.statistics import interval


@dataclass(frozen=True)
class ReplyMetrics:
    """Metrics of a model's replies, compared with a baseline's replies to the same prompts."""

    gold: float
    """Mean gold measure."""
    win_rate: float
    """Fraction of replies with a higher gold measure than the baseline's; a tie counts half."""
    win_low: float
    win_high: float
    """95 % interval of the win rate, by resampling seeds and prompts."""
    win_seeds: list[float]
    """Win rate of each seed."""
    proxy: float
    """Mean reward."""
    kl: float | None
    """KL to the reference, nats per reply."""
    length: float
    """Mean tokens of a reply, including the end token."""
    ended: float
    """Fraction of replies that ended by themselves."""
    distinct_1: float
    distinct_2: float
    """Distinct words and word pairs as fractions of all (arXiv:1510.03055)."""


def wins(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """1 where ours is higher, 0 where theirs is, 0.5 for a tie."""
    return [0.5 if a == b else float(a > b) for a, b in zip(ours, theirs, strict=True)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words as a fraction of all."""
    runs = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def best_of_kl(n: int) -> float:
    """Upper bound on the KL of best-of-n sampling to the model: ln n - (n - 1) / n nats (arXiv:2009.01325, G.3)."""
    return math.log(n) - (n - 1) / n


def best_of_n(n: int, groups: Sequence[Sequence[Reply]], rewards: Sequence[Sequence[float]]) -> list[int]:
    """Index of the reply with the highest reward among the first n of each group."""
    return [max(range(n), key=values[:n].__getitem__) for _, values in zip(groups, rewards, strict=True)]


def evaluate_replies(
    replies_SP: Sequence[Sequence[Reply]],
    theirs_SP: Sequence[Sequence[Reply]],
    measure: Measure,
    proxy_SP: Sequence[Sequence[float]],
    kl: float | None,
) -> ReplyMetrics:
    """Compare replies of several seeds with a baseline's replies to the same prompts.

    Args:
        replies_SP: replies to evaluate.
        theirs_SP: the baseline's.
        measure: the gold measure.
        proxy_SP: rewards of the replies.
        kl: to the reference, nats per reply; passed through.
    """
    won_SP = [
        wins([measure(reply.text) for reply in ours], [measure(reply.text) for reply in theirs])
        for ours, theirs in zip(replies_SP, theirs_SP, strict=True)
    ]
    low, high = interval(won_SP)
    replies = [reply for each in replies_SP for reply in each]
    return ReplyMetrics(
        gold=_mean([measure(reply.text) for reply in replies]),
        win_rate=_mean([value for each in won_SP for value in each]),
        win_low=low,
        win_high=high,
        win_seeds=[_mean(each) for each in won_SP],
        proxy=_mean([value for each in proxy_SP for value in each]),
        kl=kl,
        length=_mean([len(reply.ids) for reply in replies]),
        ended=_mean([float(reply.ended) for reply in replies]),
        distinct_1=_mean([distinct([reply.text for reply in each], 1) for each in replies_SP]),
        distinct_2=_mean([distinct([reply.text for reply in each], 2) for each in replies_SP]),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
