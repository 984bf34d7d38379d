"""A simulated rater: follows a gold measure, with a known error rate.

Two texts: A wins with probability sigmoid((g(A) - g(B)) / noise) for the measure g (Bradley and Terry 1952). More
texts: rank by measure plus Gumbel noise (Plackett-Luce), which is Bradley-Terry on every pair.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from groundling.align.preferences.judgement import Choice
from groundling.align.preferences.measures import Measure
from groundling.errors import require

SAME = 1e-9
"""Measures with a smaller difference count as equal."""


def named_generator(*names: int | str) -> np.random.Generator:
    """A generator seeded by a hash of names, independent of other generators."""
    key = hashlib.sha256(json.dumps(names).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


@dataclass(frozen=True)
class SimulatedRater:
    """A seeded, noisy rater over a gold measure."""

    measure: Measure
    noise: float
    """Gap in the measure at which the better text wins with probability 0.73; 0: it always wins."""
    seed: int

    def __post_init__(self) -> None:
        require(
            0 <= self.noise < math.inf,
            f"a judge's noise must be a number of at least 0, not {self.noise}; choose one",
        )

    def probability(self, a: str, b: str) -> float:
        """Probability that `a` is preferred over `b`; 0.5 for a tie."""
        return self._probability(self.measure(a) - self.measure(b))

    def _probability(self, gap: float) -> float:
        if abs(gap) <= SAME:
            return 0.5
        if self.noise == 0:
            return float(gap > 0)
        return 0.5 * (1 + math.tanh(gap / self.noise / 2))  # sigmoid without overflow

    def rank(self, prompt: int | str, candidates: Sequence[str]) -> Choice:
        """Rank the candidates of a prompt.

        Candidates of equal measure are tied. A tied group shares one draw, so its members still win against others with
        Bradley-Terry's probability. Draws depend on the seed and the prompt only, not on the order of prompts.

        Args:
            prompt: the number or name of the prompt.
            candidates: the texts, in a fixed order: each position has its own draw.
        """
        golds = [self.measure(candidate) for candidate in candidates]
        noise = named_generator("judge", self.seed, prompt).gumbel(size=len(golds))
        groups = equal_groups(golds)
        scores = [golds[group[0]] + self.noise * float(noise[group[0]]) for group in groups]
        return tuple(groups[place] for place in sorted(range(len(groups)), key=lambda place: -scores[place]))

    def ceiling(self, pairs: Iterable[tuple[str, str]]) -> float:
        """Best possible accuracy on these pairs: that of the noise-free measure.

        A tie counts one half; NaN without pairs.
        """
        chances = [self.probability(a, b) for a, b in pairs]
        return float(np.mean([max(chance, 1 - chance) for chance in chances])) if chances else math.nan


def equal_groups(golds: Sequence[float]) -> list[tuple[int, ...]]:
    """Group indices of equal measures; groups are ordered by their first index.

    A chain of differences of at most `SAME` is one group, which makes equality transitive.
    """
    by_size = sorted(range(len(golds)), key=golds.__getitem__)
    groups: list[list[int]] = []
    for last, place in zip([None, *by_size], by_size, strict=False):
        if last is not None and golds[place] - golds[last] <= SAME:
            groups[-1].append(place)
        else:
            groups.append([place])
    return sorted(tuple(sorted(group)) for group in groups)
