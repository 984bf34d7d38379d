"""Generate from prompts: ids or text, streamed or at once."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import nn

from groundling.bundle import Bundle
from groundling.errors import ConfigError, DataError
from groundling.sample.detokenize import TextStream
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.request import Request, row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all
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
    """Generate one completion, id by id.

    Args:
        model: see `Engine`.
        prompt_T: at least one id.
        config: how to choose tokens. Stop strings are ignored.
        generator: on the CPU.
        n_ids: only ids below this are generated (a model's vocabulary may be padded); None: all.
        decode: how to run the model.

    Raises:
        ValueError: the prompt is empty, or has ids that the model does not know.
        ConfigError: a setting does not fit the model or the machine.
        CheckpointError: the model's logits are not finite.
    """
    engine = Engine(model, decode, n_ids=n_ids)
    request = engine.new_request(prompt_T, config, generator)
    return (token.id for output in run_all(engine, [request]) for token in output.tokens)


def generate_batch(
    engine: Engine, prompts: Sequence[Sequence[int]], config: SamplingConfig, first_row: int = 0
) -> list[list[int]]:
    """Generate a completion of each prompt, and return the new ids without the end of text.

    Completion i equals that of `generate_ids` with `row_generator(config.seed, first_row + i)`, whatever the other
    prompts are. The engine must be idle. Raises as `generate_ids`; then all requests are stopped.
    """
    requests = [
        engine.new_request(prompt_T, config, row_generator(config.seed, row))
        for row, prompt_T in enumerate(prompts, first_row)
    ]
    for _ in run_all(engine, requests):
        pass
    return [_without_end(request.tokens[request.n_prompt :], request, engine) for request in requests]


def _without_end(ids: list[int], request: Request, engine: Engine) -> list[int]:
    ended = bool(ids) and not request.config.ignore_eos and ids[-1] in engine.end_ids
    return ids[:-1] if ended else ids


def text_engine(
    bundle: Bundle,
    decode: DecodeConfig | None = None,
    n_slots: int = 1,
    draft: Bundle | None = None,
) -> Engine:
    """An engine for a bundle; completions end at the model's end of text.

    Args:
        bundle: the model and its tokenizer.
        decode: how to run the model.
        n_slots: completions decoded at once.
        draft: a smaller model with the same tokenizer, for speculation.

    Raises:
        ConfigError: the draft has another tokenizer, or a setting does not fit the model or the machine.
    """
    if draft is not None and fingerprint(draft.tokenizer) != fingerprint(bundle.tokenizer):
        raise ConfigError("the draft has another tokenizer than the model; train it with the same one")
    draft_model = draft.model if draft is not None else None
    return Engine(bundle.model, decode, n_slots, bundle.n_ids, draft_model, bundle.end_ids)


def stream(
    bundle: Bundle, prompt: str, config: SamplingConfig | None = None, decode: DecodeConfig | None = None
) -> Iterator[str]:
    """Generate text up to the model's end of text, and yield it as it is decoded.

    Joined, the parts are what `generate` returns.

    Args:
        bundle: the model and its tokenizer.
        prompt: the text to continue; not part of the output. An empty one stands for the beginning of a line: a newline
            if the tokenizer has one, else token 0.
        config: how to choose tokens; None: the defaults.
        decode: how to run the model; None: in float32, by the native decoder as soon as it is ready.

    Raises:
        DataError: the tokenizer cannot encode the prompt.
        CheckpointError: the model's logits are not finite.
    """
    deltas = stream_batch(text_engine(bundle, decode), bundle.tokenizer, prompt, config or SamplingConfig(), 1)
    return (delta.text for delta in deltas if delta.text)


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
        prompt: the text to continue; see `stream`.
        config: how to choose tokens; None: the defaults.
        decode: how to run the model; see `stream`.
        fields: of `SamplingConfig`, replacing those of `config`.

    Raises:
        ConfigError: a setting is invalid, or does not fit the model or the machine.
        DataError: the tokenizer cannot encode the prompt.
        CheckpointError: the model's logits are not finite.
    """
    return "".join(stream(bundle, prompt, dataclasses.replace(config or SamplingConfig(), **fields), decode))


class TextDelta(NamedTuple):
    """Text that one step adds to one of several completions."""

    number: int
    text: str
    is_last: bool


def stream_batch(
    engine: Engine, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, num_samples: int
) -> Iterator[TextDelta]:
    """Generate several completions of one prompt together, and yield their text as it is decoded.

    Each equals the completion generated alone with `row_generator(config.seed, number)`. The engine must be idle, and
    is busy until the iterator ends or is closed. Raises as `stream`.
    """
    prompt_T = encode_prompt(tokenizer, prompt)
    engine.check(prompt_T, config)
    return _text_deltas(engine, tokenizer, prompt_T, config, num_samples)


def _text_deltas(
    engine: Engine, tokenizer: Tokenizer, prompt_T: list[int], config: SamplingConfig, num_samples: int
) -> Iterator[TextDelta]:
    texts: dict[Request, tuple[int, TextStream]] = {}

    def requests() -> Iterator[Request]:
        for number in range(num_samples):
            request = engine.new_request(prompt_T, config, row_generator(config.seed, number))
            texts[request] = number, TextStream(TextDecoder(tokenizer), config.stop)
            yield request

    with closing(run_all(engine, requests())) as outputs:
        for request, tokens in outputs:
            number, text = texts[request]
            delta = "".join([text.push(token.id) for token in tokens])
            if text.stopped:
                engine.stop(request)
            if request.finished:
                delta += text.finish()
                del texts[request]
            yield TextDelta(number, delta, request.finished)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one stands for the beginning of a line.

    Raises:
        DataError: the tokenizer cannot encode the prompt.
    """
    if ids := tokenizer.encode(prompt):
        return ids
    try:
        return tokenizer.encode("\n") or [0]
    except DataError:
        return [0]
