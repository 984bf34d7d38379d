"""What judgements say together: whether raters agree, whether the place on the screen decides, who is better."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from groundling.align.judgements import Comparison, Judgement

Z_95 = 1.959963984540054
"""A normal variable lies within so many standard deviations with 95 %."""

PRIOR_GAMES = 1.0
"""The games of each model against an average one, half won and half lost, that are added to its own."""

Question = tuple[object, ...]


class Kappa(NamedTuple):
    """How well two raters agree."""

    raters: tuple[str, str]
    n_pairs: int
    """The pairs of replies that both compared."""
    agreement: float | None
    """The share on which they said the same; None without pairs."""
    kappa: float | None
    """Cohen's: 1 always, 0 as by chance; None where chance alone would always agree, or without pairs."""


class Share(NamedTuple):
    """A share of n cases with its interval of 95 % (Wilson 1927), and what it would be by chance."""

    n: int
    share: float
    low: float
    high: float
    by_chance: float


class Score(NamedTuple):
    """A model's strength in log-odds (nats) against the average of the models, with an interval of 95 %."""

    model: str
    n_comparisons: int
    score: float
    low: float
    high: float


def kappas(judgements: Iterable[Judgement]) -> list[Kappa]:
    """Cohen's kappa for each two raters, over the pairs of replies to one prompt that both compared."""
    said: dict[str, dict[Question, int]] = {}
    for judgement in judgements:
        answers = said.setdefault(judgement.rater, {})
        for comparison in judgement.comparisons():
            question, answer = _asked(comparison)
            answers.setdefault(question, answer)  # who is asked again is taken at the first word
    return [
        _kappa(pair, [(said[pair[0]][question], said[pair[1]][question]) for question in _shared(said, pair)])
        for pair in combinations(sorted(said), 2)
    ]


def _shared(said: Mapping[str, Mapping[Question, int]], raters: tuple[str, str]) -> list[Question]:
    return [question for question in said[raters[0]] if question in said[raters[1]]]


def _asked(comparison: Comparison) -> tuple[Question, int]:
    """Which two texts were compared, in an order of their own; and 1 or -1 for the better of them, 0 for a tie."""
    better, worse = comparison.better.text, comparison.worse.text
    sign = 0 if comparison.tie or better == worse else (1 if better < worse else -1)
    return (comparison.messages, *sorted((better, worse))), sign


def _kappa(raters: tuple[str, str], answers: Sequence[tuple[int, int]]) -> Kappa:
    """Each pair counts in both orders, for which of two replies is called the first means nothing.

    So neither rater has a leaning to the first, and chance agrees on half of what is no tie.
    """
    if not answers:
        return Kappa(raters, 0, None, None)
    both_orders = [*answers, *((-a, -b) for a, b in answers)]
    agreed = sum(a == b for a, b in both_orders) / len(both_orders)
    first, second = Counter(a for a, _ in both_orders), Counter(b for _, b in both_orders)
    by_chance = sum(first[answer] * second[answer] for answer in (-1, 0, 1)) / len(both_orders) ** 2
    kappa = None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
    return Kappa(raters, len(answers), agreed, kappa)


def position_bias(judgements: Iterable[Judgement]) -> Share | None:
    """How often the candidate that was shown first was said to be the one best; None when none ever was.

    By chance it is one over the number of candidates, for they are shown in random order.
    """
    decided = [judgement for judgement in judgements if judgement.choice and len(judgement.choice[0]) == 1]
    if not decided:
        return None
    n_first = sum(judgement.choice[0][0] == judgement.shown[0] for judgement in decided)
    by_chance = sum(1 / len(judgement.candidates) for judgement in decided) / len(decided)
    return Share(len(decided), n_first / len(decided), *wilson(n_first, len(decided)), by_chance)


