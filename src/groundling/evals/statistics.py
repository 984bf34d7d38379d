"""Statistics of ratings and win rates: Wilson, clustered and bootstrap intervals, Cohen's kappa, Bradley-Terry.

Why not scipy, statsmodels or choix: they are heavy for ten lines each, and choix has no ties. Tests compare with scipy
and scikit-learn.

Shapes: M models, S seeds, P prompts.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054
"""Half-width of a 95 % normal interval, in standard deviations."""
PRIOR_GAMES = 1.0
"""Prior: games of each model against an average model, half won and half lost."""


class Kappa(NamedTuple):
    """Agreement of two raters."""

    raters: tuple[str, str]
    n_pairs: int
    """Pairs of replies that both compared."""
    agreement: float | None
    """Fraction of equal answers; None without pairs."""
    kappa: float | None
    """Cohen's kappa: 1 perfect, 0 chance; None if chance agreement is 1, or without pairs."""


class Share(NamedTuple):
    """A proportion of n cases, its 95 % interval (Wilson 1927), and its value by chance."""

    n: int
    share: float
    low: float
    high: float
    by_chance: float


def cohens_kappa(raters: tuple[str, str], answers: Sequence[tuple[int, int]]) -> Kappa:
    """Cohen's kappa of answers in {-1, 0, 1}.

    Each pair counts in both orders, because the order of two replies means nothing. So chance agreement on pairs that
    are no ties is one half.
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
    """95 % interval of a proportion of cases that are correlated within groups.

    Wilson's interval for the effective number of independent cases (Kish 1965, section 8.2): at most the number of
    cases; the number of groups if all groups agree.

    Args:
        wins: outcome of each case.
        groups: group of each case.
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
    """Wilson's 95 % interval of a proportion: stays within 0 and 1, and holds for few cases."""
    share, z2_n = n_wins / n, Z_95**2 / n
    centre = (share + z2_n / 2) / (1 + z2_n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2_n / (4 * n)) / (1 + z2_n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bradley_terry_scores(wins_MM: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Bradley-Terry scores of M models, centred on their mean, and standard errors, by Newton's method.

    The prior's average model has score 0, and makes the log-likelihood strictly concave. Steps are halved until it
    increases.
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
    """Log-likelihood of the wins and the prior, in nats."""
    log_chance_MM = -np.logaddexp(0, score_M[None, :] - score_M[:, None])
    log_prior = -np.logaddexp(0, score_M) - np.logaddexp(0, -score_M)
    return float((wins_MM * log_chance_MM).sum() + PRIOR_GAMES / 2 * log_prior.sum())


N_RESAMPLES = 2000


def interval(values_SP: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean (Efron 1979).

    Seeds and prompts are resampled as wholes, because values of one seed or one prompt are correlated.
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
