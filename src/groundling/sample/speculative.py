"""Guessing tokens ahead, so that a model reads several in one step: speculative decoding (arXiv:2211.17192).

What a sample will choose at a place follows from the model's scores there and by the noise that the sample has drawn
for it. A guess is right if it is that choice; so the text is the same with and without guessing, seed by seed and not
only in distribution. A draft model that uses the sample's own noise guesses best: where it has the model's
distribution, it draws the model's token.
"""

from collections.abc import Sequence
from typing import Protocol

from groundling.sample import filters
from groundling.sample.auto_runner import AutoRunner
from groundling.sample.request import Request, Slot, choose_alike, common_length


class Drafter(Protocol):
    """Guesses how samples go on."""

    def guess(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
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

    def guess(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        known = {id(request): self._places.get(id(request)) or _Places(request) for request in requests}
        self._places = known  # those of samples that have ended go
        return [known[id(request)].follow(limit) for request, limit in zip(requests, limits, strict=True)]

    def forget(self) -> None:
        """See `Drafter`: nothing was read."""


class _Places:
    """Where each short run of a sample's tokens ended last."""

    def __init__(self, request: Request) -> None:
        self._sample, self._n_seen = request, 0
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

    def __init__(self, runner: AutoRunner, n_slots: int, n_ids: int) -> None:
        self._runner, self._n_ids = runner, n_ids
        self._slots = [Slot(slot, runner.block_size) for slot in range(n_slots)]
        self._owners: list[Request | None] = [None] * n_slots

    def guess(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        guesses: list[list[int]] = [[] for _ in requests]
        for request in requests:
            self._catch_up(request)
        for ahead in range(max(limits, default=0)):
            rows = [row for row, limit in enumerate(limits) if ahead < limit]
            spans = []
            for row in rows:
                tokens = [*requests[row].tokens, *guesses[row]]
                spans.append(self._slot(requests[row]).span(tokens, (), 1))
            logits_RV = filters.below(self._runner.read(spans), self._n_ids)
            for row, logits_V in zip(rows, logits_RV, strict=True):
                guesses[row] += choose_alike(
                    [(requests[row], guesses[row])], logits_V[None], self._runner.block_size, self._runner.race
                )
        return guesses

    def forget(self) -> None:
        """See `Drafter`."""
        for slot in self._slots:
            slot.forget()

    def _slot(self, request: Request) -> Slot:
        assert request.slot is not None
        return self._slots[request.slot]

    def _catch_up(self, request: Request) -> None:
        """Forget what was guessed wrongly, or what belonged to another sample."""
        slot = self._slot(request)
        if self._owners[slot.slot] is not request:
            self._owners[slot.slot] = request
            slot.begin(request.tokens, 0)
        slot.drop(len(slot.held) - common_length(slot.held, request.tokens[slot.start :]))
