"""From a request to an order: prompts as ids, and how to choose.

Whatever cannot be, or not now, is said here, before anything is written.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from starlette.concurrency import run_in_threadpool

from groundling.errors import ConfigError, DataError
from groundling.model.layers import at_least_float32
from groundling.sample.choose import SamplingConfig, Token
from groundling.sample.generate import prompt_ids
from groundling.serve.errors import ApiError
from groundling.serve.forms import ChatForm, Form, TextForm
from groundling.serve.generation import Shown, offsets
from groundling.serve.registry import Served, Theatre
from groundling.serve.safety import Finding
from groundling.serve.schema import ChatRequest, CompletionRequest, Sampling
from groundling.text.chat import Message, check_messages

LONG_TEXT = 20_000
"""Characters from which on turning text into ids is left to another thread."""
MOST_LOGPROBS = 500_000
"""Log-probabilities that one request may ask for: each takes some hundred bytes until all are sent."""
DEFAULT_TOKENS = 16
"""Of a completion, as with OpenAI."""


@dataclass
class Prompt:
    """What a text goes on from."""

    ids: list[int]
    findings: list[Finding] = field(default_factory=list)
    echo: Shown | None = None
    """What is said of the prompt itself, first."""

    @property
    def blocked(self) -> bool:
        """Whether nothing is to be said to it."""
        return any(finding.action == "block" for finding in self.findings)


@dataclass
class Order:
    """What a request comes to."""

    served: Served
    prompts: list[Prompt]
    config: SamplingConfig
    seed: int
    n: int
    form: Form
    include_usage: bool

    @property
    def is_chat(self) -> bool:
        """Whether it is a reply that is wanted, and not a text's continuation."""
        return isinstance(self.form, ChatForm)


async def chat_order(theatre: Theatre, body: ChatRequest) -> Order:
    """What is wanted of a chat.

    Raises:
        ApiError: it cannot be.
    """
    theatre.require_ready()
    served = theatre.models.get(body.model)
    if served.bundle.chat is None:
        message = f"{served.name} was never taught to answer; use /v1/completions, or a model that chats"
        raise ApiError(400, message, "not_a_chat_model", "model")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = _limit(theatre, asked, theatre.config.max_tokens, field)
    n_likely = (body.top_logprobs or 0) if body.logprobs else None
    with _room(theatre, body, 1):
        messages = [Message("system" if m.role == "developer" else m.role, m.text()) for m in body.messages]
        ids = await _chat_ids(served, messages, body.thinking)
        findings: list[Finding] = []
        if theatre.safety is not None:
            checked = []
            for said in messages:
                text = said.content
                if said.role != "assistant":
                    text, found = await run_in_threadpool(theatre.safety.check_prompt, text)
                    findings += found
                checked.append(Message(said.role, text))
            if checked != messages:
                ids = await _chat_ids(served, checked, body.thinking)
    if asked is None:
        limit = min(limit, served.bundle.config.block_size - len(ids))
    _require_few_logprobs(body, limit, n_likely, "top_logprobs")
    config = _sampling(body, limit, n_likely, served)
    form = ChatForm(served.name, served.fingerprint, served.words, bool(body.logprobs))
    return _order(served, [Prompt(ids, findings)], config, body, form)


async def _chat_ids(served: Served, messages: Sequence[Message], thinking: bool) -> list[int]:
    """A conversation as the model reads it."""
    chat, tokenizer = served.bundle.chat, served.bundle.tokenizer
    assert chat is not None
    try:
        check_messages(messages, "messages")
        if messages[-1].role != "user":
            raise DataError("messages: the last one has to be the user's, for the reply follows it")
        n_characters = sum(len(m.content) for m in messages)
        ids = await _encoded(lambda: chat.prompt(messages, tokenizer, thinking=thinking), n_characters)
    except DataError as error:
        raise ApiError(400, str(error), "invalid_value", "messages") from error
    if len(ids) >= served.bundle.config.block_size:
        raise _too_long(len(ids), served, "messages")
    return ids


async def completion_order(theatre: Theatre, body: CompletionRequest) -> Order:
    """What is wanted of a text to go on from.

    Raises:
        ApiError: it cannot be.
    """
    theatre.require_ready()
    served = theatre.models.get(body.model)
    limit = _limit(theatre, body.max_tokens, DEFAULT_TOKENS, "max_tokens")
    n_read = served.bundle.config.block_size if body.echo else 0
    given = body.prompts()
    _require_few_logprobs(body, len(given) * (limit + n_read), body.logprobs, "logprobs")
    config = _sampling(body, limit, body.logprobs, served)
    with _room(theatre, body, len(given)):
        prompts = [await _prompt(theatre, served, one, body) for one in given]
    form = TextForm(served.name, served.fingerprint, served.words, body.logprobs is not None)
    return _order(served, prompts, config, body, form)


