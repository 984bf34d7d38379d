"""Guessing tokens ahead, so that a model reads several in one step: speculative decoding (arXiv:2211.17192).

What a sample will choose at a place is settled by the model's scores there and by the noise that the sample has drawn
for it. A guess is right if it is that choice; so the text is the same with and without guessing, seed by seed and not
only in distribution. A draft model that uses the sample's own noise guesses best: where it has the model's
distribution, it draws the model's token.
"""

from collections.abc import Sequence
from typing import Protocol

from groundling.sample import filters
from groundling.sample.auto_runner import Backend
from groundling.sample.sequence import Lane, Sample, choose_alike, common_length


class Drafter(Protocol):
    """Guesses how samples go on."""

    def guess(self, samples: Sequence[Sample], limits: Sequence[int]) -> list[list[int]]:
        """Guess the next ids of each sample, at most so many as its limit."""
        ...

    def forget(self) -> None:
        """Count nothing as read: a step was broken off."""
        ...


class PromptLookup:
    """Guesses that what followed the same few tokens before will follow them again: free, and good for repetitions."""

    LENGTHS = (12, 6, 3)
    """The longest matching ending wins."""

    def __init__(self) -> None:
        self._places: dict[int, _Places] = {}

    def guess(self, samples: Sequence[Sample], limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        known = {id(sample): self._places.get(id(sample)) or _Places(sample) for sample in samples}
        self._places = known  # those of samples that have ended go
        return [known[id(sample)].follow(limit) for sample, limit in zip(samples, limits, strict=True)]

    def forget(self) -> None:
        """See `Drafter`: nothing was read."""


class _Places:
    """Where each short run of a sample's tokens ended last."""

    def __init__(self, sample: Sample) -> None:
        self._sample, self._n_seen = sample, 0
        self._ends: dict[tuple[int, ...], int] = {}

    def follow(self, limit: int) -> list[int]:
        tokens = self._sample.tokens
        for end in range(self._n_seen + 1, len(tokens)):  # the last token has nothing after it yet
            for length in PromptLookup.LENGTHS:
                if end >= length:
                    self._ends[tuple(tokens[end - length : end])] = end
        self._n_seen = max(self._n_seen, len(tokens) - 1)
        guess: list[int] = []
        for length in PromptLookup.LENGTHS:
            known = self._ends.get(tuple(tokens[-length:]))  # too few tokens are no key
            if known is not None:
                for place in range(known, known + limit):  # a text that repeats itself is guessed to go on so
                    guess.append(tokens[place] if place < len(tokens) else guess[place - len(tokens)])
                break
        return guess


class ModelDrafter:
    """Lets a smaller model guess, by the sample's own settings and noise.

    Args:
        reader: of the smaller model, with as many slots as the other has.
        n_slots: how many these are.
        n_ids: only ids below this can come out.
    """

    def __init__(self, reader: Backend, n_slots: int, n_ids: int) -> None:
        self._reader, self._n_ids = reader, n_ids
        self._lanes = [Lane(slot, reader.block_size) for slot in range(n_slots)]
        self._owners: list[Sample | None] = [None] * n_slots

    def guess(self, samples: Sequence[Sample], limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        guesses: list[list[int]] = [[] for _ in samples]
        for sample in samples:
            self._catch_up(sample)
        for ahead in range(max(limits, default=0)):
            rows = [row for row, limit in enumerate(limits) if ahead < limit]
            pieces = []
            for row in rows:
                tokens = [*samples[row].tokens, *guesses[row]]
                pieces.append(self._lane(samples[row]).piece(tokens, (), 1))
            logits_RV = filters.below(self._reader.read(pieces), self._n_ids)
            for row, logits_V in zip(rows, logits_RV, strict=True):
                guesses[row] += choose_alike(
                    [(samples[row], guesses[row])], logits_V[None], self._reader.block_size, self._reader.race
                )
        return guesses

    def forget(self) -> None:
        """See `Drafter`."""
        for lane in self._lanes:
            lane.forget()

    def _lane(self, sample: Sample) -> Lane:
        assert sample.slot is not None
        return self._lanes[sample.slot]

    def _catch_up(self, sample: Sample) -> None:
        """Forget what was guessed wrongly, or what belonged to another sample."""
        lane = self._lane(sample)
        if self._owners[lane.slot] is not sample:
            self._owners[lane.slot] = sample
            lane.begin(sample.tokens, 0)
        lane.drop(len(lane.held) - common_length(lane.held, sample.tokens[lane.start :]))
