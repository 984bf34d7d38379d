"""What belongs to one sample: its tokens, its random numbers, and what a reader's slot holds of it.

Shapes: R rows, each a position to be chosen for, V vocabulary.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from groundling.sample.runner import TokenSpan
from groundling.sample.sampler import Context, SamplingConfig, choose, draws_from_few

DRAWN_AT_ONCE = 2048
"""Random numbers: few enough that drawing them takes no longer than the calls, and wakes no other thread."""


def window_start(n_tokens: int, block_size: int) -> int:
    """The first token that a model sees when it has been given `n_tokens`.

    0 while all fit; then the older half of a full window (at least one token) is dropped at a time.
    """
    half = max(1, block_size // 2)
    return half * max(0, -((block_size - n_tokens) // half))


def most_positions(n_tokens: int, n_new: int, block_size: int) -> int:
    """How many positions of a window are read at most of a text that has `n_tokens`, until it has `n_new` more.

    The last token is not read: nothing is to follow it.
    """
    return min(block_size, n_tokens - window_start(n_tokens, block_size) + max(0, n_new - 1))


def row_generator(seed: int, row: int) -> torch.Generator:
    """The private generator of one of several samples.

    A seed is hashed, so that the second sample of one seed is not the first of the next. Rows then count on, so
    that they differ also in the 32 bits that PyTorch's CPU generator uses of a seed.
    """
    base = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(base + row)


class Request:
    """One sequence that grows.

    Args:
        prompt: at least one id.
        config: how to choose, and how many tokens at most.
        generator: on the CPU; where its randomness comes from, and nobody else's.
    """

    def __init__(self, prompt: Sequence[int], config: SamplingConfig, generator: torch.Generator) -> None:
        self.tokens = list(prompt)
        self.n_prompt = len(self.tokens)
        self.config, self.sampling_key = config, config.sampling_key()
        self.slot: int | None = None
        self.finished = config.max_new_tokens == 0
        self._generator = generator
        self._noise: deque[Tensor] = deque()
        self._counts_V, self._n_counted = torch.empty(0, dtype=torch.long), self.n_prompt

    @property
    def n_left(self) -> int:
        """How many tokens may still be generated."""
        return self.config.max_new_tokens - (len(self.tokens) - self.n_prompt)

    def noise(self, ahead: int, n_ids: int) -> Tensor:
        """The exponential draws (V) that decide the token `ahead` places after the next one.

        They are drawn in the order of the tokens, for some tokens at once, and kept until these are chosen: so a sample
        has the same randomness at each place, however it is decoded.
        """
        while len(self._noise) <= ahead:
            n_tokens = max(1, min(DRAWN_AT_ONCE // n_ids, self.n_left - len(self._noise)))
            uniform_NV = torch.empty(n_tokens, n_ids, dtype=torch.float64).uniform_(generator=self._generator)
            # `exponential_` takes three times as long. NumPy, for PyTorch's logarithm wakes other threads even for few
            # numbers, and while these wait for more, they keep those of the compiled code from their cores.
            log_NV = uniform_NV.log_() if n_ids > DRAWN_AT_ONCE else torch.from_numpy(np.log(uniform_NV.numpy()))
            self._noise.extend(log_NV.neg_().float())
        return self._noise[ahead]

    def context(self, guess: Sequence[int], block_size: int, n_ids: int) -> Context:
        """What the choice after `guess` may depend on."""
        start = window_start(len(self.tokens) + len(guess), block_size)
        if len(self._counts_V) == 0:
            self._counts_V = torch.zeros(n_ids, dtype=torch.long)
        self._counts_V += _counts(self.tokens[self._n_counted :], n_ids)
        self._n_counted = len(self.tokens)
        return Context([*self.tokens[start:], *guess], self._counts_V + _counts(guess, n_ids))

    def take(self, ids: Sequence[int]) -> None:
        """Append chosen tokens, of which at most the last may end the text."""
        self.tokens.extend(ids)
        for _ in range(min(len(ids), len(self._noise))):
            self._noise.popleft()
        self.finished = self.n_left <= 0 or (bool(ids) and ids[-1] in self.config.end_ids)


Race = Callable[[Tensor, float, Sequence[Tensor]], list[int]]
"""(logits_RV, temperature, the noise of each row) -> ids."""


def choose_alike(
    rows: Sequence[tuple[Request, Sequence[int]]], logits_RV: Tensor, block_size: int, race: Race
) -> list[int]:
    """What samples of one way of choosing choose next, each after a guess of its own.

    Args:
        rows: the samples, each with the tokens that are guessed to come first.
        logits_RV: the scores after them, of the ids that can come out.
        block_size: of the model that gave the scores.
        race: draws where there are few ids and nothing is dropped.
    """
    config, n_ids = rows[0][0].config, logits_RV.size(-1)
    noise_RV, contexts = None, []
    if config.temperature > 0:
        noises = [request.noise(len(guess), n_ids) for request, guess in rows]
        if draws_from_few(config, logits_RV):
            return race(logits_RV, config.temperature, noises)
        noise_RV = torch.stack(noises) if len(noises) > 1 else noises[0][None]
    if config.looks_back():
        contexts = [request.context(guess, block_size, n_ids) for request, guess in rows]
    ids: list[int] = choose(logits_RV, config, contexts, noise_RV).tolist()
    return ids


class Slot:
    """A reader's slot: which ids it holds, at the places 0, 1, ... of a sample's window."""

    def __init__(self, slot: int, block_size: int) -> None:
        self.slot, self.block_size = slot, block_size
        self.held: list[int] = []
        self.start = 0
        """The token of the sample that stands at place 0."""

    def begin(self, tokens: list[int], n_held: int) -> None:
        """Start with another sample, of whose window the slot already holds the first `n_held` places."""
        self.start = window_start(len(tokens), self.block_size)
        self.held = tokens[self.start : self.start + n_held]

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens can follow before the window moves."""
        return window_start(len(tokens), self.block_size) + self.block_size - len(tokens)

    def span(self, tokens: list[int], guess: Sequence[int], n_scored: int) -> TokenSpan:
        """What is to be read next: the tokens that the slot does not hold, and the guess. It counts as held.

        The last token is read in any case: its scores are what is asked for.
        """
        start = window_start(len(tokens), self.block_size)
        if start != self.start:  # each kept token has moved to another place
            self.begin(tokens, 0)
        place = min(len(self.held), len(tokens) - start - 1)
        ids = [*tokens[start + place :], *guess]
        self.held[place:] = ids
        return TokenSpan(self.slot, place, ids, n_scored)

    def n_unread(self, tokens: Sequence[int]) -> int:
        """How many tokens are to be read before the next one can be chosen."""
        start = window_start(len(tokens), self.block_size)
        return len(tokens) - start - (len(self.held) if start == self.start else 0)

    def lead(self, tokens: list[int], n: int) -> TokenSpan:
        """The next `n` of many unread tokens; its scores mean nothing. It counts as held."""
        start = window_start(len(tokens), self.block_size)
        if start != self.start:
            self.begin(tokens, 0)
        place = len(self.held)
        self.held += tokens[start + place : start + place + n]
        return TokenSpan(self.slot, place, self.held[place:], 1)

    def forget(self) -> None:
        """Count nothing as held: a reading was broken off."""
        self.held.clear()

    def drop(self, n: int) -> None:
        """Forget the last places: what was read there was guessed wrongly."""
        if n:
            del self.held[-n:]


def _counts(ids: Sequence[int], n_ids: int) -> Tensor:
    return torch.tensor(ids, dtype=torch.long).bincount(minlength=n_ids)[:n_ids]


def common_length(a: list[int], b: list[int]) -> int:
    """How many ids two sequences begin with in common."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), shorter)
