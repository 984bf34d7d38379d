"""Statistics of judgements: inter-rater agreement, position bias and model scores."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np

from groundling.align.preferences.judgement import Comparison, Judgement
from groundling.evals.statistics import Z_95, Kappa, Share, bradley_terry_scores, cohens_kappa, wilson

Question = tuple[object, ...]


class Score(NamedTuple):
    """A model's Bradley-Terry score in nats relative to the mean of all models, with its 95 % interval."""

    model: str
    n_comparisons: int
    score: float
    low: float
    high: float


def kappas(judgements: Iterable[Judgement]) -> list[Kappa]:
    """Cohen's kappa of every two raters, over the pairs of replies that both compared."""
    by_rater: dict[str, dict[Question, int]] = {}
    for judgement in judgements:
        answers = by_rater.setdefault(judgement.rater, {})
        for comparison in judgement.comparisons():
            question, answer = _question_and_answer(comparison)
            answers.setdefault(question, answer)  # if a rater compared a pair twice, the first answer counts
    return [
        cohens_kappa((a, b), [(answer, by_rater[b][q]) for q, answer in by_rater[a].items() if q in by_rater[b]])
        for a, b in combinations(sorted(by_rater), 2)
    ]


def _question_and_answer(comparison: Comparison) -> tuple[Question, int]:
    """The question with its texts sorted, and the answer: 1 if the first is better, -1 the second, 0 for a tie."""
    better, worse = comparison.better.text, comparison.worse.text
    sign = 0 if comparison.tie or better == worse else (1 if better < worse else -1)
    return (comparison.messages, *sorted((better, worse))), sign


def position_bias(judgements: Iterable[Judgement]) -> Share | None:
    """How often the candidate shown first was chosen as best; None without a judgement that chose one.

    Candidates are shown in random order, so the expected share is one over their number.
    """
    decided = [judgement for judgement in judgements if judgement.choice and len(judgement.choice[0]) == 1]
    if not decided:
        return None
    n_first = sum(judgement.choice[0][0] == judgement.shown[0] for judgement in decided)
    by_chance = sum(1 / len(judgement.candidates) for judgement in decided) / len(decided)
    return Share(len(decided), n_first / len(decided), *wilson(n_first, len(decided)), by_chance)


def bradley_terry(comparisons: Iterable[Comparison]) -> list[Score]:
    """Bradley-Terry scores, highest first: model A beats B with probability sigmoid(A - B).

    A tie is half a win for both; two replies of one model do not count. Each model also plays `PRIOR_GAMES` games
    against an average model, which keeps scores finite. The intervals come from the Fisher information and assume
    independent comparisons. Those of one ranking are dependent: with four ranked candidates, the intervals cover the
    true score in 87 % of cases, not 95 %.
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
    score_M, error_M = bradley_terry_scores(wins_MM)
    n_M = (wins_MM + wins_MM.T).sum(axis=1)
    scores = [
        Score(model, round(float(n)), float(score), float(score - Z_95 * error), float(score + Z_95 * error))
        for model, n, score, error in zip(models, n_M, score_M, error_M, strict=True)
    ]
    return sorted(scores, key=lambda score: -score.score)
