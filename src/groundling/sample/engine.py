"""The decoding engine: each step gives every running request its next token, or several.

Requests start and finish independently (continuous batching). Each has its own random numbers and its own slot in the
KV cache, so its tokens do not depend on the others. Prompts with a common prefix read it once. Speculative decoding
(`speculative.py`) proposes tokens ahead and accepts those that would have been chosen anyway. The engine has slots and
no queue: `scheduler.py` and the server's worker decide which request is next.

Texts longer than `block_size`: the model sees a window of at most `block_size` tokens. When the window is full, its
older half is dropped (`window_start`), and the kept half is read again at its new positions. This costs about two
positions per token; dropping one token at a time would cost a whole window per token, because every position moves.

Shapes: R rows, each a position whose next token is chosen, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import nn

from groundling.errors import require
from groundling.sample import filters
from groundling.sample.auto_runner import AutoRunner, Native, native_is_faster, vocab_size
from groundling.sample.native.comparison import STREAMS
from groundling.sample.quantize import Weights
from groundling.sample.request import Request, Slot, choose_next, require_ids
from groundling.sample.runner import TokenSpan
from groundling.sample.sampler import SamplingConfig, Token
from groundling.sample.slots import CacheMemory, SlotPool
from groundling.sample.speculative import Drafter, ModelDrafter, PromptLookup, n_accepted

MAX_SLOTS = 1 << 16
"""Each slot has a record, even if it is never used."""
PREFILL_CHUNK = 1024
"""Tokens of a long prompt to read per step, so that the other requests do not wait for all of it."""


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Decoding. Only `weights` changes the output, and `native` its rounding."""

    weights: Weights = "float32"
    """Precision of the weight matrices: bfloat16 and int8 are smaller and faster, and nearly as good."""
    native: Native = "auto"
    """Use the compiled decoder. auto: once it is built, if faster here; on: wait for it; off: never. It matches PyTorch
    up to rounding; with bfloat16 weights it rounds more on processors with bfloat16 arithmetic."""
    speculate: int = 0
    """Speculative decoding: draft tokens per step, by prompt lookup or a draft model. 0: off."""

    def __post_init__(self) -> None:
        for name, choices in (("weights", get_args(Weights)), ("native", get_args(Native))):
            value = getattr(self, name)
            require(value in choices, f"{name} is {value!r}; it must be one of: {', '.join(choices)}")
        require(self.speculate >= 0, f"speculate is {self.speculate}; it must be at least 0")


def deterministic_decode(model: nn.Module, config: DecodeConfig, n_slots: int = STREAMS) -> DecodeConfig:
    """Fix the backend for the whole run so that results depend on the seed only.

    "auto" switches to the native decoder when the compiler has finished, and the two backends round differently. This
    waits for the compiler and returns "on" or "off", whichever is faster here.
    """
    if config.native != "auto":
        return config
    faster = native_is_faster(model, config.weights, n_slots)
    return dataclasses.replace(config, native="on" if faster else "off")


@dataclass
class EngineStats:
    """Totals since the engine was created."""

    steps: int = 0
    read: int = 0
    """Positions read: of prompts, guesses and generated tokens."""
    reused: int = 0
    """Prompt positions not read, because a slot held the same prefix."""
    generated: int = 0
    guessed: int = 0
    """Tokens proposed by the drafter."""
    right: int = 0
    """Proposed tokens that were accepted."""


class StepOutput(NamedTuple):
    """Output of one step for one request."""

    request: Request
    tokens: list[Token]


