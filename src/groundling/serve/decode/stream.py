"""Tokens from the decoding thread to their readers in the event loop.

The thread puts tokens into an inbox, which the reader empties at its own pace. Only a reader that waits for its first
tokens, or for the last ones, is woken.
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
"""How often readers empty their inboxes: sending tokens one by one would cost more than decoding them."""


class TokenBatch(NamedTuple):
    """New tokens of one of a request's samples."""

    number: int
    tokens: list[Token]
    is_last: bool


@dataclass(eq=False)
class SampleRequest:
    """One sample of an API request, to be decoded."""

    number: int
    prompt: Sequence[int]
    config: SamplingConfig
    generator: torch.Generator
    cancelled: bool = False
    request: Request | None = None


@dataclass(eq=False)
class TokenStream:
    """The samples of one API request, and their tokens.

    The decoding thread puts batches, and the event loop takes them. Each side writes its own state before it reads the
    other's, so that no wake-up is lost.
    """

    engine: Engine
    client: str
    samples: list[SampleRequest]
    deadline: float
    """By `time.monotonic`."""
    wake: Callable[[], None]
    """Makes the decoding thread check this stream again."""
    _inbox: deque[TokenBatch] = field(default_factory=deque)
    _wanted: bool = False
    """Whether the reader waits for the next batch."""
    _alarm: asyncio.Future[None] | None = None
    """The reader sleeps on this."""
    _error: ApiError | None = None
    _n_left: int = 0
    """Samples whose last batch has not been put."""

    def __post_init__(self) -> None:
        self._n_left = len(self.samples)

    async def batches(self, interval_s: float = FLUSH_INTERVAL_S) -> AsyncIterator[list[TokenBatch]]:
        """Yield new tokens until all samples have ended. Closing the iterator cancels the samples.

        Args:
            interval_s: pause between two yields; the first tokens come at once. 0: none.

        Raises:
            ApiError: the model failed, or the time limit is exceeded.
        """
        try:
            while self._n_left > 0 or self._inbox:
                self._wanted = True
                if not self._inbox and self._error is None:
                    await self._sleep(None)
                self._wanted = False
                if self._inbox:
                    yield _joined([self._inbox.popleft() for _ in range(len(self._inbox))])
                if self._error is not None:  # may be set at any time
                    raise self._error
                if interval_s and self._n_left > 0:
                    await self._sleep(interval_s)  # all readers wake together: each wake-up costs
        finally:
            self.cancel()

    async def _sleep(self, interval_s: float | None) -> None:
        """Sleep until the next multiple of the interval, or until `notify`."""
        loop = asyncio.get_running_loop()
        self._alarm = loop.create_future()
        timer = None if interval_s is None else loop.call_at((loop.time() // interval_s + 1) * interval_s, self.notify)
        try:
            await self._alarm
        finally:
            self._alarm = None
            if timer is not None:
                timer.cancel()

    def is_over(self, sample: SampleRequest, now: float) -> bool:
        """Whether a sample of this stream is cancelled or past its deadline."""
        return sample.cancelled or now > self.deadline

    def notify(self) -> None:
        """Wake the reader; called in the event loop."""
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    def cancel(self, number: int | None = None) -> None:
        """Stop one sample, or all, after the current step."""
        for sample in self.samples:
            if number is None or sample.number == number:
                sample.cancelled = True
        self.wake()

    def put(self, batches: Sequence[TokenBatch]) -> bool:
        """Hand over new tokens; return whether the reader must be woken. Called in the decoding thread."""
        self._inbox.extend(batches)
        self._n_left -= sum(batch.is_last for batch in batches)
        return self._wanted or self._n_left <= 0

    def fail(self, error: ApiError) -> None:
        """End the stream with an error; called in the event loop."""
        if self._n_left > 0 and self._error is None:
            self._error = error
        self.notify()


def _joined(inbox: Sequence[TokenBatch]) -> list[TokenBatch]:
    """Merge the batches of each sample."""
    joined: dict[int, list[Token]] = {}
    ended = set[int]()
    for number, tokens, is_last in inbox:
        joined.setdefault(number, []).extend(tokens)
        if is_last:
            ended.add(number)
    return [TokenBatch(number, tokens, number in ended) for number, tokens in joined.items()]
