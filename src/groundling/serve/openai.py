"""From a request to its answer: `/v1/completions` and `/v1/chat/completions`.

Both become an `Order`: prompts as ids, and how to choose. A whole answer is what a streamed one's chunks come to.
"""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from starlette.concurrency import run_in_threadpool

from groundling.errors import ConfigError, DataError
from groundling.model.layers import at_least_float32
from groundling.sample.choose import SamplingConfig, Token
from groundling.sample.generate import prompt_ids
from groundling.sample.sequences import row_generator
from groundling.serve.errors import ApiError
from groundling.serve.forms import ChatForm, Form, TextForm
from groundling.serve.generation import Choice, Shown
from groundling.serve.registry import Served, Theatre
from groundling.serve.safety import Finding
from groundling.serve.schema import ChatRequest, CompletionRequest, Sampling
from groundling.serve.worker import PACE_S, Take
from groundling.text.chat import Message, check_messages

LONG_TEXT = 20_000
"""Characters from which on turning text into ids is left to another thread."""
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


async def chat_order(theatre: Theatre, body: ChatRequest) -> Order:
    """What is wanted of a chat.

    Raises:
        ApiError: it cannot be.
    """
    theatre.require_ready()
    served = theatre.models.get(body.model)
    chat, tokenizer = served.bundle.chat, served.bundle.tokenizer
    if chat is None:
        message = f"{served.name} was never taught to answer; use /v1/completions, or a model that chats"
        raise ApiError(400, message, "not_a_chat_model", "model")
    findings: list[Finding] = []
    messages = []
    for given in body.messages:
        text = given.text()
        if theatre.safety is not None and given.role != "assistant":
            text, found = await run_in_threadpool(theatre.safety.check_prompt, text)
            findings += found
        messages.append(Message("system" if given.role == "developer" else given.role, text))
    try:
        check_messages(messages, "messages")
        if messages[-1].role != "user":
            raise DataError("messages: the last one has to be the user's, for the reply follows it")
        ids = await _encoded(lambda: chat.prompt(messages, tokenizer), sum(len(m.content) for m in messages))
    except DataError as error:
        raise ApiError(400, str(error), "invalid_value", "messages") from error
    room = served.bundle.config.block_size - len(ids)
    if room < 1:
        raise _too_long(len(ids), served, "messages")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    limit = _limit(theatre, asked, min(room, theatre.config.max_tokens))
    config = _sampling(body, limit, (body.top_logprobs or 0) if body.logprobs else None, served)
    form = ChatForm(served.name, served.fingerprint, served.words, bool(body.logprobs))
    return _order(served, [Prompt(ids, findings)], config, body, form)


async def completion_order(theatre: Theatre, body: CompletionRequest) -> Order:
    """What is wanted of a text to go on from.

    Raises:
        ApiError: it cannot be.
    """
    theatre.require_ready()
    served = theatre.models.get(body.model)
    limit = _limit(theatre, body.max_tokens, DEFAULT_TOKENS)
    config = _sampling(body, limit, body.logprobs, served)
    prompts = [await _prompt(theatre, served, given, body) for given in body.prompts()]
    form = TextForm(served.name, served.fingerprint, served.words, body.logprobs is not None)
    return _order(served, prompts, config, body, form)


async def _prompt(theatre: Theatre, served: Served, given: str | list[int], body: CompletionRequest) -> Prompt:
    tokenizer, findings = served.bundle.tokenizer, list[Finding]()
    try:
        text = given if isinstance(given, str) else await run_in_threadpool(tokenizer.decode, given)
        if theatre.safety is not None:
            checked, findings = await run_in_threadpool(theatre.safety.check_prompt, text)
            if checked != text:
                given = text = checked
        ids = await _encoded(lambda: prompt_ids(tokenizer, text), len(text)) if isinstance(given, str) else given
    except DataError as error:
        raise ApiError(400, str(error), "invalid_value", "prompt") from error
    if len(ids) > served.bundle.config.block_size:
        raise _too_long(len(ids), served, "prompt")
    prompt = Prompt(ids, findings)
    if body.echo and not prompt.blocked:
        tokens = [Token(id) for id in ids]
        if body.logprobs is not None:
            n_likely = body.logprobs
            tokens = await theatre.worker.call(lambda: prompt_logprobs(served, ids, n_likely))
        prompt.echo = Shown(text, tokens)
    return prompt


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


def _limit(theatre: Theatre, asked: int | None, default: int) -> int:
    most = theatre.config.max_tokens
    if asked is not None and asked > most:
        raise ApiError(400, f"max_tokens is {asked}; this server gives {most} at most", "invalid_value", "max_tokens")
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


