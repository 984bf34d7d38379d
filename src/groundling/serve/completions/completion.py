"""From an order to its answer: `/v1/completions` and `/v1/chat/completions`.

A whole answer is what a streamed one's chunks come to.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from groundling.errors import DataError
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.serve.completions.output import Choice, ChoiceDelta, Thoughts
from groundling.serve.completions.requests import ParsedRequest
from groundling.serve.decode.stream import FLUSH_INTERVAL_S, SampleRequest
from groundling.serve.http.errors import ApiError
from groundling.serve.http.responses import as_json
from groundling.serve.state import ServerState
from groundling.text.chat.messages import Message

T = TypeVar("T")
MAX_NEW_TOKENS = 200
"""Of a reply that is to be ranked; it takes half of the model's context at most."""
LARGE_RESPONSE_LOGPROBS = 2000
"""Log-probabilities from which on laying out an answer is left to another thread."""


class Completion:
    """An order while it is carried out.

    Args:
        server: where.
        order: what is asked for.
        client: who takes turns with others.
        timeout_s: the longest that it may take.

    Raises:
        ApiError: there is no place for it now.
    """

    def __init__(self, server: ServerState, parsed: ParsedRequest, client: str, timeout_s: float) -> None:
        self._server, self._parsed = server, parsed
        self._began = time.monotonic()
        self._first: float | None = None
        self._texts: dict[int, list[str]] = {}
        self._choices: dict[int, Choice] = {}
        samples = []
        for number in range(len(parsed.prompts) * parsed.n):
            prompt = parsed.prompts[number // parsed.n]
            if prompt.blocked:
                continue
            self._choices[number] = self._choice()
            samples.append(
                SampleRequest(number, prompt.ids, parsed.config, row_generator(parsed.seed, number % parsed.n))
            )
        self._stream = None
        if samples:
            self._stream = server.worker.submit(parsed.served.engine, client, samples, timeout_s)

    def _choice(self) -> Choice:
        parsed, safety, bundle = self._parsed, self._server.safety, self._parsed.served.bundle
        make_filter = None if safety is None else safety.reply
        thoughts = None
        if parsed.is_chat and bundle.chat is not None and bundle.chat.thinking is not None:
            thoughts = Thoughts(bundle.chat, bundle.tokenizer, make_filter)
        filter = None if make_filter is None else make_filter()
        return Choice(bundle.tokenizer, parsed.config.stop, parsed.config.end_ids, filter, thoughts)

    async def deltas(self) -> AsyncIterator[list[tuple[int, ChoiceDelta]]]:
        """What is new, choice by choice, until all have ended.

        Raises:
            ApiError: the model failed, or the time was up.
        """
        if first := list(self._first_of_all()):
            yield first
        if self._stream is None:
            return
        n_open = len(self._choices)
        # What is decoded after a stop string is for nothing, so for these each token is looked at as it comes.
        async for batches in self._stream.batches(0 if self._parsed.config.stop else FLUSH_INTERVAL_S):
            self._first = self._first or time.monotonic()
            news: list[tuple[int, ChoiceDelta]] = []
            for number, tokens, is_last in batches:
                choice = self._choices[number]
                if choice.finish_reason is not None:
                    continue
                delta = choice.push(tokens, is_last)
                if echo := self._parsed.prompts[number // self._parsed.n].echo:
                    delta.offsets = [len(echo.text) + offset for offset in delta.offsets]
                self._server.metrics.count(delta.findings)
                if delta.finish_reason is not None:
                    n_open -= 1
                    self._stream.cancel(number)
                news.append((number, delta))
                if self._server.config.log_text:
                    self._texts.setdefault(number, []).append(delta.text)
            if news:
                yield news
            if not n_open:
                return

    def close(self) -> None:
        """Nobody waits for it any more."""
        if self._stream is not None:
            self._stream.cancel()

    def _first_of_all(self) -> Sequence[tuple[int, ChoiceDelta]]:
        found = []
        for number in range(len(self._parsed.prompts) * self._parsed.n):
            prompt = self._parsed.prompts[number // self._parsed.n]
            if number % self._parsed.n == 0:
                self._server.metrics.count(prompt.findings)
            if prompt.blocked:
                found.append((number, ChoiceDelta(findings=prompt.findings, finish_reason="content_filter")))
            elif prompt.echo is not None or prompt.findings:
                echo = prompt.echo or ChoiceDelta()
                found.append(
                    (number, ChoiceDelta(echo.text, list(echo.tokens), prompt.findings, None, list(echo.offsets)))
                )
        return found

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        n_read = sum(len(prompt.ids) for prompt in self._parsed.prompts)
        n_written = sum(choice.n_tokens for choice in self._choices.values())
        return {"prompt_tokens": n_read, "completion_tokens": n_written, "total_tokens": n_read + n_written}

    def prompts(self) -> list[str]:
        """What was asked, for a log that was asked to hold it."""
        tokenizer, special = self._parsed.served.bundle.tokenizer, self._parsed.served.bundle.tokenizer.vocab_size
        return [tokenizer.decode(id for id in prompt.ids if id < special) for prompt in self._parsed.prompts]

    def replies(self) -> list[str]:
        """What was shown, for a log that was asked to hold it."""
        return ["".join(texts) for texts in self._texts.values()]

    def measure(self) -> None:
        """Count it."""
        metrics, usage = self._server.metrics, self.usage()
        metrics.tokens.labels(self._parsed.served.name, "prompt").inc(usage["prompt_tokens"])
        metrics.tokens.labels(self._parsed.served.name, "completion").inc(usage["completion_tokens"])
        if self._first is not None:
            metrics.first_token_s.observe(self._first - self._began)
            spent = time.monotonic() - self._first
            for choice in self._choices.values():
                if choice.n_tokens > 1 and spent > 0:
                    metrics.tokens_per_s.observe((choice.n_tokens - 1) / spent)

    async def whole(self) -> bytes:
        """The answer in one piece, as JSON."""
        parsed = self._parsed
        said: dict[int, ChoiceDelta] = {number: ChoiceDelta() for number in range(len(parsed.prompts) * parsed.n)}
        async for news in self.deltas():
            for number, delta in news:
                said[number].add(delta)
        usage = self.usage()

        def laid_out() -> bytes:
            choices = [parsed.response_format.whole(number, delta) for number, delta in said.items()]
            return as_json({**parsed.response_format.envelope(choices, streamed=False), "usage": usage})

        return await self._aside_if_much(said.values(), laid_out)

    async def _aside_if_much(self, said: Iterable[ChoiceDelta], lay_out: Callable[[], T]) -> T:
        """Lay out an answer; a large one in another thread, for others are answered meanwhile."""
        n_each = 1 + (self._parsed.config.logprobs or 0)
        if sum(len(delta.tokens) for delta in said) * n_each > LARGE_RESPONSE_LOGPROBS:
            return await run_in_threadpool(lay_out)
        return lay_out()

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The answer as it comes: what is new, some chunks at a time."""
        parsed = self._parsed
        n_choices = len(parsed.prompts) * parsed.n
        usage: dict[str, Any] = {"usage": None} if parsed.include_usage else {}

        def sent(choices: list[dict[str, Any]]) -> dict[str, Any]:
            return {**parsed.response_format.envelope(choices, streamed=True), **usage}

        begun = [
            response_format
            for number in range(n_choices)
            if (response_format := parsed.response_format.begin(number)) is not None
        ]
        if begun:
            yield [sent([choice]) for choice in begun]
        async for news in self.deltas():
            new = [(number, delta) for number, delta in news if delta != ChoiceDelta()]
            if new:
                yield await self._aside_if_much(
                    [delta for _, delta in new],
                    lambda new=new: [sent([parsed.response_format.chunk(number, delta)]) for number, delta in new],  # type: ignore[misc]
                )
        if parsed.include_usage:
            yield [{**parsed.response_format.envelope([], streamed=True), "usage": self.usage()}]


async def generate_reply(
    server: ServerState, name: str, messages: Sequence[Message], seed: int, *, client: str
) -> str | None:
    """What a model that chats says next, at temperature 1; None: the safety stage blocks it.

    Args:
        server: has the model.
        name: of the model.
        messages: the conversation; the last message is the user's.
        seed: of the reply.
        client: whose turn it is in the queue.

    Raises:
        ApiError: it cannot.
    """
    served = server.models.get(name)
    chat, block_size = served.bundle.chat, served.bundle.config.block_size
    if chat is None:
        raise ApiError(400, f"{name} was never taught to answer", "not_a_chat_model", "model")
    try:
        # Raters compare replies, and there is no room for thoughts before them.
        prompt = chat.prompt(messages, served.bundle.tokenizer, thinking=False)
    except DataError as error:
        raise ApiError(400, str(error), "invalid_value") from error
    if len(prompt) >= block_size:
        raise ApiError(400, "the conversation is longer than the model's context", "context_length_exceeded")
    n_most = min(MAX_NEW_TOKENS, block_size // 2, server.config.max_tokens)
    config = SamplingConfig(max_new_tokens=n_most, temperature=1.0, end_ids=served.end_ids)
    sample = SampleRequest(0, prompt, config, row_generator(seed, 0))
    stream = server.worker.submit(served.engine, client, [sample], server.config.timeout_s)
    make_filter = None if server.safety is None else server.safety.reply
    filter = None if make_filter is None else make_filter()
    thoughts = None if chat.thinking is None else Thoughts(chat, served.bundle.tokenizer, make_filter)
    choice, text = Choice(served.bundle.tokenizer, (), served.end_ids, filter, thoughts), ""
    try:
        async for batches in stream.batches():
            for _, tokens, is_last in batches:
                delta = choice.push(tokens, is_last)
                server.metrics.count(delta.findings)
                text += delta.text
            if choice.finish_reason == "content_filter":
                break
    finally:
        stream.cancel()
    return None if choice.finish_reason == "content_filter" else text
