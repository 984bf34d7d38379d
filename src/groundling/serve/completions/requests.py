"""Parse a request: encode its prompts, and make its sampling settings.

Errors of a request are raised here, before the response begins.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from starlette.concurrency import run_in_threadpool

from groundling.bundle import ChatBundle
from groundling.errors import ConfigError, DataError
from groundling.model.numerics import at_least_float32
from groundling.safety.stream import Finding
from groundling.sample.generate import encode_prompt
from groundling.sample.sampler import SamplingConfig, Token
from groundling.sample.slots import NoMemoryError
from groundling.serve.completions.conversation import conversation, encoding_error
from groundling.serve.completions.output import ChoiceDelta, offsets
from groundling.serve.completions.response_format import ChatCompletionFormat, CompletionFormat, ResponseFormat
from groundling.serve.completions.schema import ChatRequest, CompletionRequest, Sampling
from groundling.serve.http.errors import ApiError, no_memory
from groundling.serve.state import Served, ServerState
from groundling.text.chat.messages import Message

LONG_TEXT = 20_000
"""From this many characters on, text is encoded in another thread."""
MAX_LOGPROBS = 500_000
"""Log-probabilities per request: each takes some hundred bytes until the response is sent."""
SCORED_AT_ONCE = 256
"""Positions of a prompt to compute logits for at once: those of ten thousand would fill the memory."""
DEFAULT_TOKENS = 16
"""`max_tokens` of a text completion, as in OpenAI's API."""


@dataclass
class Prompt:
    """One encoded prompt."""

    ids: list[int]
    findings: list[Finding] = field(default_factory=list)
    echo: ChoiceDelta | None = None
    """The prompt's own text and tokens, to send first."""

    @property
    def blocked(self) -> bool:
        """Whether the safety stage blocks it."""
        return any(finding.action == "block" for finding in self.findings)


@dataclass
class ParsedRequest:
    """A request, ready to be decoded."""

    served: Served
    prompts: list[Prompt]
    config: SamplingConfig
    seed: int
    n: int
    response_format: ResponseFormat
    include_usage: bool

    @property
    def is_chat(self) -> bool:
        """Whether this is a chat completion."""
        return isinstance(self.response_format, ChatCompletionFormat)


async def parse_chat(server: ServerState, body: ChatRequest) -> ParsedRequest:
    """Parse a chat completion request.

    Raises:
        ApiError: the request is invalid, or the server cannot take it now.
    """
    server.require_ready()
    served = server.models.get(body.model)
    bundle = served.bundle
    if not isinstance(bundle, ChatBundle):
        message = f"{served.name} is a base model, not a chat model; use /v1/completions, or a chat model"
        raise ApiError(400, message, "not_a_chat_model", "model")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = _limit(server, asked, server.config.max_tokens, field)
    n_likely = (body.top_logprobs or 0) if body.logprobs else None
    with _reserved(server, body, 1):
        messages = conversation(body.messages)
        ids = await _chat_ids(served, bundle, messages, body.thinking)
        findings: list[Finding] = []
        if server.safety is not None:
            checked = []
            for each in messages:
                text = each.content
                if each.role != "assistant":
                    text, found = await run_in_threadpool(server.safety.check_prompt, text)
                    findings += found
                checked.append(Message(each.role, text))
            if checked != messages:
                ids = await _chat_ids(served, bundle, checked, body.thinking)
    if asked is None:
        limit = min(limit, max(1, served.engine.longest - len(ids)))
    _require_few_logprobs(body, limit, n_likely, "top_logprobs")
    config = _sampling(body, limit, n_likely, served)
    response_format = ChatCompletionFormat(served.name, served.fingerprint, served.token_text, bool(body.logprobs))
    return _parsed(served, [Prompt(ids, findings)], config, body, response_format)


