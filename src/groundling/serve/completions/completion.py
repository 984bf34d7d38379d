"""From an order to its answer: `/v1/completions` and `/v1/chat/completions`.

A whole answer is what a streamed one's chunks come to.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from groundling.sample.sequence import row_generator
from groundling.serve.completions.output import Choice, Shown, Thoughts
from groundling.serve.completions.requests import Order
from groundling.serve.decode.stream import PACE_S, Take
from groundling.serve.http.responses import as_json
from groundling.serve.state import Theatre

T = TypeVar("T")
MUCH = 2000
"""Log-probabilities from which on laying out an answer is left to another thread."""


class Performance:
    """An order while it is carried out.

    Args:
        theatre: where.
        order: what is asked for.
        client: who takes turns with others.
        timeout_s: the longest that it may take.

    Raises:
        ApiError: there is no place for it now.
    """

    def __init__(self, theatre: Theatre, order: Order, client: str, timeout_s: float) -> None:
        self._theatre, self._order = theatre, order
        self._began = time.monotonic()
        self._first: float | None = None
        self._texts: dict[int, list[str]] = {}
        self._choices: dict[int, Choice] = {}
        takes = []
        for number in range(len(order.prompts) * order.n):
            prompt = order.prompts[number // order.n]
            if prompt.blocked:
                continue
            self._choices[number] = self._choice()
            takes.append(Take(number, prompt.ids, order.config, row_generator(order.seed, number % order.n)))
        self._generation = None
        if takes:
            self._generation = theatre.worker.submit(order.served.engine, client, takes, timeout_s)

    def _choice(self) -> Choice:
        order, safety, bundle = self._order, self._theatre.safety, self._order.served.bundle
        make_filter = None if safety is None else safety.reply
        thoughts = None
        if order.is_chat and bundle.chat is not None and bundle.chat.thinking is not None:
            thoughts = Thoughts(bundle.chat, bundle.tokenizer, make_filter)
        filter = None if make_filter is None else make_filter()
        return Choice(bundle.tokenizer, order.config.stop, order.config.end_ids, filter, thoughts)

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
                if echo := self._order.prompts[number // self._order.n].echo:
                    shown.offsets = [len(echo.text) + offset for offset in shown.offsets]
                self._theatre.metrics.count(shown.findings)
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
                self._theatre.metrics.count(prompt.findings)
            if prompt.blocked:
                found.append((number, Shown(findings=prompt.findings, finish_reason="content_filter")))
            elif prompt.echo is not None or prompt.findings:
                echo = prompt.echo or Shown()
                found.append((number, Shown(echo.text, list(echo.tokens), prompt.findings, None, list(echo.offsets))))
        return found

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

    async def whole(self) -> bytes:
        """The answer in one piece, as JSON."""
        order = self._order
        said: dict[int, Shown] = {number: Shown() for number in range(len(order.prompts) * order.n)}
        async for news in self.shown():
            for number, shown in news:
                said[number].add(shown)
        usage = self.usage()

        def laid_out() -> bytes:
            choices = [order.form.whole(number, shown) for number, shown in said.items()]
            return as_json({**order.form.envelope(choices, streamed=False), "usage": usage})

        return await self._aside_if_much(said.values(), laid_out)

    async def _aside_if_much(self, said: Iterable[Shown], lay_out: Callable[[], T]) -> T:
        """Lay out an answer; a large one in another thread, for others are answered meanwhile."""
        n_each = 1 + (self._order.config.logprobs or 0)
        if sum(len(shown.tokens) for shown in said) * n_each > MUCH:
            return await run_in_threadpool(lay_out)
        return lay_out()

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
            new = [(number, shown) for number, shown in news if shown != Shown()]
            if new:
                yield await self._aside_if_much(
                    [shown for _, shown in new],
                    lambda new=new: [sent([order.form.chunk(number, shown)]) for number, shown in new],  # type: ignore[misc]
                )
        if order.include_usage:
            yield [{**order.form.envelope([], streamed=True), "usage": self.usage()}]
