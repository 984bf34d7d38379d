"""One thread owns all models, and decodes for everybody, step by step.

Requests come from the event loop and wait in a bounded queue, in which clients take turns. Tokens go back in one call
a step. Before each step the thread looks who is gone, and whose time is up.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import torch

from groundling.errors import GroundlingError
from groundling.sample.choose import SamplingConfig, Token
from groundling.sample.engine import Engine
from groundling.sample.sequences import Sample
from groundling.serve.errors import ApiError

T = TypeVar("T")
STOP_S = 10.0
PACE_S = 0.04
"""Between two looks at what has come: sending tokens one by one would cost more than decoding them."""


class Part(NamedTuple):
    """What came of one of a request's samples."""

    number: int
    tokens: list[Token]
    is_last: bool


@dataclass(eq=False)
class Take:
    """One sample that somebody asked for."""

    number: int
    prompt: Sequence[int]
    config: SamplingConfig
    generator: torch.Generator
    cancelled: bool = False
    sample: Sample | None = None


@dataclass(eq=False)
class Generation:
    """All samples of one request, and the way back to who asked. Belongs to the event loop, but for `cancelled`."""

    engine: Engine
    client: str
    takes: list[Take]
    deadline: float
    """By `time.monotonic`."""
    worker: "Worker"
    _inbox: list[Part] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _error: ApiError | None = None
    _n_left: int = 0

    def __post_init__(self) -> None:
        self._n_left = len(self.takes)

    async def parts(self, pace_s: float = PACE_S) -> AsyncIterator[list[Part]]:
        """What has come since the last time, until all samples have ended. Left early, nothing goes on.

        The first tokens come at once, and later ones at this pace, some at a time.

        Raises:
            ApiError: the model failed, or the time was up.
        """
        try:
            while self._n_left or self._inbox:
                await self._news.wait()
                self._news.clear()
                inbox, self._inbox = self._inbox, []
                if inbox:
                    yield _joined(inbox)
                if pace_s and self._n_left:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._over.wait(), pace_s)
            if self._error is not None:  # may have come at any time, also while nobody waited for news
                raise self._error
        finally:
            self.cancel()

    def cancel(self, number: int | None = None) -> None:
        """Stop one sample, or all: no token is decoded for them after the step under way."""
        for take in self.takes:
            if number is None or take.number == number:
                take.cancelled = True
        self.worker.wake()

    def receive(self, parts: Sequence[Part], error: ApiError | None) -> None:
        """In the event loop: what a step gave. After an error, or when all samples have ended, nothing counts."""
        if self._n_left <= 0:
            return
        self._inbox += parts
        self._n_left -= sum(part.is_last for part in parts)
        if error is not None:
            self._error, self._n_left = error, 0
        self._news.set()
        if not self._n_left:
            self._over.set()


class Load(NamedTuple):
    """How much there is to do."""

    waiting: int
    active: int