async def _chat_ids(served: Served, bundle: ChatBundle, messages: Sequence[Message], thinking: bool) -> list[int]:
    """Ids of a conversation, by the chat template."""
    if messages[-1].role != "user":
        place = f"messages.{len(messages) - 1}.role"
        message = f'{place} is "{messages[-1].role}"; the last message must be the user\'s, for the reply follows it'
        raise ApiError(400, message, "invalid_value", place)
    try:
        n_characters = sum(len(m.content) for m in messages)
        ids = await _encoded(lambda: bundle.encode_chat(messages, thinking=thinking), n_characters)
    except DataError as error:
        raise await run_in_threadpool(encoding_error, messages, bundle.tokenizer, error) from error
    if len(ids) >= bundle.config.block_size:
        raise _too_long(len(ids), served, "messages")
    return ids


async def parse_completion(server: ServerState, body: CompletionRequest) -> ParsedRequest:
    """Parse a text completion request.

    Raises:
        ApiError: the request is invalid, or the server cannot take it now.
    """
    server.require_ready()
    served = server.models.get(body.model)
    limit = _limit(server, body.max_tokens, DEFAULT_TOKENS, "max_tokens")
    n_read = served.bundle.config.block_size if body.echo else 0
    given = body.prompts()
    _require_few_logprobs(body, len(given) * (limit + n_read), body.logprobs, "logprobs")
    config = _sampling(body, limit, body.logprobs, served)
    with _reserved(server, body, len(given)):
        several = isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
        places = [f"prompt.{number}" if several else "prompt" for number in range(len(given))]
        prompts = [await _prompt(server, served, one, body, place) for one, place in zip(given, places, strict=True)]
    response_format = CompletionFormat(served.name, served.fingerprint, served.token_text, body.logprobs is not None)
    return _parsed(served, prompts, config, body, response_format)


async def _prompt(
    server: ServerState, served: Served, given: str | list[int], body: CompletionRequest, place: str
) -> Prompt:
    tokenizer, findings = served.bundle.tokenizer, list[Finding]()

    async def ids_of(text: str) -> list[int]:
        return _require_fit(await _encoded(lambda: encode_prompt(tokenizer, text), len(text)), served, place)

    try:
        if isinstance(given, str):
            text, ids = given, await ids_of(given)
        else:
            ids = _require_fit(given, served, place)
            _require_known(ids, tokenizer.vocab_size, place)
            text = await run_in_threadpool(tokenizer.decode, ids)
        if server.safety is not None:
            checked, findings = await run_in_threadpool(server.safety.check_prompt, text)
            if checked != text:
                text, ids = checked, await ids_of(checked)
    except DataError as error:
        raise ApiError(400, f"{place}: {error}", "invalid_value", place) from error
    prompt = Prompt(ids, findings)
    if body.echo and not prompt.blocked:
        tokens = [Token(id) for id in ids]
        if body.logprobs is not None:
            n_likely = body.logprobs
            tokens = await server.worker.call(lambda: prompt_logprobs(served, ids, n_likely))
        prompt.echo = ChoiceDelta(text, tokens, offsets=offsets(tokenizer, ids))
    return prompt


def _require_fit(ids: list[int], served: Served, place: str) -> list[int]:
    if len(ids) > served.bundle.config.block_size:
        raise _too_long(len(ids), served, place)
    return ids


def _require_known(ids: Sequence[int], n_ids: int, place: str) -> None:
    unknown = next((number for number, id in enumerate(ids) if id >= n_ids), None)
    if unknown is not None:
        message = f"{place}.{unknown} is {ids[unknown]}; the model's tokens are 0 to {n_ids - 1}"
        raise ApiError(400, message, "invalid_value", f"{place}.{unknown}")


@contextmanager
def _reserved(server: ServerState, body: Sampling, n_prompts: int) -> Iterator[None]:
    """Reserve places in the queue for all choices while the prompts are encoded.

    Raises:
        ApiError: 400: more choices than the queue can hold; 429: the queue is full.
    """
    n_texts, most = n_prompts * (body.n or 1), server.worker.n_places
    if n_texts > most:
        field = "prompt" if n_prompts > most else "n"
        message = f"{field}: the request is for {n_texts} texts; this server takes {most} at most, ask for fewer"
        raise ApiError(400, message, "too_many_texts", field)
    with server.worker.places(n_texts):
        yield


