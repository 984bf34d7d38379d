"""Speculative decoding: propose tokens, and verify several in one step of the model (arXiv:2211.17192).

The token at a position follows from the model's logits there and from the noise that the request has drawn for it. A
guess is accepted if it equals that token, so the text is the same with and without speculation: seed by seed, not only
in distribution. A draft model uses the request's own noise; where its distribution equals the model's, it draws the
model's token.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from groundling.errors import ConfigError
from groundling.model.cache import KVCache
from groundling.sample import filters
from groundling.sample.auto_runner import AutoRunner, Native, vocab_size
from groundling.sample.request import Request, Slot, choose_ids, common_length


class Drafter(Protocol):
    """Proposes the next tokens of requests."""

    def guess(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Propose the next ids of each request, at most as many as its limit."""
        ...

    def forget(self) -> None:
        """Discard what was read, after a step that failed."""
        ...


def n_accepted(guess: Sequence[int], ids: Sequence[int], end_ids: Sequence[int]) -> int:
    """How many guessed ids equal the chosen ones, up to an end id.

    An end id is chosen rather than accepted, so that it is the last of a request's tokens.
    """
    n = 0
    while n < len(guess) and ids[n] == guess[n] and guess[n] not in end_ids:
        n += 1
    return n


class PromptLookup:
    """Proposes what followed the same few tokens earlier in the text: free, and good for repetitions."""

    LENGTHS = (12, 6, 3)
    """Suffix lengths to look up; the longest match wins."""

    def __init__(self) -> None:
        self._indexes: dict[int, _SuffixIndex] = {}

    def guess(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        known = {id(request): self._indexes.get(id(request)) or _SuffixIndex(request) for request in requests}
        self._indexes = known  # drops those of finished requests
        return [known[id(request)].follow(limit) for request, limit in zip(requests, limits, strict=True)]

    def forget(self) -> None:
        """See `Drafter`: the model reads nothing here."""


class _SuffixIndex:
    """Where each short run of a request's tokens ended last."""

    def __init__(self, request: Request) -> None:
        self._request, self._n_seen = request, 0
        self._ends: dict[tuple[int, ...], int] = {}

    def follow(self, limit: int) -> list[int]:
        tokens = self._request.tokens
        for end in range(self._n_seen + 1, len(tokens)):  # nothing follows the last token yet
            for length in PromptLookup.LENGTHS:
                if end >= length:
                    self._ends[tuple(tokens[end - length : end])] = end
        self._n_seen = max(self._n_seen, len(tokens) - 1)
        guess: list[int] = []
        for length in PromptLookup.LENGTHS:
            known = self._ends.get(tuple(tokens[-length:]))  # too few tokens are no key
            if known is not None:
                for place in range(known, known + limit):  # past the end, continue with the guess: a text that repeats
                    guess.append(tokens[place] if place < len(tokens) else guess[place - len(tokens)])
                break
        return guess


class ModelDrafter:
    """Proposes tokens by a smaller model, with each request's own settings and noise.

    Args:
        draft: the smaller model.
        n_slots: slots of the engine.
        n_vocab: vocabulary of the engine's model; None: not known.
        n_ids: only ids below this are generated; None: not known.
        native: see `DecodeConfig`.

    Raises:
        ConfigError: the draft is no GPT, or lacks ids of the model.
    """

    def __init__(self, draft: nn.Module, n_slots: int, n_vocab: int | None, n_ids: int | None, native: Native) -> None:
        known = vocab_size(draft)
        if n_vocab is None or n_ids is None or known is None or known < n_vocab:
            raise ConfigError(f"a draft must be a GPT that knows all ids of the model; it knows {known or 'none'}")
        self._runner, self._n_ids = AutoRunner(draft, n_slots, native=native), n_ids
        self._slots = [Slot(slot, self._runner.block_size) for slot in range(n_slots)]
        self._owners: list[Request | None] = [None] * n_slots

    @property
    def cache(self) -> KVCache:
        """Keys and values of the draft."""
        assert self._runner.cache is not None
        return self._runner.cache

    def guess(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        guesses: list[list[int]] = [[] for _ in requests]
        for request in requests:
            self._sync(request)
        for ahead in range(max(limits, default=0)):
            rows = [row for row, limit in enumerate(limits) if ahead < limit]
            spans = []
            for row in rows:
                tokens = [*requests[row].tokens, *guesses[row]]
                spans.append(self._slot(requests[row]).span(tokens, (), 1))
            logits_RV = filters.below(self._runner.read(spans), self._n_ids)
            for row, logits_V in zip(rows, logits_RV, strict=True):
                guesses[row] += choose_ids(
                    [(requests[row], guesses[row])],
                    logits_V[None],
                    self._runner.block_size,
                    self._runner.exponential_race,
                )
        return guesses

    def forget(self) -> None:
        """See `Drafter`."""
        for slot in self._slots:
            slot.forget()

    def _slot(self, request: Request) -> Slot:
        assert request.slot is not None
        return self._slots[request.slot]

    def _sync(self, request: Request) -> None:
        """Drop rejected guesses, and the tokens of the slot's previous request."""
        slot = self._slot(request)
        if self._owners[slot.slot] is not request:
            self._owners[slot.slot] = request
            slot.begin(request.tokens, 0)
        slot.drop(len(slot.held) - common_length(slot.held, request.tokens[slot.start :]))