class Performance:
    """An order while it is carried out.

    Raises:
        ApiError: there is no place for it now.
    """

    def __init__(self, theatre: Theatre, order: Order, client: str) -> None:
        self._theatre, self._order = theatre, order
        self._began = time.monotonic()
        self._first: float | None = None
        self._texts: dict[int, list[str]] = {}
        served, safety = order.served, theatre.safety
        self._choices: dict[int, Choice] = {}
        takes = []
        for number in range(len(order.prompts) * order.n):
            prompt = order.prompts[number // order.n]
            if prompt.blocked:
                continue
            filter = safety.reply() if safety is not None else None
            self._choices[number] = Choice(served.bundle.tokenizer, order.config.stop, served.end_ids, filter)
            takes.append(Take(number, prompt.ids, order.config, row_generator(order.seed, number % order.n)))
        self._generation = None
        if takes:
            self._generation = theatre.worker.submit(served.engine, client, takes, theatre.config.timeout_s)

    async def shown(self) -> AsyncIterator[list[tuple[int, Shown]]]:
        """What is new, choice by choice, until all have ended.

        Raises:
            ApiError: the model failed, or the time was up.
        """
        if first := list(self._first_of_all()):
            yield first
        if self._generation is None:
            return
        n_open = len(self._choices)
        # What is decoded after a stop string is for nothing, so for these each token is looked at as it comes.
        async for parts in self._generation.parts(0 if self._order.config.stop else PACE_S):
            self._first = self._first or time.monotonic()
            news: list[tuple[int, Shown]] = []
            for number, tokens, is_last in parts:
                choice = self._choices[number]
                if choice.finish_reason is not None:
                    continue
                shown = choice.push(tokens, is_last)
                self._count(shown.findings)
                if shown.finish_reason is not None:
                    n_open -= 1
                    self._generation.cancel(number)
                news.append((number, shown))
                if self._theatre.config.log_text:
                    self._texts.setdefault(number, []).append(shown.text)
            if news:
                yield news
            if not n_open:
                return

    def close(self) -> None:
        """Nobody waits for it any more."""
        if self._generation is not None:
            self._generation.cancel()

    def _first_of_all(self) -> Sequence[tuple[int, Shown]]:
        found = []
        for number in range(len(self._order.prompts) * self._order.n):
            prompt = self._order.prompts[number // self._order.n]
            if number % self._order.n == 0:
                self._count(prompt.findings)
            if prompt.blocked:
                found.append((number, Shown(findings=prompt.findings, finish_reason="content_filter")))
            elif prompt.echo is not None or prompt.findings:
                echo = prompt.echo or Shown()
                found.append((number, Shown(echo.text, list(echo.tokens), prompt.findings)))
        return found

    def _count(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self._theatre.metrics.filtered.labels(finding.where, finding.action).inc()

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        n_read = sum(len(prompt.ids) for prompt in self._order.prompts)
        n_written = sum(choice.n_tokens for choice in self._choices.values())
        return {"prompt_tokens": n_read, "completion_tokens": n_written, "total_tokens": n_read + n_written}

    def prompts(self) -> list[str]:
        """What was asked, for a log that was asked to hold it."""
        tokenizer, special = self._order.served.bundle.tokenizer, self._order.served.bundle.tokenizer.vocab_size
        return [tokenizer.decode(id for id in prompt.ids if id < special) for prompt in self._order.prompts]

    def replies(self) -> list[str]:
        """What was shown, for a log that was asked to hold it."""
        return ["".join(texts) for texts in self._texts.values()]

    def measure(self) -> None:
        """Count it."""
        metrics, usage = self._theatre.metrics, self.usage()
        metrics.tokens.labels(self._order.served.name, "prompt").inc(usage["prompt_tokens"])
        metrics.tokens.labels(self._order.served.name, "completion").inc(usage["completion_tokens"])
        if self._first is not None:
            metrics.first_token_s.observe(self._first - self._began)
            spent = time.monotonic() - self._first
            for choice in self._choices.values():
                if choice.n_tokens > 1 and spent > 0:
                    metrics.tokens_per_s.observe((choice.n_tokens - 1) / spent)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        order = self._order
        said: dict[int, Shown] = {number: Shown() for number in range(len(order.prompts) * order.n)}
        async for news in self.shown():
            for number, shown in news:
                so_far = said[number]
                so_far.text += shown.text
                so_far.tokens += shown.tokens
                so_far.findings += shown.findings
                so_far.finish_reason = shown.finish_reason or so_far.finish_reason
        choices = [order.form.whole(number, shown) for number, shown in said.items()]
        return {**order.form.envelope(choices, streamed=False), "usage": self.usage()}

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The answer as it comes: what is new, some chunks at a time."""
        order = self._order
        n_choices = len(order.prompts) * order.n
        usage: dict[str, Any] = {"usage": None} if order.include_usage else {}

        def sent(choices: list[dict[str, Any]]) -> dict[str, Any]:
            return {**order.form.envelope(choices, streamed=True), **usage}

        begun = [form for number in range(n_choices) if (form := order.form.begin(number)) is not None]
        if begun:
            yield [sent([choice]) for choice in begun]
        async for news in self.shown():
            if chunks := [sent([order.form.chunk(number, shown)]) for number, shown in news if shown != Shown()]:
                yield chunks
        if order.include_usage:
            yield [{**order.form.envelope([], streamed=True), "usage": self.usage()}]
