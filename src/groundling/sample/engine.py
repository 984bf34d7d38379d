"""The one way to decode: prompts are read once, then each step gives every running sample a token or more.

Samples start and stop independently (continuous batching) and share nothing but the work: each has its own random
numbers and its own slot in the cache. What several prompts begin with is read once. A drafter may guess tokens ahead;
those that turn out to be what would have been chosen anyway are taken together (`sample/speculative.py`).

Going on past `block_size`: a model sees a window of at most `block_size` tokens. While all fit, it sees all; when the
window is full, its older half is dropped and generation goes on (`window_start`). With a cache this costs one reading
of the kept half, and then again one position a token; cropping one token each time would cost a whole window a token,
because every position in it would change.

Shapes: R rows, each a position whose next token is to be chosen, V vocabulary.
"""

import dataclasses
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from groundling.errors import ConfigError, require
from groundling.model.gpt import GPT
from groundling.sample import filters
from groundling.sample.auto_runner import AutoRunner, Native, native_is_faster
from groundling.sample.native.comparison import STREAMS
from groundling.sample.quantize import Weights
from groundling.sample.request import Request, Slot, choose_alike
from groundling.sample.runner import TokenSpan
from groundling.sample.sampler import SamplingConfig, Token, with_logprobs
from groundling.sample.slots import CacheMemory, NoMemoryError, SlotPool
from groundling.sample.speculative import Drafter, ModelDrafter, PromptLookup
from groundling.system.runtime import unwrap

MAX_SLOTS = 1 << 16
"""Each has a record, even if it is never used."""
READ_IN_A_STEP = 1024
"""Tokens of a long prompt: the others wait for them."""


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
    """How a model is read from its first token to its last, here: by compiled code, if there is any and it is faster.

    "auto" changes its reader as soon as a compiler has finished, and what is read before and after rounds differently.
    What is drawn with this follows from the seed alone, also where nothing was ever compiled before.
    """
    if config.native != "auto":
        return config
    faster = native_is_faster(model, config.weights, n_slots)
    return dataclasses.replace(config, native="on" if faster else "off")


@dataclass
class EngineStats:
    """What an engine has done so far."""

    steps: int = 0
    read: int = 0
    """Positions read, of prompts, guesses and chosen tokens."""
    reused: int = 0
    """Positions of prompts that were not read, since another had begun alike."""
    generated: int = 0
    guessed: int = 0
    right: int = 0
    """Guesses that were what was chosen."""


class StepOutput(NamedTuple):
    """What a step gave to a sample."""

    request: Request
    tokens: list[Token]


