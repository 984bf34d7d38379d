"""How good replies are: the gold measure, wins against another model with intervals, and the price in nats.

Shapes: plain lists, one value for each prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groundling.align.gold import Measure
from groundling.align.policy import Policy
from groundling.align.replies import Reply
from groundling.align.rollout import scored_by

N_RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """What one model's replies were like, beside another's to the same prompts."""

    gold: float
    """The measure's mean."""
    win_rate: float
    """The part of prompts at which the measure is higher than the other's; a tie counts half."""
    win_low: float
    win_high: float
    """Its 95 % interval, by resampling prompts."""
    proxy: float
    """The reward model's mean."""
    kl: float
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


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean, by the bootstrap (Efron 1979)."""
    array = np.asarray(values)
    draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, len(array), (N_RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def distinct(texts: Sequence[str], n: int) -> float:
    """Different runs of n words, as a part of all."""
    runs = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def kl_of(replies: Sequence[Reply], policy: Policy, reference: Policy, block_size: int, n_rows: int = 16) -> float:
    """How far a policy has left a reference, in nats a reply, as its own replies tell."""
    new = scored_by(policy, replies, block_size, n_rows)
    old = scored_by(reference, replies, block_size, n_rows)
    return math.fsum(float((a - b).sum()) for a, b in zip(new, old, strict=True)) / len(replies)


def best_of_kl(n: int) -> float:
    """How far the best of n has left the model, at most (arXiv:2009.01325, G.3): ln n - (n - 1) / n nats."""
    return math.log(n) - (n - 1) / n


def judge_replies(
    replies: Sequence[Reply], theirs: Sequence[Reply], measure: Measure, rewards: Sequence[float], kl: float
) -> tuple[Verdict, list[float]]:
    """Look at replies beside another model's; also return the wins, prompt by prompt."""
    golds, other = ([measure(reply.text) for reply in each] for each in (replies, theirs))
    won, n = wins(golds, other), len(replies)
    low, high = interval(won)
    verdict = Verdict(
        gold=math.fsum(golds) / n,
        win_rate=math.fsum(won) / n,
        win_low=low,
        win_high=high,
        proxy=math.fsum(rewards) / n,
        kl=kl,
        length=sum(len(reply.said) for reply in replies) / n,
        ended=sum(reply.ended for reply in replies) / n,
        distinct_1=distinct([reply.text for reply in replies], 1),
        distinct_2=distinct([reply.text for reply in replies], 2),
    )
    return verdict, won
