"""From the thread that decodes to those who read: samples that were asked for, and the tokens that come of them.

Tokens are put where their readers look for them at a pace of their own. Only a reader that waits for its first tokens,
or for the last ones, is woken.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from groundling.sample.engine import Engine
from groundling.sample.request import Request
from groundling.sample.sampler import SamplingConfig, Token
from groundling.serve.http.errors import ApiError

FLUSH_INTERVAL_S = 0.05
"""Between two looks at what has come: sending tokens one by one would cost more than decoding them."""


class TokenBatch(NamedTuple):
    """What came of one of a request's samples."""

    number: int
    tokens: list[Token]
    is_last: bool


@dataclass(eq=False)
class SampleRequest:
    """One sample that somebody asked for."""

    number: int
    prompt: Sequence[int]
    config: SamplingConfig
    generator: torch.Generator
    cancelled: bool = False
    request: Request | None = None


@dataclass(eq=False)
class TokenStream:
    """All samples of one request, and the way back to who asked.

    The model thread puts parts, and the event loop takes them. Each looks again at what the other has written after it
    has written itself, so that nothing is slept through.
    """

    engine: Engine
    client: str
    samples: list[SampleRequest]
    deadline: float
    """By `time.monotonic`."""
    wake: Callable[[], None]
    """Lets the model thread look at it again."""
    _inbox: deque[TokenBatch] = field(default_factory=deque)
    _wanted: bool = False
    """Whether the reader waits for whatever comes first."""
    _alarm: asyncio.Future[None] | None = None
    """What the reader sleeps on."""
    _error: ApiError | None = None
    _n_left: int = 0
    """Samples whose last part has not been put."""

    def __post_init__(self) -> None:
        self._n_left = len(self.samples)

    async def batches(self, interval_s: float = FLUSH_INTERVAL_S) -> AsyncIterator[list[TokenBatch]]:
        """What has come since the last time, until all samples have ended. Left early, nothing goes on.

        The first tokens come at once, and later ones at this pace, some at a time.

        Raises:
            ApiError: the model failed, or the time was up.
        """
        try:
            while self._n_left > 0 or self._inbox:
                self._wanted = True
                if not self._inbox and self._error is None:
                    await self._sleep(None)
                self._wanted = False
                if self._inbox:
                    yield _joined([self._inbox.popleft() for _ in range(len(self._inbox))])
                if self._error is not None:  # may have come at any time
                    raise self._error
                if interval_s and self._n_left > 0:
                    await self._sleep(interval_s)  # all readers get up together, for each waking costs
        finally:
            self.cancel()

    async def _sleep(self, interval_s: float | None) -> None:
        """Until the clock strikes a multiple of the pace, or somebody rings."""
        loop = asyncio.get_running_loop()
        self._alarm = loop.create_future()
        timer = None if interval_s is None else loop.call_at((loop.time() // interval_s + 1) * interval_s, self.notify)
        try:
            await self._alarm
        finally:
            self._alarm = None
            if timer is not None:
                timer.cancel()

    def notify(self) -> None:
        """In the event loop: wake the reader."""
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    def cancel(self, number: int | None = None) -> None:
        """Stop one sample, or all: no token is decoded for them after the step under way."""
        for sample in self.samples:
            if number is None or sample.number == number:
                sample.cancelled = True
        self.wake()

    def put(self, batches: Sequence[TokenBatch]) -> bool:
        """In the model thread: hand over what a step gave; return whether the reader has to be woken."""
        self._inbox.extend(batches)
        self._n_left -= sum(batch.is_last for batch in batches)
        return self._wanted or self._n_left <= 0

    def fail(self, error: ApiError) -> None:
        """In the event loop: nothing comes any more, and why."""
        if self._n_left > 0 and self._error is None:
            self._error = error
        self.notify()


def _joined(inbox: Sequence[TokenBatch]) -> list[TokenBatch]:
    """Of each sample one part."""
    joined: dict[int, list[Token]] = {}
    ended = set[int]()
    for number, tokens, is_last in inbox:
        joined.setdefault(number, []).extend(tokens)
        if is_last:
            ended.add(number)
    return [TokenBatch(number, tokens, number in ended) for number, tokens in joined.items()]