class Engine:
    """Decodes samples of one model, as many at a time as there are slots; the others wait for their turn.

    It belongs to one thread: others hand their samples over between steps.

    Args:
        model: a GPT, plain, compiled or wrapped; or any module that maps `idx_BT` to `logits_BTV` and has a
            `block_size` (a rung of the ladder), which is given its whole window each time. It computes in evaluation
            mode and is left as it was after each step. What is done to it while the engine lives may go unseen.
        config: how to read it.
        n_slots: how many samples are decoded at once.
        n_ids: only ids below this can come out (a model's vocabulary may be padded); None: all can.
        draft: a smaller model of the same vocabulary, to guess by; None: guess from the text.
        end_ids: at which a sample ends, unless its config says `ignore_eos`.
        memory: for keys and values, shared with other engines of the same thread; None: this one's own.

    Raises:
        ConfigError: what was asked for cannot be.
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
        self._vocab_size = _vocab_size(model)
        known = self._vocab_size if self._vocab_size is not None else n_ids
        self._n_ids = known if n_ids is None else n_ids
        if n_ids is not None and known is not None:
            require(1 <= n_ids <= known, f"n_ids is {n_ids}; the model has {known} ids")
        self._runner = AutoRunner(model, n_slots, self.config.weights, self.config.native)
        self._pool = SlotPool(self._runner, n_slots, memory or CacheMemory())
        self.n_slots = n_slots
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._drafter = self._make_drafter(draft, n_slots)

    @property
    def n_ids(self) -> int | None:
        """Only ids below this can come out; None: not known."""
        return self._n_ids

    @property
    def is_native(self) -> bool:
        """Whether compiled code reads by now."""
        return self._runner.is_native

    @property
    def longest(self) -> int:
        """Tokens of a text, its prompt included, that there is memory for now if no other is decoded."""
        return self._pool.longest

    def has_memory_for(self, n_bytes: int) -> bool:
        """Whether there is so much besides what keys and values can come to need."""
        return self._pool.has_room_for(n_bytes)

    @property
    def n_waiting(self) -> int:
        """Samples that have no slot yet."""
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting)

    def add(self, prompt: Sequence[int], config: SamplingConfig, generator: torch.Generator) -> Request:
        """Let a new sample take part from the next step on, or as soon as there is a slot.

        Args:
            prompt: at least one id.
            config: how to choose. Stop strings are text, and mean nothing here.
            generator: on the CPU; this sample's alone.

        Raises:
            ValueError: the prompt is empty, or has ids that the model does not know.
            ConfigError: a bias is for an id that cannot come out, or forbids all that can.
            NoMemoryError: there cannot be memory for so long a text.
        """
        self.check(prompt, config)
        if self.end_ids and not config.ignore_eos:
            config = dataclasses.replace(config, end_ids=(*config.end_ids, *self.end_ids))
        request = Request(prompt, config, generator)
        if not request.finished:
            self._waiting.append(request)
        return request

    def check(self, prompt: Sequence[int], config: SamplingConfig) -> None:
        """Raise what `add` would raise."""
        prompt = list(prompt)
        if not prompt:
            raise ValueError("the prompt has no ids; a model needs at least one to go on from")
        if self._vocab_size is not None and not 0 <= min(prompt) <= max(prompt) < self._vocab_size:
            raise ValueError(
                f"the prompt has ids from {min(prompt)} to {max(prompt)}; the model knows 0 to {self._vocab_size - 1}"
            )
        if self._n_ids is not None and config.logit_bias:
            outside = [id for id in config.logit_bias if not 0 <= id < self._n_ids]
            require(not outside, f"logit_bias has ids {outside}; there are only 0 to {self._n_ids - 1}")
            n_forbidden = sum(bias == -math.inf for bias in config.logit_bias.values())
            require(n_forbidden < self._n_ids, f"logit_bias forbids all of the {self._n_ids} ids")
        self._pool.require(len(prompt), config.max_new_tokens)

    def stop(self, request: Request) -> None:
        """End a sample before its time; its slot is free for the next one.

        The step under way may still have given it tokens.
        """
        request.finished = True
        if request in self._waiting:
            self._waiting.remove(request)
        self._leave(request)

    def step(self) -> list[StepOutput]:
        """Give each running sample its next token, or several.

        After an error, or Ctrl-C, every sample is as it was before the step, and can be stopped or gone on with.

        Raises:
            CheckpointError: the model's scores are not finite.
            NoMemoryError: a sample cannot have the memory that it can come to need, now that no other has any.
        """
        try:
            return self._step()
        except NoMemoryError:  # nothing was read
            raise
        except BaseException:  # what the slots hold is not known now
            self._pool.forget()
            if self._drafter is not None:
                self._drafter.forget()
            raise

    def _step(self) -> list[StepOutput]:
        self._admit()
        if not self._running:
            return []
        with torch.inference_mode():
            requests, leads = self._who_reads()
            guesses = self._guess(requests)
            spans = [
                self._slot(request).span(request.tokens, guess, len(guess) + 1)
                for request, guess in zip(requests, guesses, strict=True)
            ]
            logits_RV = filters.below(self._runner.read([*spans, *leads]), self._n_ids)
            chosen = self._choose(requests, guesses, logits_RV[: -len(leads)] if leads else logits_RV)
        self.counts.steps += 1
        self.counts.read += sum(len(span.ids) for span in (*spans, *leads))
        return [self._take(*each) for each in zip(requests, guesses, chosen, strict=True)]

    def _who_reads(self) -> tuple[list[Request], list[TokenSpan]]:
        """The samples that get a token in this step; and of one that has much to read before, a part of that.

        So a long prompt is read between the steps of others, and can be stopped.
        """
        if self._runner.block_size <= READ_IN_A_STEP:
            return list(self._running), []
        requests, leads = list[Request](), list[TokenSpan]()
        for request in self._running:
            if self._slot(request).n_unread(request.tokens) <= READ_IN_A_STEP:
                requests.append(request)
            elif not leads:
                leads.append(self._slot(request).lead(request.tokens, READ_IN_A_STEP))
        return requests, leads

    def run(self) -> Iterator[StepOutput]:
        """Step until no sample is left, and give what each step gives."""
        while self.is_busy:
            yield from self.step()

    def _make_drafter(self, draft: nn.Module | None, n_slots: int) -> Drafter | None:
        if draft is None:
            return PromptLookup() if self.config.speculate else None
        require(self.config.speculate > 0, "a draft model guesses tokens ahead; say how many with speculate")
        theirs = _vocab_size(draft)
        if self._vocab_size is None or self._n_ids is None or theirs is None or theirs < self._vocab_size:
            raise ConfigError(f"a draft has to be a GPT that knows all ids of the model; it knows {theirs or 'none'}")
        runner = AutoRunner(draft, n_slots, native=self.config.native)
        assert runner.cache is not None
        self._pool.also(runner.cache)
        return ModelDrafter(runner, n_slots, self._n_ids)

    def _slot(self, request: Request) -> Slot:
        assert request.slot is not None
        return self._pool.slots[request.slot]

    def _admit(self) -> None:
        """Give free slots to those who wait, in their order."""
        while self._pool.are_left and self._waiting:
            request = self._waiting[0]
            admitted = self._pool.admit(request)
            if admitted is None:
                return
            self._waiting.popleft()
            request.slot = admitted.slot
            self.counts.reused += admitted.n_shared
            self._running.append(request)

    def _guess(self, requests: list[Request]) -> list[list[int]]:
        if self._drafter is None:
            return [[] for _ in requests]
        most = self.config.speculate
        limits = [min(most, request.n_left - 1, self._slot(request).room(request.tokens)) for request in requests]
        return self._drafter.guess(requests, limits)

    def _choose(self, requests: list[Request], guesses: list[list[int]], logits_RV: Tensor) -> list[list[Token]]:
        """The choice of each sample after each part of its guess."""
        rows = [
            (request, guess[:n])
            for request, guess in zip(requests, guesses, strict=True)
            for n in range(len(guess) + 1)
        ]
        ids = [0] * len(rows)
        rows_of = defaultdict(list)  # each way of choosing
        for row, (request, _) in enumerate(rows):
            rows_of[request.sampling_key].append(row)
        for alike in rows_of.values():
            alike_RV = logits_RV if len(alike) == len(rows) else logits_RV[alike]
            chosen = choose_alike([rows[row] for row in alike], alike_RV, self._runner.block_size, self._runner.race)
            for row, id in zip(alike, chosen, strict=True):
                ids[row] = id
        tokens = (self._token(request, ids[row], logits_RV, row) for row, (request, _) in enumerate(rows))
        return [[next(tokens) for _ in range(len(guess) + 1)] for guess in guesses]

    def _token(self, request: Request, id: int, logits_RV: Tensor, row: int) -> Token:
        n_likely = request.config.logprobs
        return Token(id) if n_likely is None else with_logprobs(id, logits_RV[row], n_likely)

    def _take(self, request: Request, guess: list[int], chosen: list[Token]) -> StepOutput:
        n_right, ends = 0, request.config.end_ids
        while n_right < len(guess) and chosen[n_right].id == guess[n_right] and guess[n_right] not in ends:
            n_right += 1
        tokens = chosen[: n_right + 1]
        request.take([token.id for token in tokens])
        self._slot(request).drop(len(guess) - n_right)
        self.counts.guessed += len(guess)
        self.counts.right += n_right
        self.counts.generated += len(tokens)
        if request.finished:
            self._leave(request)
        return StepOutput(request, tokens)

    def _leave(self, request: Request) -> None:
        """Free the slot; what it holds stays, for a prompt that begins alike."""
        if request.slot is not None:
            self._running.remove(request)
            self._pool.leave(request.slot)
            request.slot = None


def _vocab_size(model: nn.Module) -> int | None:
    gpt = unwrap(model)
    return gpt.config.vocab_size if isinstance(gpt, GPT) else None