def _require_few_logprobs(body: Sampling, n_tokens: int, n_likely: int | None, field: str) -> None:
    n = 0 if n_likely is None else (body.n or 1) * n_tokens * (n_likely + 1)
    if n > MAX_LOGPROBS:
        message = f"{field}: the response could have {n:,} in all, and the limit is {MAX_LOGPROBS:,}; ask for fewer"
        raise ApiError(400, message, "too_many_logprobs", field)


def prompt_logprobs(served: Served, ids: Sequence[int], n_likely: int) -> list[Token]:
    """Log-probabilities of a prompt's tokens; the first has none. Called in the decoding thread."""
    model, n_ids = served.bundle.model, served.engine.n_ids
    c = model.config
    # Activations of one layer at all positions (residual, queries, keys, values, MLP), and the logits at some.
    widths = 4 * c.n_embd + 3 * (c.n_head + 2 * c.kv_heads()) * c.head_width() + 3 * c.hidden_width()
    if not served.engine.has_memory_for(4 * (len(ids) * widths + 4 * SCORED_AT_ONCE * c.vocab_size)):
        message = f"there is not enough memory to score a prompt of {len(ids):,} tokens; shorten it, or leave out echo"
        raise ApiError(400, message, "insufficient_memory", "prompt")
    tokens = [Token(ids[0])]
    with torch.inference_mode():
        idx_BT = torch.tensor([list(ids)], device=model.wte.weight.device)
        x_TC = model.features(idx_BT)[0, :-1]
        for first in range(0, len(x_TC), SCORED_AT_ONCE):
            some_NC, next_N = (of_all[first : first + SCORED_AT_ONCE] for of_all in (x_TC, idx_BT[0, 1:]))
            logprobs_NV = at_least_float32(model.lm_head(some_NC))[:, :n_ids].log_softmax(-1)
            own_N = logprobs_NV.gather(-1, next_N[:, None])[:, 0].tolist()
            best = logprobs_NV.topk(min(n_likely, logprobs_NV.size(-1)), dim=-1)
            likely = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            rows = [tuple(zip(*row, strict=True)) for row in likely]
            tokens += [Token(*of) for of in zip(next_N.tolist(), own_N, rows, strict=True)]
    return tokens


async def _encoded(encode: Any, n_characters: int) -> list[int]:
    """Encode a text; a long one in another thread."""
    ids: list[int] = await run_in_threadpool(encode) if n_characters > LONG_TEXT else encode()
    return ids


def _too_long(n: int, served: Served, param: str) -> ApiError:
    size = served.bundle.config.block_size
    what = param if "." in param else "the prompt"
    message = f"{what} has {n} tokens, and {served.name} reads {size} at most; shorten it"
    return ApiError(400, message, "context_length_exceeded", param)


def _limit(server: ServerState, asked: int | None, default: int, field: str) -> int:
    most = server.config.max_tokens
    if asked is not None and asked > most:
        raise ApiError(400, f"{field} is {asked}; the limit of this server is {most}", "invalid_value", field)
    return default if asked is None else asked


def _sampling(body: Sampling, limit: int, logprobs: int | None, served: Served) -> SamplingConfig:
    try:
        config = body.sampling(limit, logprobs, served.end_ids)
        served.engine.check([0], config)
    except NoMemoryError as error:
        raise no_memory(error) from error
    except (ConfigError, ValueError) as error:
        raise ApiError(400, str(error), "invalid_value", _param(str(error))) from error
    return config


def _param(message: str) -> str | None:
    """The field that an error message begins with."""
    word = message.split(" ", 1)[0]
    return word if word in Sampling.model_fields else None


def _parsed(
    served: Served, prompts: list[Prompt], config: SamplingConfig, body: Sampling, response_format: ResponseFormat
) -> ParsedRequest:
    seed = secrets.randbits(48) if body.seed is None else body.seed
    usage = body.stream_options is not None and body.stream_options.include_usage
    for prompt in prompts:
        try:
            served.engine.check(prompt.ids, config)
        except NoMemoryError as error:
            raise no_memory(error) from error
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value", "prompt") from error
    return ParsedRequest(served, prompts, config, seed, body.n or 1, response_format, usage)