def clustered(wins: Sequence[bool], groups: Sequence[Hashable]) -> tuple[float, float]:
    """An interval of 95 % for a share of cases that come in groups, whose members say much the same.

    It is Wilson's, for as many independent cases as would spread as the groups do (their "effective number"; Kish 1965,
    section 8.2): never more than there are cases, and as many as there are groups where these do not spread at all.

    Args:
        wins: of each case.
        groups: of each case, what it has in common with others.
    """
    n, share = len(wins), sum(wins) / len(wins)
    gaps: defaultdict[Hashable, float] = defaultdict(float)
    for win, group in zip(wins, groups, strict=True):
        gaps[group] += win - share
    n_groups = len(gaps)
    variance = n_groups / max(1, n_groups - 1) * math.fsum(gap**2 for gap in gaps.values()) / n**2
    effective = min(n, share * (1 - share) / variance) if variance > 0 else n_groups
    return wilson(share * effective, effective)


def wilson(n_wins: float, n: float) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share: it stays within 0 and 1 and is honest for few cases."""
    share, z2_n = n_wins / n, Z_95**2 / n
    centre = (share + z2_n / 2) / (1 + z2_n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2_n / (4 * n)) / (1 + z2_n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bradley_terry(comparisons: Iterable[Comparison]) -> list[Score]:
    """How strong the models are, the strongest first: model A beats B with the probability sigmoid(A - B).

    A tie is half a win for both; two replies of one model say nothing. To each model's games `PRIOR_GAMES` against an
    average model are added, so that one that never lost stays finite; with many games that no longer matters. The
    intervals come from the Fisher information and take comparisons as independent. Those of one whole ranking are not
    quite: where four candidates are ranked from best to worst, the intervals hold the truth in 87 %, not in 95 %.
    """
    wins: defaultdict[tuple[str, str], float] = defaultdict(float)
    for comparison in comparisons:
        pair = (comparison.better.model, comparison.worse.model)
        wins[pair] += 0.5 if comparison.tie else 1.0
        wins[pair[::-1]] += 0.5 if comparison.tie else 0.0
    models = sorted({model for pair in wins for model in pair})
    wins_MM = np.array([[wins[a, b] if a != b else 0.0 for b in models] for a in models], dtype=np.float64)
    if not models:
        return []
    score_M, error_M = _fit(wins_MM)
    n_M = (wins_MM + wins_MM.T).sum(axis=1)
    scores = [
        Score(model, round(float(n)), float(score), float(score - Z_95 * error), float(score + Z_95 * error))
        for model, n, score, error in zip(models, n_M, score_M, error_M, strict=True)
    ]
    return sorted(scores, key=lambda score: -score.score)


def _fit(wins_MM: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The scores of M models around their mean, and their standard errors, by Newton's method.

    The average model of the prior stands at 0. The likelihood is concave and the prior makes it strictly so; a step is
    halved while it would lead down.
    """
    games_MM, n_models = wins_MM + wins_MM.T, len(wins_MM)
    score_M = np.zeros(n_models)
    for _ in range(200):
        chance_MM = _sigmoid(score_M[:, None] - score_M[None, :])
        prior_M = _sigmoid(score_M)
        slope_M = (wins_MM - games_MM * chance_MM).sum(axis=1) + PRIOR_GAMES * (0.5 - prior_M)
        weight_MM = games_MM * chance_MM * (1 - chance_MM)
        information_MM = np.diag(weight_MM.sum(axis=1) + PRIOR_GAMES * prior_M * (1 - prior_M)) - weight_MM
        step_M = np.linalg.solve(information_MM, slope_M)
        if np.abs(step_M).max() < 1e-10:
            break
        scale = 1.0
        while _likelihood(wins_MM, score_M + scale * step_M) < _likelihood(wins_MM, score_M) and scale > 1e-6:
            scale /= 2
        score_M = score_M + scale * step_M
    centring_MM = np.eye(n_models) - 1 / n_models
    covariance_MM = centring_MM @ np.linalg.inv(information_MM) @ centring_MM
    return centring_MM @ score_M, np.sqrt(np.maximum(np.diag(covariance_MM), 0))


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(x / 2))


def _likelihood(wins_MM: npt.NDArray[np.float64], score_M: npt.NDArray[np.float64]) -> float:
    """Of the wins and the prior, in nats."""
    log_chance_MM = -np.logaddexp(0, score_M[None, :] - score_M[:, None])
    log_prior = -np.logaddexp(0, score_M) - np.logaddexp(0, -score_M)
    return float((wins_MM * log_chance_MM).sum() + PRIOR_GAMES / 2 * log_prior.sum())
