"""Statistics against scipy and scikit-learn."""

from itertools import combinations

import numpy as np
import pytest

from groundling.evals.statistics import PRIOR_GAMES, bradley_terry_scores, cohens_kappa, interval, wilson

pytestmark = pytest.mark.slow  # imports scipy and scikit-learn


@pytest.mark.parametrize(("n_wins", "n"), [(0, 20), (1, 1), (81, 263), (199, 200)])
def test_wilson_is_scipys(n_wins: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(n_wins, n).proportion_ci(0.95, "wilson")
    assert wilson(n_wins, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_kappa_is_scikit_learns() -> None:
    """Of each pair in both orders, because the order of two replies means nothing."""
    from sklearn.metrics import cohen_kappa_score

    generator = np.random.default_rng(0)
    first = generator.integers(-1, 2, 200)
    second = np.where(generator.random(200) < 0.6, first, generator.integers(-1, 2, 200))
    found = cohens_kappa(("a", "b"), list(zip(first.tolist(), second.tolist(), strict=True)))
    expected = cohen_kappa_score(np.concatenate([first, -first]), np.concatenate([second, -second]))
    assert found.kappa == pytest.approx(expected, abs=1e-12)
    assert found.agreement == pytest.approx((first == second).mean())


def test_bradley_terry_is_scikit_learns_logistic_regression() -> None:
    """Without an intercept; a prior game is half a win and half a loss against a model of score 0."""
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(1)
    wins_MM = generator.integers(0, 30, (4, 4)).astype(float)
    np.fill_diagonal(wins_MM, 0)
    rows, won, weights = [], [], []
    for a, b in combinations(range(4), 2):
        rows += [np.eye(4)[a] - np.eye(4)[b]] * 2
        won += [1, 0]
        weights += [wins_MM[a, b], wins_MM[b, a]]
    for a in range(4):
        rows += [np.eye(4)[a]] * 2
        won += [1, 0]
        weights += [PRIOR_GAMES / 2] * 2
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000)
    expected = model.fit(rows, won, sample_weight=weights).coef_[0]
    scores, errors = bradley_terry_scores(wins_MM)
    np.testing.assert_allclose(scores, expected - expected.mean(), atol=1e-5)
    assert (errors > 0).all()


def test_the_bootstrap_interval_of_one_seed_is_scipys() -> None:
    """Up to four standard errors of a quantile of 2,000 resamples: 0.06 of the interval."""
    from scipy.stats import bootstrap

    values = np.random.default_rng(2).random(80)
    expected = bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=0
    ).confidence_interval
    low, high = interval([values.tolist()])
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.06 * (high - low))