class Worker:
    """The thread.

    Args:
        n_slots: samples that are decoded at once, over all models.
        max_waiting: samples that may wait besides.
    """

    def __init__(self, n_slots: int, max_waiting: int) -> None:
        self.n_slots, self.max_waiting = n_slots, max_waiting
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._waiting: OrderedDict[str, deque[tuple[Generation, Take]]] = OrderedDict()
        self._generations: WeakSet[Generation] = WeakSet()
        self._active: dict[Sample, tuple[Generation, Take]] = {}
        self._n_open = 0
        self._stopping = False
        self._seconds_a_take = 1.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._when_failed: Callable[[Exception], None] | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self, when_failed: Callable[[Exception], None]) -> None:
        """Begin, in a running event loop, which is told if the thread itself fails: nothing is decoded then."""
        self._loop, self._when_failed = asyncio.get_running_loop(), when_failed
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; what is under way ends with an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_S)

    def wake(self) -> None:
        """Look again at what there is to do."""
        with self._changed:
            self._changed.notify()

    @property
    def load(self) -> Load:
        """How many samples wait, and how many are being decoded."""
        active = len(self._active)
        return Load(max(0, self._n_open - active), active)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the model thread, between two steps; keep it short."""
        assert self._loop is not None
        loop = self._loop
        future: asyncio.Future[T] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        def run() -> None:
            value, error = None, None
            try:
                value = function()
            except BaseException as caught:
                error = caught
            self._tell(settle, value, error)

        with self._changed:
            if self._stopping:
                raise _draining()
            self._calls.append(run)
            self._changed.notify()
        return await future

    def submit(self, engine: Engine, client: str, takes: list[Take], timeout_s: float) -> Generation:
        """Ask for samples; from the event loop.

        Raises:
            ApiError: 429: the queue is full.
        """
        generation = Generation(engine, client, takes, time.monotonic() + timeout_s, self)
        with self._changed:
            if self._stopping:
                raise _draining()
            self._take_places(len(takes))
            self._generations.add(generation)
            self._waiting.setdefault(client, deque()).extend((generation, take) for take in takes)
            self._changed.notify()
        return generation

    @property
    def n_places(self) -> int:
        """Samples that are written or wait at most."""
        return self.n_slots + self.max_waiting

    @contextmanager
    def places(self, n: int) -> Iterator[None]:
        """Hold places for work that comes before samples, so that it is bounded as they are.

        Raises:
            ApiError: 429: there are none.
        """
        with self._changed:
            self._take_places(n)
        try:
            yield
        finally:
            self._close(n)

    def _take_places(self, n: int) -> None:
        if self._n_open + n > self.n_places:
            message = f"{self._n_open} texts are being written or wait, and there is no room for {n} more; try later"
            raise ApiError(429, message, "queue_full", retry_after_s=self._retry_after_s())
        self._n_open += n

    def _retry_after_s(self) -> int:
        """When a place may be free, by what texts have taken of late."""
        return min(60, max(1, round(self._seconds_a_take * self.max_waiting / self.n_slots / 2)))

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        error = _draining()
        try:
            self._work()
        except Exception as bug:  # a thread that ends unseen would leave everybody waiting
            error = ApiError(500, f"the decoder failed: {type(bug).__name__}", "internal_error")
            with self._changed:
                self._stopping = True
            assert self._when_failed is not None
            self._tell(self._when_failed, bug)
        while self._calls:
            self._calls.popleft()()
        with self._changed:
            generations = list(self._generations)
        for generation in generations:
            self._tell(generation.receive, [], error)

    def _work(self) -> None:
        """Until it is told to stop."""
        while True:
            with self._changed:
                while not (self._calls or self._active or self._waiting or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
                call = self._calls.popleft() if self._calls else None
            if call is not None:
                call()
            self._drop_who_left()
            self._admit()
            for engine in {generation.engine for generation, _ in self._active.values()}:
                self._step(engine)

    def _drop_who_left(self) -> None:
        """Free the places of those that were cancelled, or whose time is up."""
        now = time.monotonic()
        gone = [pair for pair in self._active.values() if _is_over(*pair, now)]
        for generation, take in gone:
            assert take.sample is not None
            generation.engine.stop(take.sample)
            self._end(take.sample)
        with self._changed:
            for client, pairs in list(self._waiting.items()):
                over, left = list[tuple[Generation, Take]](), deque[tuple[Generation, Take]]()
                for pair in pairs:  # each is looked at once: it may be cancelled at any moment
                    (over if _is_over(*pair, now) else left).append(pair)
                gone += over
                self._n_open -= len(over)
                self._waiting[client] = left
                if not left:
                    del self._waiting[client]
        late = {generation for generation, _ in gone if now > generation.deadline}
        for generation, take in gone:
            if generation not in late:  # else it would look as if it had ended well
                self._tell(generation.receive, [Part(take.number, [], True)], None)
        for generation in late:
            self._tell(generation.receive, [], deadline_exceeded())

    def _admit(self) -> None:
        """Give free slots to those who wait: a client's turn comes again when each other one has had his."""
        while len(self._active) < self.n_slots:
            with self._changed:
                if not self._waiting:
                    return
                client, pairs = next(iter(self._waiting.items()))
                generation, take = pairs.popleft()
                if pairs:
                    self._waiting.move_to_end(client)
                else:
                    del self._waiting[client]
            try:
                sample = generation.engine.add(take.prompt, take.config, take.generator)
            except (GroundlingError, ValueError) as error:
                self._close(1)
                self._tell(generation.receive, [], ApiError(400, str(error), "invalid_value"))
                continue
            if sample.finished:
                self._close(1)
                self._tell(generation.receive, [Part(take.number, [], True)], None)
            else:
                take.sample = sample
                self._active[sample] = (generation, take)

    def _step(self, engine: Engine) -> None:
        start = time.monotonic()
        try:
            chosen = engine.step()
        except Exception as error:  # one model's failure is not that of the others
            self._fail(engine, error)
            return
        parts: dict[Generation, list[Part]] = {}
        for sample, tokens in chosen:
            generation, take = self._active[sample]
            parts.setdefault(generation, []).append(Part(take.number, tokens, sample.finished))
            if sample.finished:
                self._end(sample)
                spent = (time.monotonic() - start) * (len(sample.tokens) - sample.n_prompt)
                self._seconds_a_take += 0.1 * (spent - self._seconds_a_take)
        if parts:
            self._tell(_deliver, parts)

    def _fail(self, engine: Engine, error: Exception) -> None:
        said = str(error) if isinstance(error, GroundlingError) else f"the model failed: {type(error).__name__}"
        failed = ApiError(500, said, "model_failed")
        for sample, (generation, _) in list(self._active.items()):
            if generation.engine is engine:
                engine.stop(sample)
                self._end(sample)
                self._tell(generation.receive, [], failed)

    def _end(self, sample: Sample) -> None:
        del self._active[sample]
        self._close(1)

    def _close(self, n: int) -> None:
        with self._changed:
            self._n_open -= n


def deadline_exceeded() -> ApiError:
    """What is said when `timeout_s` has gone by."""
    return ApiError(503, "the time for this request is up", "deadline_exceeded", retry_after_s=1)


def _draining() -> ApiError:
    return ApiError(503, "the server is shutting down", "draining", retry_after_s=2)


def _joined(inbox: Sequence[Part]) -> list[Part]:
    """Of each sample one part."""
    joined: dict[int, Part] = {}
    for number, tokens, is_last in inbox:
        before = joined[number].tokens if number in joined else []
        joined[number] = Part(number, before + tokens, is_last)
    return list(joined.values())


def _is_over(generation: Generation, take: Take, now: float) -> bool:
    return take.cancelled or now > generation.deadline


def _deliver(parts: dict[Generation, list[Part]]) -> None:
    for generation, own in parts.items():
        generation.receive(own, None)
