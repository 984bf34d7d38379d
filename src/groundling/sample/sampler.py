"""Choose the next token: the settings, and the function from logits and noise to ids.

Shapes: B rows, each a position whose next token is chosen, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import tyro
from torch import Tensor

from groundling.errors import require
from groundling.sample import filters

MAX_COEFFICIENT = 10_000
"""Bound of factors and offsets of logits: beyond it, float32 loses the logits' own differences."""

SINGLE_THREAD_VOCAB = 4096
"""Vocabulary size up to which one thread samples faster than several."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling and stopping."""

    max_new_tokens: int = 500
    """Maximum number of tokens to generate."""
    temperature: float = 0.8
    """Sampling temperature; 0: greedy."""
    top_k: int | None = None
    """Top-k: sample from the k most likely tokens; None: off."""
    top_p: float = 1.0
    """Top-p (nucleus): sample from the smallest set of tokens whose probabilities sum to p; 1: off."""
    min_p: float = 0.0
    """Min-p: drop tokens less likely than this fraction of the most likely one; 0: off."""
    typical_p: float = 1.0
    """Typical-p: sample from tokens of typical information content whose probabilities sum to p; 1: off."""
    repetition_penalty: float = 1.0
    """Repetition penalty on tokens in the context; 1: off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once per occurrence in the output."""
    logit_bias: tyro.conf.Suppress[Mapping[int, float]] = field(default_factory=dict, hash=False)
    """Added to the logits of some ids; -inf forbids one."""
    logprobs: tyro.conf.Suppress[int | None] = None
    """Return each token's log-probability before all filters, and this many alternatives; None: do not."""
    seed: int = 1337
    """Seed; the same seed, prompt and model give the same text."""
    stop: tuple[str, ...] = ()
    """Stop sequences; not part of the output."""
    ignore_eos: bool = False
    """Continue after the end-of-text token, up to max_new_tokens."""
    end_ids: tyro.conf.Suppress[tuple[int, ...]] = ()
    """Ids that end the text, in addition to the model's own; the end id is the last of the tokens."""

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, expected: str) -> None:
            require(holds, f"{name} is {getattr(self, name)!r}; it must be {expected}")

        check("max_new_tokens", _is_count(self.max_new_tokens, 0), "a whole number of at least 0")
        check("temperature", 0 <= self.temperature <= MAX_COEFFICIENT, f"from 0 to {MAX_COEFFICIENT:,}")
        check("top_k", self.top_k is None or _is_count(self.top_k, 1), "at least 1, or None")
        check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        check("min_p", 0 <= self.min_p < 1, "at least 0 and below 1")
        check("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1")
        check(
            "repetition_penalty",
            0 < self.repetition_penalty <= MAX_COEFFICIENT,
            f"above 0 and at most {MAX_COEFFICIENT:,}",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            check(
                name, abs(getattr(self, name)) <= MAX_COEFFICIENT, f"from -{MAX_COEFFICIENT:,} to {MAX_COEFFICIENT:,}"
            )
        biases = self.logit_bias.items()
        known = all(isinstance(id, int) and (abs(bias) <= MAX_COEFFICIENT or bias == -math.inf) for id, bias in biases)
        check(
            "logit_bias", known, f"numbers from -{MAX_COEFFICIENT:,} to {MAX_COEFFICIENT:,}, or -inf, by whole numbers"
        )
        check("logprobs", self.logprobs is None or _is_count(self.logprobs, 0), "at least 0, or None")
        check("end_ids", all(_is_count(id, 0) for id in self.end_ids), "a tuple of ids")
        check("stop", isinstance(self.stop, tuple) and all(self.stop), "a tuple of strings that are not empty")

    def sampling_key(self) -> tuple[object, ...]:
        """Equal for configs that turn the same logits into the same distribution."""
        return (
            *(self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p),
            *(self.repetition_penalty, self.presence_penalty, self.frequency_penalty),
            tuple(sorted(self.logit_bias.items())),
        )

    def is_unfiltered(self) -> bool:
        """Whether the distribution is the model's own at a temperature."""
        plain = self.top_k is None and self.top_p >= 1 and self.min_p == 0 and self.typical_p >= 1
        return plain and not self.logit_bias and not self.has_penalties()

    def has_penalties(self) -> bool:
        """Whether logits are changed depending on earlier tokens."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and value >= least


class Token(NamedTuple):
    """A chosen token."""

    id: int
    logprob: float | None = None
    """Of the model, before all filters; None: not requested."""
    likely: tuple[tuple[int, float], ...] = ()
    """The requested number of most likely ids and their log-probabilities, best first."""


class Context(NamedTuple):
    """Earlier tokens, for the penalties."""

    window: Sequence[int]
    """The tokens that the model sees."""
    counts_V: Tensor
    """How often each id was generated so far."""


def adjust(logits_BV: Tensor, config: SamplingConfig, contexts: Sequence[Context]) -> Tensor:
    """Apply bias, penalties, temperature and filters; the softmax of the result is the sampling distribution.

    Args:
        logits_BV: in float32 or float64.
        config: with a temperature above 0.
        contexts: of each row; used only if `config.has_penalties()`.
    """
    logits_BV = filters.temperature(_penalized(logits_BV, config, contexts), config.temperature)
    if config.top_k is not None:
        logits_BV = filters.top_k(logits_BV, config.top_k)
    logits_BV = filters.typical_p(logits_BV, config.typical_p)
    return filters.min_p(filters.top_p(logits_BV, config.top_p), config.min_p)


def draws_from_few(config: SamplingConfig, logits_BV: Tensor) -> bool:
    """Whether `filters.exponential_race_of_few` applies: a small vocabulary, and no filters."""
    return logits_BV.size(-1) <= SINGLE_THREAD_VOCAB and config.is_unfiltered()


def choose(logits_BV: Tensor, config: SamplingConfig, contexts: Sequence[Context], noise_BV: Tensor | None) -> Tensor:
    """Choose the next id of each row (B).

    Args:
        logits_BV: of the model, in float32 or float64.
        config: how to choose.
        contexts: of each row.
        noise_BV: exponential draws; None with temperature 0.

    Raises:
        CheckpointError: the logits are not finite.
    """
    filters.require_scores(logits_BV.amax(-1).tolist())  # amax propagates NaN
    if noise_BV is None:
        return filters.greedy(_penalized(logits_BV, config, contexts))
    return filters.exponential_race(adjust(logits_BV, config, contexts), noise_BV)


def _penalized(logits_BV: Tensor, config: SamplingConfig, contexts: Sequence[Context]) -> Tensor:
    logits_BV = filters.logit_bias(logits_BV, config.logit_bias)
    if not config.has_penalties():
        return logits_BV
    V = logits_BV.size(-1)
    seen_BV = torch.stack([torch.tensor(context.window).bincount(minlength=V)[:V] > 0 for context in contexts])
    counts_BV = torch.stack([context.counts_V for context in contexts])
    logits_BV = filters.repetition_penalty(logits_BV, seen_BV, config.repetition_penalty)
    return filters.count_penalties(logits_BV, counts_BV, config.presence_penalty, config.frequency_penalty)


def with_logprobs(id: int, logits_V: Tensor, n_likely: int) -> Token:
    """The chosen token with the model's log-probabilities of it and of the most likely ids."""
    logprobs_V = logits_V.log_softmax(-1)
    best = logprobs_V.topk(min(n_likely, len(logprobs_V)))
    return Token(id, logprobs_V[id].item(), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
