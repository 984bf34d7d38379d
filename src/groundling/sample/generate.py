"""From a prompt to what comes after it, streamed: first as ids, then as text."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from groundling.bundle import Bundle
from groundling.errors import ConfigError, DataError
from groundling.sample.detokenize import TextStream
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.request import Request, row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.text.serialize import fingerprint
from groundling.text.tokenizer import TextDecoder, Tokenizer


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
        ConfigError: what was asked for cannot be.
        CheckpointError: the model's scores are not finite.
    """
    engine = Engine(model, decode, n_ids=n_ids)
    engine.add(prompt_T, config, generator)
    return (token.id for chosen in engine.run() for token in chosen.tokens)


def generate_batch(
    engine: Engine, prompts: Sequence[Sequence[int]], config: SamplingConfig, first_row: int = 0
) -> list[list[int]]:
    """Generate a sample for each prompt, as many at a time as the engine has slots, and return their new ids.

    The model's end of text, if a sample came to it, is not among them.

    Sample i is what `generate_ids` gives with `row_generator(config.seed, first_row + i)`, whatever the others are.
    The engine has nothing else to do meanwhile. Raises as `generate_ids` does; then none of the samples goes on.
    """
    samples: list[Request] = []
    try:
        for row, prompt_T in enumerate(prompts, first_row):
            samples.append(engine.add(prompt_T, config, row_generator(config.seed, row)))
        for _ in engine.run():
            pass
    finally:
        for sample in samples:
            engine.stop(sample)
    return [_without_end(sample.tokens[sample.n_prompt :], sample, engine) for sample in samples]


def _without_end(ids: list[int], sample: Request, engine: Engine) -> list[int]:
    ended = bool(ids) and not sample.config.ignore_eos and ids[-1] in engine.end_ids
    return ids[:-1] if ended else ids


def text_engine(
    bundle: Bundle,
    decode: DecodeConfig | None = None,
    n_slots: int = 1,
    draft: Bundle | None = None,
) -> Engine:
    """An engine for the text of a bundle; a sample ends at the model's end of text.

    Args:
        bundle: the model and its tokenizer.
        decode: how the model is read.
        n_slots: how many samples are decoded at once.
        draft: a smaller model with the same tokenizer, to guess by.

    Raises:
        ConfigError: the draft has another tokenizer, or what was asked for cannot be.
    """
    if draft is not None and fingerprint(draft.tokenizer) != fingerprint(bundle.tokenizer):
        raise ConfigError("the draft has another tokenizer than the model; train it with the same one")
    guesser = draft.model if draft is not None else None
    return Engine(bundle.model, decode, n_slots, bundle.n_ids, guesser, bundle.end_ids)


def stream(
    bundle: Bundle, prompt: str, config: SamplingConfig | None = None, decode: DecodeConfig | None = None
) -> Iterator[str]:
    """Generate text piece by piece, up to the model's end of text; the pieces, joined, are what `generate` returns.

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
    return (piece.text for piece in pieces if piece.text)


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


class TextDelta(NamedTuple):
    """What one step adds to one of several texts."""

    number: int
    text: str
    is_last: bool


def stream_batch(
    engine: Engine, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, num_samples: int
) -> Iterator[TextDelta]:
    """Generate several texts of one prompt together; gives pieces as they come, each with the number of its text.

    Each is what it would be alone, by `row_generator(config.seed, number)`. The engine has nothing else to do until
    the iterator ends or is closed. Raises as `stream` does.
    """
    prompt_T = encode_prompt(tokenizer, prompt)
    engine.check(prompt_T, config)
    return _pieces(engine, tokenizer, prompt_T, config, num_samples)


def _pieces(
    engine: Engine, tokenizer: Tokenizer, prompt_T: list[int], config: SamplingConfig, num_samples: int
) -> Iterator[TextDelta]:
    texts: dict[Request, tuple[int, TextStream]] = {}
    n_begun = 0
    try:
        while texts or n_begun < num_samples:
            while n_begun < num_samples and len(texts) < engine.n_slots:
                sample = engine.add(prompt_T, config, row_generator(config.seed, n_begun))
                if sample.finished:
                    yield TextDelta(n_begun, "", True)
                else:
                    texts[sample] = n_begun, TextStream(TextDecoder(tokenizer), config.stop)
                n_begun += 1
            for sample, tokens in engine.step():
                number, text = texts[sample]
                piece = "".join([text.push(token.id) for token in tokens])
                if text.stopped:
                    engine.stop(sample)
                if sample.finished:
                    piece += text.finish()
                    del texts[sample]
                yield TextDelta(number, piece, sample.finished)
    finally:
        for sample in texts:
            engine.stop(sample)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
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