class Engine:
    """Decodes requests of one model, at most `n_slots` at a time. Not thread-safe.

    Args:
        model: a GPT, plain, compiled or wrapped; or any module that maps `idx_BT` to `logits_BTV` and has a
            `block_size` (a rung of the ladder), which reads its whole window in each step. It runs in evaluation mode;
            its own mode is restored after each step. Later changes to its weights may have no effect.
        config: how to run it.
        n_slots: requests decoded at once.
        n_ids: only ids below this are generated (a model's vocabulary may be padded); None: all.
        draft: a smaller model with the same vocabulary, for speculation; None: prompt lookup.
        end_ids: ids that end a request, unless its config says `ignore_eos`.
        memory: for keys and values, shared with other engines of the same thread; None: not shared.

    Raises:
        ConfigError: a setting does not fit the model or the machine.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DecodeConfig | None = None,
        n_slots: int = 1,
        n_ids: int | None = None,
        draft: nn.Module | None = None,
        end_ids: Sequence[int] = (),
        memory: CacheMemory | None = None,
    ) -> None:
        self.config, self.counts, self.end_ids = config or DecodeConfig(), EngineStats(), tuple(end_ids)
        require(1 <= n_slots <= MAX_SLOTS, f"n_slots is {n_slots}; it must be from 1 to {MAX_SLOTS}")
        self._vocab_size = vocab_size(model)
        known = self._vocab_size if self._vocab_size is not None else n_ids
        self._n_ids = known if n_ids is None else n_ids
        if n_ids is not None and known is not None:
            require(1 <= n_ids <= known, f"n_ids is {n_ids}; the model has {known} ids")
        self._runner = AutoRunner(model, n_slots, self.config.weights, self.config.native)
        self._pool = SlotPool(self._runner, n_slots, memory or CacheMemory())
        self.n_slots = n_slots
        self._running: list[Request] = []
        self._drafter = self._make_drafter(draft)

    @property
    def n_ids(self) -> int | None:
        """Only ids below this are generated; None: not known."""
        return self._n_ids

    @property
    def is_native(self) -> bool:
        """Whether the native decoder runs the model by now."""
        return self._runner.is_native

    @property
    def longest(self) -> int:
        """Tokens of a text, prompt included, for which there is memory now if it runs alone."""
        return self._pool.longest

    def has_memory_for(self, n_bytes: int) -> bool:
        """Whether `n_bytes` are free beyond the keys and values that the running requests can still need."""
        return self._pool.has_room_for(n_bytes)

    @property
    def is_busy(self) -> bool:
        """Whether a request is running."""
        return bool(self._running)

    def new_request(self, prompt: Sequence[int], config: SamplingConfig, generator: torch.Generator) -> Request:
        """Check a prompt and its settings, and make a request of them. It ends at the engine's `end_ids`, too.

        Args:
            prompt: at least one id.
            config: how to choose tokens. Stop strings are ignored: the engine knows ids only.
            generator: on the CPU; not shared with another request.

        Raises:
            ValueError: the prompt is empty, or has ids that the model does not know.
            ConfigError: a bias is for an id that cannot be generated, or forbids all that can.
            NoMemoryError: there cannot be memory for so long a text.
        """
        self.check(prompt, config)
        if self.end_ids and not config.ignore_eos:
            config = dataclasses.replace(config, end_ids=(*config.end_ids, *self.end_ids))
        return Request(prompt, config, generator)

    def check(self, prompt: Sequence[int], config: SamplingConfig) -> None:
        """Raise what `new_request` would raise."""
        require_ids(prompt, config, self._vocab_size, self._n_ids)
        self._pool.require(len(prompt), config.max_new_tokens)

    def try_add(self, request: Request) -> bool:
        """Give a request a slot, so that it takes part from the next step on; a finished one needs none.

        Returns:
            False: not now; try again after the next step. No slot is free, memory is short, or a running request is
            about to read a prefix of the same prompt, which can be copied then.

        Raises:
            NoMemoryError: memory is short, and no other request is running.
            ConfigError: the system refused the memory.
        """
        if request.finished:
            return True
        admitted = self._pool.admit(request)
        if admitted is None:
            return False
        request.slot = admitted.slot
        self.counts.reused += admitted.n_shared
        self._running.append(request)
        return True

    def stop(self, request: Request) -> None:
        """Finish a request early and free its slot. Has no effect on a finished one."""
        request.finished = True
        self._leave(request)

    def stop_all(self) -> None:
        """Stop all running requests."""
        for request in list(self._running):
            self.stop(request)

    def step(self) -> list[StepOutput]:
        """Give each running request its next token, or several.

        After an exception, Ctrl-C included, every request is as it was before the step; it can be stopped or continued.

        Raises:
            CheckpointError: the model's logits are not finite.
            ConfigError: the system refused the memory.
        """
        if not self._running:
            return []
        try:
            return self._step()
        except BaseException:  # the slots may hold part of the step
            self._pool.forget()
            if self._drafter is not None:
                self._drafter.forget()
            raise

    def _step(self) -> list[StepOutput]:
        with torch.inference_mode():
            requests, chunks = self._split_prefill()
            guesses = self._guess(requests)
            spans = [
                self._slot(request).span(request.tokens, guess, len(guess) + 1)
                for request, guess in zip(requests, guesses, strict=True)
            ]
            logits_RV = filters.below(self._runner.read([*spans, *chunks]), self._n_ids)
            wanted_RV = logits_RV[: -len(chunks)] if chunks else logits_RV
            tokens = choose_next(requests, guesses, wanted_RV, self._runner.block_size, self._runner.exponential_race)
        self.counts.steps += 1
        self.counts.read += sum(len(span.ids) for span in (*spans, *chunks))
        return [self._accept(*each) for each in zip(requests, guesses, tokens, strict=True)]

    def _split_prefill(self) -> tuple[list[Request], list[TokenSpan]]:
        """The requests that get a token in this step, and a chunk of one long prompt.

        A long prompt is read in chunks between the steps of the other requests, and can be stopped.
        """
        if self._runner.block_size <= PREFILL_CHUNK:
            return list(self._running), []
        requests, chunks = list[Request](), list[TokenSpan]()
        for request in self._running:
            if self._slot(request).n_unread(request.tokens) <= PREFILL_CHUNK:
                requests.append(request)
            elif not chunks:
                chunks.append(self._slot(request).chunk(request.tokens, PREFILL_CHUNK))
        return requests, chunks

    def _make_drafter(self, draft: nn.Module | None) -> Drafter | None:
        if draft is None:
            return PromptLookup() if self.config.speculate else None
        require(self.config.speculate > 0, "a draft model guesses tokens ahead; say how many with speculate")
        drafter = ModelDrafter(draft, self.n_slots, self._vocab_size, self._n_ids, self.config.native)
        self._pool.also(drafter.cache)
        return drafter

    def _slot(self, request: Request) -> Slot:
        assert request.slot is not None
        return self._pool.slots[request.slot]

    def _guess(self, requests: list[Request]) -> list[list[int]]:
        if self._drafter is None:
            return [[] for _ in requests]
        most = self.config.speculate
        limits = [min(most, request.n_left - 1, self._slot(request).room(request.tokens)) for request in requests]
        return self._drafter.guess(requests, limits)

    def _accept(self, request: Request, guess: list[int], chosen: list[Token]) -> StepOutput:
        n_right = n_accepted(guess, [token.id for token in chosen], request.config.end_ids)
        tokens = chosen[: n_right + 1]
        request.append([token.id for token in tokens])
        self._slot(request).drop(len(guess) - n_right)
        self.counts.guessed += len(guess)
        self.counts.right += n_right
        self.counts.generated += len(tokens)
        if request.finished:
            self._leave(request)
        return StepOutput(request, tokens)

    def _leave(self, request: Request) -> None:
        """Free the slot; its keys and values stay for prompts with the same prefix."""
        if request.slot is not None:
            self._running.remove(request)
            self._pool.leave(request.slot)
            request.slot = None
