"""Statistics of ratings and win rates: Wilson, clustered and bootstrap intervals, Cohen's kappa, Bradley-Terry.

Shapes: M models, S seeds, P prompts.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054
"""A normal variable lies within so many standard deviations with 95 %."""
PRIOR_GAMES = 1.0
"""The games of each model against an average one, half won and half lost, that are added to its own."""


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


def cohens_kappa(raters: tuple[str, str], answers: Sequence[tuple[int, int]]) -> Kappa:
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


def bradley_terry_scores(wins_MM: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
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


N_RESAMPLES = 2000


def interval(values_SP: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean, by the bootstrap (Efron 1979).

    Seeds and prompts are resampled both, each with all that belongs to it: what one seed's replies have in common,
    or one prompt's, does not count as independent.
    """
    table = np.asarray(values_SP, dtype=float)
    generator = np.random.Generator(np.random.Philox(key=seed))
    n_seeds, n_prompts = table.shape
    means = [
        table[generator.integers(0, n_seeds, n_seeds)][:, generator.integers(0, n_prompts, n_prompts)].mean()
        for _ in range(N_RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
