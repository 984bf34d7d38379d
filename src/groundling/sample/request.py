"""One request: its tokens, its random numbers, its sampling, and the contents of its slot.

Shapes: R rows, each a position whose next token is chosen, V vocabulary.
"""

import hashlib
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from groundling.errors import require
from groundling.sample.runner import TokenSpan
from groundling.sample.sampler import Context, SamplingConfig, Token, choose, draws_from_few, with_logprobs

NOISE_CHUNK = 2048
"""Random numbers to draw at once: few enough for one thread, many enough to hide the cost of the call."""


def window_start(n_tokens: int, block_size: int) -> int:
    """The first of `n_tokens` tokens that the model sees.

    0 while all fit; then the older half of a full window (at least one token) is dropped at a time.
    """
    half = max(1, block_size // 2)
    return half * max(0, -((block_size - n_tokens) // half))


def most_positions(n_tokens: int, n_new: int, block_size: int) -> int:
    """The most positions that a slot can hold for a text of `n_tokens` until it has `n_new` more.

    The last token is not read: nothing follows it.
    """
    return min(block_size, n_tokens - window_start(n_tokens, block_size) + max(0, n_new - 1))


def row_generator(seed: int, row: int) -> torch.Generator:
    """The random generator of request number `row` of a seed.

    The seed is hashed so that row 1 of seed 0 differs from row 0 of seed 1. Rows are added after hashing so that they
    differ in the low 32 bits, which is all that PyTorch's CPU generator uses of a seed.
    """
    base = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(base + row)


class Request:
    """A prompt, how to continue it, and the tokens so far.

    Args:
        prompt: at least one id.
        config: how to choose tokens, and how many at most.
        generator: on the CPU; not shared with another request.
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
        """The exponential draws (V) that decide the token `ahead` positions after the next one.

        They are drawn in the order of the tokens, for several tokens at once, and kept until these are chosen. So a
        request has the same randomness at each position, with or without speculation.
        """
        while len(self._noise) <= ahead:
            n_tokens = max(1, min(NOISE_CHUNK // n_ids, self.n_left - len(self._noise)))
            uniform_NV = torch.empty(n_tokens, n_ids, dtype=torch.float64).uniform_(generator=self._generator)
            # `exponential_` takes three times as long. NumPy for small arrays, because PyTorch's logarithm wakes its
            # thread pool, whose spinning threads take the cores from the native decoder.
            log_NV = uniform_NV.log_() if n_ids > NOISE_CHUNK else torch.from_numpy(np.log(uniform_NV.numpy()))
            self._noise.extend(log_NV.neg_().float())
        return self._noise[ahead]

    def context(self, guess: Sequence[int], block_size: int, n_ids: int) -> Context:
        """The earlier tokens that the penalties of the token after `guess` depend on."""
        start = window_start(len(self.tokens) + len(guess), block_size)
        if len(self._counts_V) == 0:
            self._counts_V = torch.zeros(n_ids, dtype=torch.long)
        self._counts_V += _counts(self.tokens[self._n_counted :], n_ids)
        self._n_counted = len(self.tokens)
        return Context([*self.tokens[start:], *guess], self._counts_V + _counts(guess, n_ids))

    def append(self, ids: Sequence[int]) -> None:
        """Append generated tokens, of which only the last may be an end id."""
        self.tokens.extend(ids)
        for _ in range(min(len(ids), len(self._noise))):
            self._noise.popleft()
        self.finished = self.n_left <= 0 or (bool(ids) and ids[-1] in self.config.end_ids)


def require_ids(prompt: Sequence[int], config: SamplingConfig, vocab_size: int | None, n_ids: int | None) -> None:
    """Check the ids of a prompt and of its logit bias.

    Args:
        prompt: to continue.
        config: how.
        vocab_size: of the model; None: not known.
        n_ids: ids below this can be generated; None: not known.

    Raises:
        ValueError: the prompt is empty, or has unknown ids.
        ConfigError: a bias is for an id that cannot be generated, or forbids all that can.
    """
    prompt = list(prompt)
    if not prompt:
        raise ValueError("the prompt has no ids; a model needs at least one to continue")
    if vocab_size is not None and not 0 <= min(prompt) <= max(prompt) < vocab_size:
        raise ValueError(
            f"the prompt has ids from {min(prompt)} to {max(prompt)}; the model knows 0 to {vocab_size - 1}"
        )
    if n_ids is not None and config.logit_bias:
        outside = [id for id in config.logit_bias if not 0 <= id < n_ids]
        require(not outside, f"logit_bias has ids {outside}; there are only 0 to {n_ids - 1}")
        n_forbidden = sum(bias == -math.inf for bias in config.logit_bias.values())
        require(n_forbidden < n_ids, f"logit_bias forbids all of the {n_ids} ids")


ExponentialRace = Callable[[Tensor, float, Sequence[Tensor]], list[int]]
"""(logits_RV, temperature, noise of each row) -> ids, as `filters.exponential_race_of_few`."""


def choose_next(
    requests: Sequence[Request],
    guesses: Sequence[Sequence[int]],
    logits_RV: Tensor,
    block_size: int,
    race: ExponentialRace,
) -> list[list[Token]]:
    """Choose the next token of each request after each prefix of its guess, the empty one included.

    Args:
        requests: the requests.
        guesses: of each request.
        logits_RV: one row per request and prefix.
        block_size: of the model.
        race: draws from few ids without filters.
    """
    rows = [
        (request, guess[:n]) for request, guess in zip(requests, guesses, strict=True) for n in range(len(guess) + 1)
    ]
    ids = [0] * len(rows)
    rows_by_key = defaultdict(list)
    for row, (request, _) in enumerate(rows):
        rows_by_key[request.sampling_key].append(row)
    for group in rows_by_key.values():
        group_RV = logits_RV if len(group) == len(rows) else logits_RV[group]
        chosen = choose_ids([rows[row] for row in group], group_RV, block_size, race)
        for row, id in zip(group, chosen, strict=True):
            ids[row] = id
    tokens = (_token(request, ids[row], logits_RV, row) for row, (request, _) in enumerate(rows))
    return [[next(tokens) for _ in range(len(guess) + 1)] for guess in guesses]


def _token(request: Request, id: int, logits_RV: Tensor, row: int) -> Token:
    n_likely = request.config.logprobs
    return Token(id) if n_likely is None else with_logprobs(id, logits_RV[row], n_likely)


def choose_ids(
    rows: Sequence[tuple[Request, Sequence[int]]], logits_RV: Tensor, block_size: int, race: ExponentialRace
) -> list[int]:
    """Choose the next id of requests with the same `sampling_key`, each after a guess.

    Args:
        rows: each request with its guess.
        logits_RV: after the guesses, over the ids that can be generated.
        block_size: of the model.
        race: draws from few ids without filters.
    """
    config, n_ids = rows[0][0].config, logits_RV.size(-1)
    noise_RV, contexts = None, []
    if config.temperature > 0:
        noises = [request.noise(len(guess), n_ids) for request, guess in rows]
        if draws_from_few(config, logits_RV):
            return race(logits_RV, config.temperature, noises)
        noise_RV = torch.stack(noises) if len(noises) > 1 else noises[0][None]
    if config.has_penalties():
        contexts = [request.context(guess, block_size, n_ids) for request, guess in rows]
    ids: list[int] = choose(logits_RV, config, contexts, noise_RV).tolist()
    return ids


class Slot:
    """Which ids a slot of the KV cache holds, at positions 0, 1, ... of its request's window."""

    def __init__(self, slot: int, block_size: int) -> None:
        self.slot, self.block_size = slot, block_size
        self.held: list[int] = []
        self.start = 0
        """Index in the request's tokens of the token at position 0."""

    def begin(self, tokens: list[int], n_held: int) -> None:
        """Start a request; the slot already holds the first `n_held` positions of its window."""
        self.start = window_start(len(tokens), self.block_size)
        self.held = tokens[self.start : self.start + n_held]

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens fit before the window moves."""
        return window_start(len(tokens), self.block_size) + self.block_size - len(tokens)

    def span(self, tokens: list[int], guess: Sequence[int], n_scored: int) -> TokenSpan:
        """The tokens to read next: those that the slot does not hold, and the guess; they count as held.

        The last token is read even if it is held: its logits are needed.
        """
        start = window_start(len(tokens), self.block_size)
        if start != self.start:  # every kept token has a new position
            self.begin(tokens, 0)
        place = min(len(self.held), len(tokens) - start - 1)
        ids = [*tokens[start + place :], *guess]
        self.held[place:] = ids
        return TokenSpan(self.slot, place, ids, n_scored)

    def n_unread(self, tokens: Sequence[int]) -> int:
        """How many tokens must be read before the next one can be chosen."""
        start = window_start(len(tokens), self.block_size)
        return len(tokens) - start - (len(self.held) if start == self.start else 0)

    def chunk(self, tokens: list[int], n: int) -> TokenSpan:
        """The next `n` of many unread tokens; they count as held. Ignore their logits."""
        start = window_start(len(tokens), self.block_size)
        if start != self.start:
            self.begin(tokens, 0)
        place = len(self.held)
        self.held += tokens[start + place : start + place + n]
        return TokenSpan(self.slot, place, self.held[place:], 1)

    def forget(self) -> None:
        """Treat the slot as empty."""
        self.held.clear()

    def drop(self, n: int) -> None:
        """Remove the last `n` positions: rejected guesses."""
        if n:
            del self.held[-n:]


def _counts(ids: Sequence[int], n_ids: int) -> Tensor:
    return torch.tensor(ids, dtype=torch.long).bincount(minlength=n_ids)[:n_ids]


def common_length(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), shorter)