async def _prompt(theatre: Theatre, served: Served, given: str | list[int], body: CompletionRequest) -> Prompt:
    tokenizer, findings = served.bundle.tokenizer, list[Finding]()

    async def ids_of(text: str) -> list[int]:
        return _that_fit(await _encoded(lambda: prompt_ids(tokenizer, text), len(text)), served)

    try:
        if isinstance(given, str):
            text, ids = given, await ids_of(given)
        else:
            ids = _that_fit(given, served)
            text = await run_in_threadpool(tokenizer.decode, ids)
        if theatre.safety is not None:
            checked, findings = await run_in_threadpool(theatre.safety.check_prompt, text)
            if checked != text:
                text, ids = checked, await ids_of(checked)
    except DataError as error:
        raise ApiError(400, str(error), "invalid_value", "prompt") from error
    prompt = Prompt(ids, findings)
    if body.echo and not prompt.blocked:
        tokens = [Token(id) for id in ids]
        if body.logprobs is not None:
            n_likely = body.logprobs
            tokens = await theatre.worker.call(lambda: prompt_logprobs(served, ids, n_likely))
        prompt.echo = Shown(text, tokens, offsets=offsets(tokenizer, ids))
    return prompt


def _that_fit(ids: list[int], served: Served) -> list[int]:
    if len(ids) > served.bundle.config.block_size:
        raise _too_long(len(ids), served, "prompt")
    return ids


@contextmanager
def _room(theatre: Theatre, body: Sampling, n_prompts: int) -> Iterator[None]:
    """Hold the places of all texts that are asked for, while prompts are read.

    Raises:
        ApiError: 400: there can never be so many; 429: there are not now.
    """
    n_texts, most = n_prompts * (body.n or 1), theatre.worker.n_places
    if n_texts > most:
        field = "prompt" if n_prompts > most else "n"
        message = f"{field}: {n_texts} texts are asked for at once; this server takes {most} at most, ask for fewer"
        raise ApiError(400, message, "too_many_texts", field)
    with theatre.worker.places(n_texts):
        yield


def _require_few_logprobs(body: Sampling, n_tokens: int, n_likely: int | None, field: str) -> None:
    n = 0 if n_likely is None else (body.n or 1) * n_tokens * (n_likely + 1)
    if n > MOST_LOGPROBS:
        message = f"{field}: up to {n:,} are asked for in all, and {MOST_LOGPROBS:,} are told at most; ask for fewer"
        raise ApiError(400, message, "too_many_logprobs", field)


def prompt_logprobs(served: Served, ids: Sequence[int], n_likely: int) -> list[Token]:
    """What the model thinks of each token of a prompt; of the first, nothing. In the model thread."""
    model, n_ids = served.bundle.model, served.engine.n_ids
    with torch.inference_mode():
        idx_BT = torch.tensor([list(ids)], device=model.wte.weight.device)
        logprobs_TV = at_least_float32(model(idx_BT))[0, :-1, :n_ids].log_softmax(-1)
        own_T = logprobs_TV.gather(-1, idx_BT[0, 1:, None])[:, 0].tolist()
        best = logprobs_TV.topk(min(n_likely, logprobs_TV.size(-1)), dim=-1)
        likely = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        rows = [tuple(zip(*row, strict=True)) for row in likely]
    return [Token(ids[0]), *(Token(*of) for of in zip(ids[1:], own_T, rows, strict=True))]


async def _encoded(encode: Any, n_characters: int) -> list[int]:
    """Ids of a text; of a long one, in another thread."""
    ids: list[int] = await run_in_threadpool(encode) if n_characters > LONG_TEXT else encode()
    return ids


def _too_long(n: int, served: Served, param: str) -> ApiError:
    size = served.bundle.config.block_size
    message = f"the prompt has {n} tokens, and {served.name} reads {size} at most; shorten it"
    return ApiError(400, message, "context_length_exceeded", param)


def _limit(theatre: Theatre, asked: int | None, default: int, field: str) -> int:
    most = theatre.config.max_tokens
    if asked is not None and asked > most:
        raise ApiError(400, f"{field} is {asked}; this server gives {most} at most", "invalid_value", field)
    return default if asked is None else asked


def _sampling(body: Sampling, limit: int, logprobs: int | None, served: Served) -> SamplingConfig:
    try:
        config = body.sampling(limit, logprobs, served.end_ids)
        served.engine.check([0], config)
    except (ConfigError, ValueError) as error:
        raise ApiError(400, str(error), "invalid_value", _param(str(error))) from error
    return config


def _param(message: str) -> str | None:
    """The field that a message begins with."""
    word = message.split(" ", 1)[0]
    return word if word in Sampling.model_fields else None


def _order(served: Served, prompts: list[Prompt], config: SamplingConfig, body: Sampling, form: Form) -> Order:
    seed = secrets.randbits(48) if body.seed is None else body.seed
    usage = body.stream_options is not None and body.stream_options.include_usage
    for prompt in prompts:
        try:
            served.engine.check(prompt.ids, config)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value", "prompt") from error
    return Order(served, prompts, config, seed, body.n or 1, form, usage)
