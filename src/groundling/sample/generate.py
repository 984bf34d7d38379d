"""From a prompt to what comes after it, streamed: first as ids, then as text.

Going on past `block_size`: a model sees a window of at most `block_size` tokens. While all fit, it sees all; when
the window is full, its older half is dropped and generation goes on (`window_start`). With a cache this costs one
reading of the kept half, and then again one position a token; cropping one token each time would cost a whole
window a token, because every position in it would change.

Shapes: B samples, T tokens of the prompt, N tokens of the window, V vocabulary.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from groundling.bundle import Bundle
from groundling.errors import DataError, require
from groundling.model.cache import KVCache
from groundling.model.gpt import GPT
from groundling.model.layers import at_least_float32
from groundling.runtime import unwrap
from groundling.sample import filters
from groundling.sample.stop import TextStream
from groundling.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen, and when to stop."""

    max_new_tokens: int = 500
    """Tokens to generate, if no stop string comes first."""
    temperature: float = 0.8
    """Below 1 sharper, above 1 wilder; 0 always takes the best token."""
    top_k: int | None = None
    """Draw from this many best tokens; None: from all."""
    top_p: float = 1.0
    """Draw from the fewest best tokens whose probabilities reach this together; 1: from all."""
    min_p: float = 0.0
    """Draw from the tokens at least this many times as likely as the best one; 0: from all."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that the model still sees become less likely; 1: off."""
    seed: int = 1337
    """The same seed, prompt and model give the same text."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are not part of it."""

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, expected: str) -> None:
            require(holds, f"{name} is {getattr(self, name)!r}; it must be {expected}")

        check("max_new_tokens", self.max_new_tokens >= 0, "at least 0")
        check("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "a number of at least 0")
        check("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None")
        check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        check("min_p", 0 <= self.min_p < 1, "at least 0 and below 1")
        penalty = self.repetition_penalty
        check("repetition_penalty", math.isfinite(penalty) and penalty > 0, "a number above 0")
        check("stop", isinstance(self.stop, tuple) and all(self.stop), "a tuple of strings that are not empty")


def window_start(n_tokens: int, block_size: int) -> int:
    """The first token that a model sees when it has been given `n_tokens`.

    0 while all fit; then the older half of a full window (at least one token) is dropped at a time.
    """
    half = max(1, block_size // 2)
    return half * max(0, -((block_size - n_tokens) // half))


def row_generator(seed: int, row: int) -> torch.Generator:
    """The private generator of one of several samples.

    A seed is hashed, so that the second sample of one seed is not the first of the next. Rows then count on, so
    that they differ also in the 32 bits that PyTorch's CPU generator uses of a seed.
    """
    base = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(base + row)


def generate_ids(
    model: nn.Module,
    prompt_T: Sequence[int],
    config: SamplingConfig,
    generator: torch.Generator,
    n_ids: int | None = None,
) -> Iterator[int]:
    """Generate one sample, id by id.

    A GPT is read through a cache; any other module that maps `idx_BT` to `logits_BTV` and has a `block_size` (a rung
    of the ladder) is given its whole window each time. Both give the same. The model computes in evaluation mode and
    is left as it was, also between two ids. Nothing is drawn from the global generator.

    Args:
        model: what to ask; it may be compiled or wrapped.
        prompt_T: at least one id.
        config: how to choose. Stop strings are text, and mean nothing here.
        generator: on the CPU; where the randomness comes from.
        n_ids: only ids below this can come out (a model's vocabulary may be padded); None: all can.

    Raises:
        ValueError: the prompt is empty.
        CheckpointError: the model's scores are not finite.
    """
    return (row[0] for row in _decode(model, prompt_T, config, [generator], n_ids))


def generate_batch(
    model: nn.Module, prompt_T: Sequence[int], config: SamplingConfig, num_samples: int, n_ids: int | None = None
) -> Iterator[list[int]]:
    """Generate several samples of one prompt together; each step gives one id of each.

    Sample i is what `generate_ids` gives with `row_generator(config.seed, i)`.

    Raises:
        ValueError: the prompt is empty.
        CheckpointError: the model's scores are not finite.
    """
    return _decode(model, prompt_T, config, [row_generator(config.seed, row) for row in range(num_samples)], n_ids)


def stream(bundle: Bundle, prompt: str, config: SamplingConfig | None = None) -> Iterator[str]:
    """Generate text piece by piece; the pieces, joined, are what `generate` returns.

    Args:
        bundle: the model and its tokenizer.
        prompt: what the text goes on from, and does not repeat. An empty one stands for a line's beginning: a newline
            where the tokenizer has one, else token 0.
        config: how to choose; None: the defaults.

    Raises:
        DataError: the tokenizer cannot say the prompt.
        CheckpointError: the model's scores are not finite.
    """
    pieces = stream_batch(bundle, prompt, config or SamplingConfig(), 1)
    return (piece for (piece,) in pieces if piece)


def generate(bundle: Bundle, prompt: str, config: SamplingConfig | None = None, **fields: Any) -> str:
    """Generate text: `generate(bundle, "ROMEO:", temperature=0.5)`.

    Args:
        bundle: the model and its tokenizer.
        prompt: what the text goes on from, and does not repeat; see `stream`.
        config: how to choose; None: the defaults.
        fields: of `SamplingConfig`, replacing those of `config`.

    Raises:
        ConfigError: a field has a value that cannot work.
        DataError: the tokenizer cannot say the prompt.
        CheckpointError: the model's scores are not finite.
    """
    return "".join(stream(bundle, prompt, dataclasses.replace(config or SamplingConfig(), **fields)))


def stream_batch(bundle: Bundle, prompt: str, config: SamplingConfig, num_samples: int) -> Iterator[list[str]]:
    """Generate several texts of one prompt together; each step gives one piece of each, perhaps empty.

    The last step gives what was held back, and no token. Raises as `stream` does.
    """
    tokenizer = bundle.tokenizer
    prompt_T = tokenizer.encode(prompt) or _beginning(tokenizer)
    ids = generate_batch(bundle.model, prompt_T, config, num_samples, tokenizer.vocab_size)
    return _texts(ids, [TextStream(tokenizer.stream_decoder(), config.stop) for _ in range(num_samples)])


def _texts(ids: Iterator[list[int]], texts: list[TextStream]) -> Iterator[list[str]]:
    for ids_B in ids:
        yield [text.push(token) for text, token in zip(texts, ids_B, strict=True)]
        if all(text.stopped for text in texts):
            break
    yield [text.finish() for text in texts]


def _beginning(tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.encode("\n") or [0]
    except DataError:
        return [0]


def _decode(
    model: nn.Module,
    prompt_T: Sequence[int],
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    n_ids: int | None,
) -> Iterator[list[int]]:
    if not prompt_T:
        raise ValueError("the prompt has no ids; a model needs at least one to go on from")
    window_BN = torch.tensor(prompt_T, dtype=torch.long).repeat(len(generators), 1)
    return _steps(unwrap(model), window_BN, config, generators, n_ids)


def _steps(
    model: nn.Module,
    window_BN: Tensor,
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    n_ids: int | None,
) -> Iterator[list[int]]:
    block_size = cast(int, model.block_size)
    n_tokens, start = window_BN.size(1), 0
    read = _reader(model, len(generators))
    for _ in range(config.max_new_tokens):
        dropped = window_start(n_tokens, block_size) - start
        window_BN, start = window_BN[:, dropped:], start + dropped
        with _inference(model):
            logits_BV = at_least_float32(read(window_BN, start).cpu())
            if n_ids is not None:
                logits_BV = filters.below(logits_BV, n_ids)
            ids_B = choose(logits_BV, window_BN, config, generators)
        yield ids_B.tolist()
        window_BN, n_tokens = torch.cat((window_BN, ids_B[:, None]), dim=1), n_tokens + 1


def choose(
    logits_BV: Tensor, window_BN: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """Choose the next id of each row (B).

    Args:
        logits_BV: on the CPU, in float32 or float64.
        window_BN: what the model sees, for the repetition penalty.
        config: how to choose.
        generators: one for each row.

    Raises:
        CheckpointError: the scores are not finite.
    """
    logits_BV = filters.repetition_penalty(filters.require_scores(logits_BV), window_BN, config.repetition_penalty)
    if config.temperature == 0:
        return filters.greedy(logits_BV)
    logits_BV = filters.temperature(logits_BV, config.temperature)
    if config.top_k is not None:
        logits_BV = filters.top_k(logits_BV, config.top_k)
    logits_BV = filters.min_p(filters.top_p(logits_BV, config.top_p), config.min_p)
    rows = zip(logits_BV.softmax(-1), generators, strict=True)
    return torch.cat([torch.multinomial(probs_V, 1, generator=generator) for probs_V, generator in rows])


def _reader(model: nn.Module, batch_size: int) -> Callable[[Tensor, int], Tensor]:
    """A function from a window and the place of its first token to the logits_BV of what comes next."""
    parameter = next(model.parameters())
    device = parameter.device
    if not isinstance(model, GPT):
        return lambda window_BN, start: model(window_BN.to(device))[:, -1]  # noqa: ARG005

    cache, cached_start = KVCache(model.config, batch_size, parameter.dtype, device), 0

    def read(window_BN: Tensor, start: int) -> Tensor:
        nonlocal cached_start
        if start != cached_start:  # each kept token has moved to another place
            cache.clear()
            cached_start = start
        return cast(Tensor, model(window_BN[:, cache.length :].to(device), cache)[:, -1])

    return read


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
