"""A rater for those who have none: it follows a gold measure, makes mistakes as people do, and says how often.

By Bradley and Terry (1952) the better of two texts wins with the probability sigmoid((g(A) - g(B)) / noise), where g
is the measure. For more than two, Plackett and Luce: each text gets its measure and a draw of Gumbel noise, and they
are ranked by the sums; on every pair of them this is Bradley-Terry again.
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
"""Measures that differ by no more than this are equal."""


def named_generator(*names: int | str) -> np.random.Generator:
    """A generator whose draws follow from the names alone: not from what was drawn before, or where."""
    key = hashlib.sha256(json.dumps(names).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


@dataclass(frozen=True)
class SimulatedRater:
    """A seeded, noisy rater over a gold measure."""

    measure: Measure
    noise: float
    """The gap in the measure at which the better text wins with 73 %; 0: it always does."""
    seed: int

    def __post_init__(self) -> None:
        require(
            0 <= self.noise < math.inf,
            f"a judge's noise has to be a number of at least 0, not {self.noise}; choose one",
        )

    def probability(self, a: str, b: str) -> float:
        """How probable it is that `a` is preferred over `b`; 0.5 where the judge would say "tie"."""
        return self._probability(self.measure(a) - self.measure(b))

    def _probability(self, gap: float) -> float:
        if abs(gap) <= SAME:
            return 0.5
        if self.noise == 0:
            return float(gap > 0)
        return 0.5 * (1 + math.tanh(gap / self.noise / 2))  # the sigmoid, for gaps of any size

    def rank(self, prompt: int | str, candidates: Sequence[str]) -> Choice:
        """Rank the candidates for a prompt: groups of their numbers, the best first.

        Candidates of equal measure stand in one group, a tie (two of them: the judge says "tie"). Such a group shares
        one draw, so that against each other candidate its members still win by Bradley-Terry. The draws follow from
        the seed and the prompt's number or name: in whatever order prompts are judged, the answers are the same.

        Args:
            prompt: the number or name of the prompt.
            candidates: the texts; their order matters, for each place has its draw.
        """
        golds = [self.measure(candidate) for candidate in candidates]
        noise = named_generator("judge", self.seed, prompt).gumbel(size=len(golds))
        groups = equal_groups(golds)
        worth = [golds[group[0]] + self.noise * float(noise[group[0]]) for group in groups]
        return tuple(groups[place] for place in sorted(range(len(groups)), key=lambda place: -worth[place]))

    def ceiling(self, pairs: Iterable[tuple[str, str]]) -> float:
        """The accuracy that nobody can beat on these pairs: that of one who knows the measure, but not the noise.

        A pair of equal measure counts one half; without pairs the answer is NaN.
        """
        chances = [self.probability(a, b) for a, b in pairs]
        return float(np.mean([max(chance, 1 - chance) for chance in chances])) if chances else math.nan


def equal_groups(golds: Sequence[float]) -> list[tuple[int, ...]]:
    """The places of equal measures together, each group in rising order; groups by their first place.

    Equal is each to its next in size: a chain of small steps is one group, for a tie has to hold both ways.
    """
    by_size = sorted(range(len(golds)), key=golds.__getitem__)
    groups: list[list[int]] = []
    for last, place in zip([None, *by_size], by_size, strict=False):
        if last is not None and golds[place] - golds[last] <= SAME:
            groups[-1].append(place)
        else:
            groups.append([place])
    return sorted(tuple(sorted(group)) for group in groups)
