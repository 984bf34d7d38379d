"""One thread owns all models, and decodes for everybody, step by step.

Requests come from the event loop and wait in a bounded queue, in which clients take turns. Before each step the thread
drops requests whose client has left or whose time is up. stream.py describes how tokens get back.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from groundling.errors import GroundlingError
from groundling.sample.engine import Engine
from groundling.sample.request import Request
from groundling.sample.slots import NoMemoryError
from groundling.serve.decode.stream import SampleRequest, TokenBatch, TokenStream
from groundling.serve.http.errors import ApiError, deadline_exceeded, no_memory
from groundling.system.output import UNBREAKABLE

T = TypeVar("T")
STOP_S = 10.0


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
        self._waiting: OrderedDict[str, deque[tuple[TokenStream, SampleRequest]]] = OrderedDict()
        self._generations: WeakSet[TokenStream] = WeakSet()
        self._active: dict[Request, tuple[TokenStream, SampleRequest]] = {}
        self._n_open = 0
        self._stopping = False
        self._seconds_a_take = 1.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._when_failed: Callable[[Exception], None] | None = None
        self._thread = threading.Thread(target=self._run, name=f"{UNBREAKABLE}model", daemon=True)

    def start(self, when_failed: Callable[[Exception], None]) -> None:
        """Begin, in a running event loop, which is told if the thread itself fails: nothing is decoded then."""
        self._loop, self._when_failed = asyncio.get_running_loop(), when_failed
        self._thread.start()

    async def stop(self, wait_s: float = STOP_S) -> None:
        """End the thread; what is under way ends with an error, but a call has to come to its end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, wait_s)

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

    def submit(self, engine: Engine, client: str, samples: list[SampleRequest], timeout_s: float) -> TokenStream:
        """Ask for samples; from the event loop.

        Raises:
            ApiError: 429: the queue is full.
        """
        stream = TokenStream(engine, client, samples, time.monotonic() + timeout_s, self.wake)
        with self._changed:
            if self._stopping:
                raise _draining()
            self._take_places(len(samples))
            self._generations.add(stream)
            self._waiting.setdefault(client, deque()).extend((stream, sample) for sample in samples)
            self._changed.notify()
        return stream

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
        for stream in generations:
            self._tell(stream.fail, error)

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
            for engine in {stream.engine for stream, _ in self._active.values()}:
                self._step(engine)

    def _drop_who_left(self) -> None:
        """Free the places of those that were cancelled, or whose time is up."""
        now = time.monotonic()
        gone = [pair for pair in self._active.values() if _is_over(*pair, now)]
        for stream, sample in gone:
            assert sample.request is not None
            stream.engine.stop(sample.request)
            self._end(sample.request)
        with self._changed:
            for client, pairs in list(self._waiting.items()):
                over, left = list[tuple[TokenStream, SampleRequest]](), deque[tuple[TokenStream, SampleRequest]]()
                for pair in pairs:  # each is looked at once: it may be cancelled at any moment
                    (over if _is_over(*pair, now) else left).append(pair)
                gone += over
                self._n_open -= len(over)
                self._waiting[client] = left
                if not left:
                    del self._waiting[client]
        late = {stream for stream, _ in gone if now > stream.deadline}
        for stream, sample in gone:
            if stream not in late:  # else it would look as if it had ended well
                self._give({stream: [TokenBatch(sample.number, [], True)]})
        for stream in late:
            self._tell(stream.fail, deadline_exceeded())

    def _admit(self) -> None:
        """Give free slots to those who wait: a client's turn comes again when each other one has had his."""
        while len(self._active) < self.n_slots:
            with self._changed:
                if not self._waiting:
                    return
                client, pairs = next(iter(self._waiting.items()))
                stream, sample = pairs.popleft()
                if pairs:
                    self._waiting.move_to_end(client)
                else:
                    del self._waiting[client]
            try:
                request = stream.engine.add(sample.prompt, sample.config, sample.generator)
            except (GroundlingError, ValueError) as error:
                self._close(1)
                known = no_memory(error) if isinstance(error, NoMemoryError) else None
                self._tell(stream.fail, known or ApiError(400, str(error), "invalid_value"))
                continue
            if request.finished:
                self._close(1)
                self._give({stream: [TokenBatch(sample.number, [], True)]})
            else:
                sample.request = request
                self._active[request] = (stream, sample)

    def _step(self, engine: Engine) -> None:
        start = time.monotonic()
        try:
            chosen = engine.step()
        except NoMemoryError as error:
            self._refuse(engine, error)
            return
        except Exception as error:  # one model's failure is not that of the others
            self._fail(engine, error)
            return
        batches: dict[TokenStream, list[TokenBatch]] = {}
        for request, tokens in chosen:
            stream, sample = self._active[request]
            batches.setdefault(stream, []).append(TokenBatch(sample.number, tokens, request.finished))
            if request.finished:
                self._end(request)
                spent = (time.monotonic() - start) * (len(request.tokens) - request.n_prompt)
                self._seconds_a_take += 0.1 * (spent - self._seconds_a_take)
        self._give(batches)

    def _give(self, batches: dict[TokenStream, list[TokenBatch]]) -> None:
        """Hand over what has come, and wake those who wait for it."""
        awaited = [stream for stream, own in batches.items() if stream.put(own)]
        if awaited:
            self._tell(_notify_all, awaited)

    def _refuse(self, engine: Engine, error: NoMemoryError) -> None:
        """One sample can never have the memory that it needs; the others go on."""
        assert error.request is not None
        stream, _ = self._active[error.request]
        engine.stop(error.request)
        self._end(error.request)
        self._tell(stream.fail, no_memory(error))

    def _fail(self, engine: Engine, error: Exception) -> None:
        said = str(error) if isinstance(error, GroundlingError) else f"the model failed: {type(error).__name__}"
        failed = ApiError(500, said, "model_failed")
        for request, (stream, _) in list(self._active.items()):
            if stream.engine is engine:
                engine.stop(request)
                self._end(request)
                self._tell(stream.fail, failed)

    def _end(self, request: Request) -> None:
        del self._active[request]
        self._close(1)

    def _close(self, n: int) -> None:
        with self._changed:
            self._n_open -= n


def _draining() -> ApiError:
    return ApiError(503, "the server is shutting down", "draining", retry_after_s=2)


def _is_over(stream: TokenStream, sample: SampleRequest, now: float) -> bool:
    return sample.cancelled or now > stream.deadline


def _notify_all(awaited: Sequence[TokenStream]) -> None:
    for stream in awaited:
        stream.notify()
