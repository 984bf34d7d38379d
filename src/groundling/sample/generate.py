"""From a prompt to what comes after it, streamed: first as ids, then as text."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from groundling.bundle import Bundle
from groundling.errors import ConfigError, DataError
from groundling.sample.choose import SamplingConfig
from groundling.sample.engine import Chosen, DecodeConfig, Engine
from groundling.sample.sequences import row_generator
from groundling.sample.stop import TextStream
from groundling.text.tokenizer import Tokenizer, fingerprint


def generate_ids(
    model: nn.Module,
    prompt_T: Sequence[int],
    config: SamplingConfig,
    generator: torch.Generator,
    n_ids: int | None = None,
    decode: DecodeConfig | None = None,
) -> Iterator[int]:
    """Generate one sample, id by id.

    Args:
        model: what to ask; see `Engine`.
        prompt_T: at least one id.
        config: how to choose. Stop strings are text, and mean nothing here.
        generator: on the CPU; where the randomness comes from.
        n_ids: only ids below this can come out (a model's vocabulary may be padded); None: all can.
        decode: how the model is read.

    Raises:
        ValueError: the prompt is empty, or has ids that the model does not know.
        CheckpointError: the model's scores are not finite.
    """
    engine = Engine(model, decode, n_ids=n_ids)
    engine.add(prompt_T, config, generator)
    return (token.id for chosen in engine.run() for token in chosen.tokens)


def generate_batch(
    engine: Engine, prompts: Sequence[Sequence[int]], config: SamplingConfig, first_row: int = 0
) -> list[list[int]]:
    """Generate a sample for each prompt, as many at a time as the engine has slots.

    Sample i is what `generate_ids` gives with `row_generator(config.seed, first_row + i)`, whatever the others are.
    Raises as `generate_ids` does.
    """
    rows = enumerate(prompts, first_row)
    samples = [engine.add(prompt_T, config, row_generator(config.seed, row)) for row, prompt_T in rows]
    for _ in engine.run():
        pass
    return [sample.tokens[sample.n_prompt :] for sample in samples]


def text_engine(
    bundle: Bundle, decode: DecodeConfig | None = None, n_slots: int = 1, draft: Bundle | None = None, **more: Any
) -> Engine:
    """An engine for the text of a bundle.

    Args:
        bundle: the model and its tokenizer.
        decode: how the model is read.
        n_slots: how many samples are decoded at once.
        draft: a smaller model with the same tokenizer, to guess by.
        more: for `Engine`.

    Raises:
        ConfigError: the draft has another tokenizer, or what was asked for cannot be.
    """
    if draft is not None and fingerprint(draft.tokenizer) != fingerprint(bundle.tokenizer):
        raise ConfigError("the draft has another tokenizer than the model; train it with the same one")
    n_ids = bundle.tokenizer.vocab_size
    return Engine(bundle.model, decode, n_slots, n_ids, draft.model if draft is not None else None, **more)


def stream(
    bundle: Bundle, prompt: str, config: SamplingConfig | None = None, decode: DecodeConfig | None = None
) -> Iterator[str]:
    """Generate text piece by piece; the pieces, joined, are what `generate` returns.

    Args:
        bundle: the model and its tokenizer.
        prompt: what the text goes on from, and does not repeat. An empty one stands for a line's beginning: a newline
            where the tokenizer has one, else token 0.
        config: how to choose; None: the defaults.
        decode: how the model is read; None: in float32, natively as soon as that is possible.

    Raises:
        DataError: the tokenizer cannot say the prompt.
        CheckpointError: the model's scores are not finite.
    """
    pieces = stream_batch(text_engine(bundle, decode), bundle.tokenizer, prompt, config or SamplingConfig(), 1)
    return (piece for _, piece in pieces)


def generate(
    bundle: Bundle,
    prompt: str,
    config: SamplingConfig | None = None,
    decode: DecodeConfig | None = None,
    **fields: Any,
) -> str:
    """Generate text: `generate(bundle, "ROMEO:", temperature=0.5)`.

    Args:
        bundle: the model and its tokenizer.
        prompt: what the text goes on from, and does not repeat; see `stream`.
        config: how to choose; None: the defaults.
        decode: how the model is read; see `stream`.
        fields: of `SamplingConfig`, replacing those of `config`.

    Raises:
        ConfigError: a field has a value that cannot work.
        DataError: the tokenizer cannot say the prompt.
        CheckpointError: the model's scores are not finite.
    """
    return "".join(stream(bundle, prompt, dataclasses.replace(config or SamplingConfig(), **fields), decode))


def stream_batch(
    engine: Engine, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, num_samples: int
) -> Iterator[tuple[int, str]]:
    """Generate several texts of one prompt together; gives pieces as they come, each with the number of its sample.

    Each is what it would be alone, by `row_generator(config.seed, number)`. Raises as `stream` does.
    """
    prompt_T = prompt_ids(tokenizer, prompt)
    samples = [engine.add(prompt_T, config, row_generator(config.seed, row)) for row in range(num_samples)]
    numbers = {id(sample): number for number, sample in enumerate(samples)}
    texts = [TextStream(tokenizer.stream_decoder(), config.stop) for _ in samples]
    return _pieces(engine, numbers, texts)


def _pieces(engine: Engine, numbers: dict[int, int], texts: list[TextStream]) -> Iterator[tuple[int, str]]:
    for chosen in engine.run():
        number = numbers[id(chosen.sample)]
        piece = say(chosen, texts[number])
        if texts[number].stopped and not chosen.sample.finished:
            engine.stop(chosen.sample)
        elif chosen.sample.finished:
            piece += texts[number].finish()
        if piece:
            yield number, piece


def say(chosen: Chosen, text: TextStream) -> str:
    """The text that is certain after a step; nothing after a stop string."""
    return "".join([text.push(token.id) for token in chosen.tokens])


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one stands for a line's beginning.

    Raises:
        DataError: the tokenizer cannot say the prompt.
    """
    if ids := tokenizer.encode(prompt):
        return ids
    try:
        return tokenizer.encode("\n") or [0]
    except DataError:
        return [0]
