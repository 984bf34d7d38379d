"""From a parsed request to its response: `/v1/completions` and `/v1/chat/completions`.

The chunks of a streamed response add up to the response that is not streamed.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from groundling.bundle import ChatBundle
from groundling.errors import DataError
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.serve.completions.output import Choice, ChoiceDelta, Thoughts
from groundling.serve.completions.requests import ParsedRequest, Prompt
from groundling.serve.completions.response_format import ChatCompletionFormat
from groundling.serve.decode.stream import FLUSH_INTERVAL_S, SampleRequest
from groundling.serve.http.errors import ApiError
from groundling.serve.http.responses import as_json
from groundling.serve.state import ServerState
from groundling.text.chat.messages import Message

T = TypeVar("T")
MAX_NEW_TOKENS = 200
"""Of a reply to be ranked; it also takes at most half of the model's context."""
LARGE_RESPONSE_LOGPROBS = 2000
"""From this many log-probabilities on, a response is built in another thread."""


class Completion:
    """One request being decoded.

    Args:
        server: the server.
        parsed: the request.
        client: key for taking turns in the queue.
        timeout_s: time limit.

    Raises:
        ApiError: 429: the queue is full; 503: the server is shutting down.
    """

    def __init__(self, server: ServerState, parsed: ParsedRequest, client: str, timeout_s: float) -> None:
        self._server, self._parsed = server, parsed
        self._began = time.monotonic()
        self._first_token: float | None = None
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
        if parsed.is_chat and isinstance(bundle, ChatBundle) and bundle.chat.thinking is not None:
            thoughts = Thoughts(bundle.chat, bundle.tokenizer, make_filter)
        filter = None if make_filter is None else make_filter()
        return Choice(bundle.tokenizer, parsed.config.stop, parsed.config.end_ids, filter, thoughts)

    async def deltas(self) -> AsyncIterator[list[tuple[int, ChoiceDelta]]]:
        """Yield the new parts of the choices, until all have ended.

        Raises:
            ApiError: the model failed, or the time limit is exceeded.
        """
        if before := self._before_decoding():
            yield before
        if self._stream is None:
            return
        n_open = len(self._choices)
        # With stop strings, check each token at once: what is decoded after a stop string is wasted.
        async for batches in self._stream.batches(0 if self._parsed.config.stop else FLUSH_INTERVAL_S):
            self._first_token = self._first_token or time.monotonic()
            deltas: list[tuple[int, ChoiceDelta]] = []
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
                deltas.append((number, delta))
                if self._server.config.log_text:
                    self._texts.setdefault(number, []).append(delta.text)
            if deltas:
                yield deltas
            if not n_open:
                return

    def close(self) -> None:
        """Stop decoding."""
        if self._stream is not None:
            self._stream.cancel()

    def _before_decoding(self) -> list[tuple[int, ChoiceDelta]]:
        """Echoes of prompts, and the safety stage's findings in them."""
        deltas = []
        for number in range(len(self._parsed.prompts) * self._parsed.n):
            prompt = self._parsed.prompts[number // self._parsed.n]
            if number % self._parsed.n == 0:
                self._server.metrics.count(prompt.findings)
            if prompt.blocked:
                deltas.append((number, ChoiceDelta(findings=prompt.findings, finish_reason="content_filter")))
            elif prompt.echo is not None or prompt.findings:
                echo = prompt.echo or ChoiceDelta()
                deltas.append(
                    (number, ChoiceDelta(echo.text, list(echo.tokens), prompt.findings, None, list(echo.offsets)))
                )
        return deltas

    def usage(self) -> dict[str, int]:
        """Token counts, as OpenAI's `usage`."""
        n_read = sum(len(prompt.ids) for prompt in self._parsed.prompts)
        n_written = sum(choice.n_tokens for choice in self._choices.values())
        return {"prompt_tokens": n_read, "completion_tokens": n_written, "total_tokens": n_read + n_written}

    def prompts(self) -> list[str]:
        """Text of the prompts, for the log."""
        tokenizer, special = self._parsed.served.bundle.tokenizer, self._parsed.served.bundle.tokenizer.vocab_size
        return [tokenizer.decode(id for id in prompt.ids if id < special) for prompt in self._parsed.prompts]

    def replies(self) -> list[str]:
        """Text of the choices, for the log; empty unless `log_text`."""
        return ["".join(texts) for texts in self._texts.values()]

    def record_metrics(self) -> None:
        """Count tokens, latency and speed."""
        metrics, usage = self._server.metrics, self.usage()
        metrics.tokens.labels(self._parsed.served.name, "prompt").inc(usage["prompt_tokens"])
        metrics.tokens.labels(self._parsed.served.name, "completion").inc(usage["completion_tokens"])
        if self._first_token is not None:
            metrics.first_token_s.observe(self._first_token - self._began)
            spent = time.monotonic() - self._first_token
            for choice in self._choices.values():
                if choice.n_tokens > 1 and spent > 0:
                    metrics.tokens_per_s.observe((choice.n_tokens - 1) / spent)

    async def response(self) -> bytes:
        """The complete response, as JSON."""
        parsed = self._parsed
        total: dict[int, ChoiceDelta] = {number: ChoiceDelta() for number in range(len(parsed.prompts) * parsed.n)}
        async for deltas in self.deltas():
            for number, delta in deltas:
                total[number].add(delta)
        usage = self.usage()

        def build() -> bytes:
            choices = [parsed.response_format.choice(number, delta) for number, delta in total.items()]
            return as_json({**parsed.response_format.envelope(choices, streamed=False), "usage": usage})

        return await self._build(total.values(), build)

    async def _build(self, deltas: Iterable[ChoiceDelta], build: Callable[[], T]) -> T:
        """Build JSON of deltas: in another thread if they are large, so that the event loop is not blocked."""
        n_each = 1 + (self._parsed.config.logprobs or 0)
        if sum(len(delta.tokens) for delta in deltas) * n_each > LARGE_RESPONSE_LOGPROBS:
            return await run_in_threadpool(build)
        return build()

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of a streamed response, several at a time."""
        parsed = self._parsed
        n_choices = len(parsed.prompts) * parsed.n
        usage: dict[str, Any] = {"usage": None} if parsed.include_usage else {}

        def chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
            return {**parsed.response_format.envelope(choices, streamed=True), **usage}

        first = [choice for number in range(n_choices) if (choice := parsed.response_format.first_chunk(number))]
        if first:
            yield [chunk([choice]) for choice in first]
        async for deltas in self.deltas():
            new = [(number, delta) for number, delta in deltas if delta != ChoiceDelta()]
            if new:
                yield await self._build(
                    [delta for _, delta in new],
                    lambda new=new: [chunk([parsed.response_format.chunk(number, delta)]) for number, delta in new],  # type: ignore[misc]
                )
        if parsed.include_usage:
            yield [{**parsed.response_format.envelope([], streamed=True), "usage": self.usage()}]


async def generate_reply(
    server: ServerState, name: str, messages: Sequence[Message], seed: int, *, client: str
) -> str | None:
    """Generate a chat model's reply at temperature 1; None: the safety stage blocks it.

    Args:
        server: the server.
        name: of the model.
        messages: the conversation; the last message is the user's.
        seed: of the reply.
        client: key for taking turns in the queue.

    Raises:
        ApiError: the model is not a chat model, the conversation does not fit, the queue is full, or decoding failed.
    """
    served = server.models.get(name)
    bundle = served.bundle
    if not isinstance(bundle, ChatBundle):
        raise ApiError(400, f"{name} is a base model, not a chat model", "not_a_chat_model", "model")
    try:
        # Raters compare replies without thoughts.
        ids = bundle.encode_chat(messages, thinking=False)
    except DataError as error:
        raise ApiError(400, str(error), "invalid_value") from error
    block_size = bundle.config.block_size
    if len(ids) >= block_size:
        raise ApiError(400, "the conversation is longer than the model's context", "context_length_exceeded")
    max_new_tokens = min(MAX_NEW_TOKENS, block_size // 2, server.config.max_tokens)
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=1.0, end_ids=served.end_ids)
    response_format = ChatCompletionFormat(served.name, served.fingerprint, served.token_text, with_logprobs=False)
    parsed = ParsedRequest(served, [Prompt(ids)], config, seed, 1, response_format, include_usage=False)
    completion, reply = Completion(server, parsed, client, server.config.timeout_s), ChoiceDelta()
    try:
        async for deltas in completion.deltas():
            for _, delta in deltas:
                reply.add(delta)
    finally:
        completion.close()
    return None if reply.finish_reason == "content_filter" else reply.text
