"""One thread owns all models, and decodes for everybody, step by step.

Requests come from the event loop and wait in a bounded queue, in which clients take turns. Tokens are put where their
readers look for them at a pace of their own; only a reader that waits for its first, or its last ones, is woken.
Before each step the thread looks who is gone, and whose time is up.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import torch

from groundling.errors import GroundlingError
from groundling.sample.choose import SamplingConfig, Token
from groundling.sample.engine import Engine
from groundling.sample.sequences import Sample
from groundling.serve.errors import ApiError, deadline_exceeded

T = TypeVar("T")
STOP_S = 10.0
PACE_S = 0.05
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
    """All samples of one request, and the way back to who asked.

    The model thread puts parts, and the event loop takes them. Each looks again at what the other has written after it
    has written itself, so that nothing is slept through.
    """

    engine: Engine
    client: str
    takes: list[Take]
    deadline: float
    """By `time.monotonic`."""
    worker: "Worker"
    _inbox: deque[Part] = field(default_factory=deque)
    _wanted: bool = False
    """Whether the reader waits for whatever comes first."""
    _alarm: asyncio.Future[None] | None = None
    """What the reader sleeps on."""
    _error: ApiError | None = None
    _n_left: int = 0
    """Samples whose last part has not been put."""

    def __post_init__(self) -> None:
        self._n_left = len(self.takes)

    async def parts(self, pace_s: float = PACE_S) -> AsyncIterator[list[Part]]:
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
                if pace_s and self._n_left > 0:
                    await self._sleep(pace_s)  # all readers get up together, for each waking costs
        finally:
            self.cancel()

    async def _sleep(self, pace_s: float | None) -> None:
        """Until the clock strikes a multiple of the pace, or somebody rings."""
        loop = asyncio.get_running_loop()
        self._alarm = loop.create_future()
        timer = None if pace_s is None else loop.call_at((loop.time() // pace_s + 1) * pace_s, self.ring)
        try:
            await self._alarm
        finally:
            self._alarm = None
            if timer is not None:
                timer.cancel()

    def ring(self) -> None:
        """In the event loop: wake the reader."""
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    def cancel(self, number: int | None = None) -> None:
        """Stop one sample, or all: no token is decoded for them after the step under way."""
        for take in self.takes:
            if number is None or take.number == number:
                take.cancelled = True
        self.worker.wake()

    def put(self, parts: Sequence[Part]) -> bool:
        """In the model thread: hand over what a step gave; return whether the reader has to be woken."""
        self._inbox.extend(parts)
        self._n_left -= sum(part.is_last for part in parts)
        return self._wanted or self._n_left <= 0

    def fail(self, error: ApiError) -> None:
        """In the event loop: nothing comes any more, and why."""
        if self._n_left > 0 and self._error is None:
            self._error = error
        self.ring()


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
            self._tell(generation.fail, error)

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
                self._give({generation: [Part(take.number, [], True)]})
        for generation in late:
            self._tell(generation.fail, deadline_exceeded())

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
                self._tell(generation.fail, ApiError(400, str(error), "invalid_value"))
                continue
            if sample.finished:
                self._close(1)
                self._give({generation: [Part(take.number, [], True)]})
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
        self._give(parts)

    def _give(self, parts: dict[Generation, list[Part]]) -> None:
        """Hand over what has come, and wake those who wait for it."""
        awaited = [generation for generation, own in parts.items() if generation.put(own)]
        if awaited:
            self._tell(_ring, awaited)

    def _fail(self, engine: Engine, error: Exception) -> None:
        said = str(error) if isinstance(error, GroundlingError) else f"the model failed: {type(error).__name__}"
        failed = ApiError(500, said, "model_failed")
        for sample, (generation, _) in list(self._active.items()):
            if generation.engine is engine:
                engine.stop(sample)
                self._end(sample)
                self._tell(generation.fail, failed)

    def _end(self, sample: Sample) -> None:
        del self._active[sample]
        self._close(1)

    def _close(self, n: int) -> None:
        with self._changed:
            self._n_open -= n


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


def _ring(awaited: Sequence[Generation]) -> None:
    for generation in awaited:
        generation.ring()
