"""Metrics of a reward model: accuracy on held-out pairs, and calibration."""

import math
from collections.abc import Sequence

from groundling.align.preferences.encoding import Ranked
from groundling.align.preferences.simulated_rater import SimulatedRater
from groundling.align.reward.model import RewardModel, scores_of
from groundling.align.stage import Stage
from groundling.evals.statistics import clustered


class RewardMetrics:
    """Accuracy on held-out pairs, compared with the ceiling that the rater's noise sets."""

    def __init__(
        self, stage: Stage, model: RewardModel, answers: Sequence[Ranked], rater: SimulatedRater | None
    ) -> None:
        self._stage, self._model, self._answers = stage, model, answers
        self._pairs = [
            (number, a, b) for number, answer in enumerate(answers) for a, b, win in answer.pairs if win == 1
        ]
        texts = [(answers[n].texts[a], answers[n].texts[b]) for n, a, b in self._pairs]
        self._ceiling = rater.ceiling(texts) if rater is not None and texts else None
        self.calibration: list[dict[str, float]] = []

    def __call__(self) -> dict[str, float]:
        if not self._pairs:
            return {}
        flat = [each for answer in self._answers for each in answer.sequences]
        scores = iter(scores_of(self._model, flat, self._stage.picked.autocast))
        # The last score of an answer is ZERO_REWARD.
        by_answer = [[*(next(scores) for _ in answer.sequences), 0.0] for answer in self._answers]
        gaps = [by_answer[n][a] - by_answer[n][b] for n, a, b in self._pairs]
        right = [gap > 0 for gap in gaps]  # equal scores count as wrong
        accuracy = sum(right) / len(gaps)
        low, high = clustered(right, [self._answers[n].messages for n, _, _ in self._pairs])
        figures = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "pairs": float(len(gaps))}
        figures["val_loss"] = sum(math.log1p(math.exp(-abs(gap))) + max(0.0, -gap) for gap in gaps) / len(gaps)
        if self._ceiling is not None:
            figures["ceiling"] = self._ceiling
            if self._ceiling > 0.5:  # else all pairs are ties under the measure
                figures["of_the_margin"] = (accuracy - 0.5) / (self._ceiling - 0.5)
        self.calibration = calibration(gaps)
        return figures


def calibration(gaps: Sequence[float], n_bins: int = 10) -> list[dict[str, float]]:
    """Reliability diagram: the observed share of preferences per bin of predicted probability.

    Args:
        gaps: r(better) - r(worse) of each pair; each pair counts in both directions.
        n_bins: equal bins of 0 to 1.
    """
    expected = [(1 / (1 + math.exp(-max(-50.0, min(50.0, side * gap)))), side > 0) for gap in gaps for side in (1, -1)]
    bins: list[dict[str, float]] = []
    for number in range(n_bins):
        inside = [(p, won) for p, won in expected if min(int(p * n_bins), n_bins - 1) == number]
        if inside:
            mean, share = sum(p for p, _ in inside) / len(inside), sum(won for _, won in inside) / len(inside)
            bins.append({"expected": mean, "preferred": share, "pairs": float(len(inside))})
    return bins
