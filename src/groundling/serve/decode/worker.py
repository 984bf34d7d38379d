"""One thread owns all models and decodes for all clients, step by step.

Requests come from the event loop and wait in a bounded queue in which clients take turns. Before each step the thread
drops requests that are cancelled or past their deadline. Tokens go back through stream.py.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from groundling.errors import GroundlingError
from groundling.sample.engine import Engine
from groundling.sample.request import Request
from groundling.sample.slots import NoMemoryError
from groundling.serve.decode.fair_queue import FairQueue, Waiting
from groundling.serve.decode.stream import SampleRequest, TokenBatch, TokenStream
from groundling.serve.http.errors import ApiError, deadline_exceeded, draining, no_memory
from groundling.system.output import UNBREAKABLE

T = TypeVar("T")
STOP_S = 10.0


class Load(NamedTuple):
    """Samples that wait for a slot, and samples that hold one."""

    waiting: int
    active: int


class Worker:
    """The decoding thread.

    Args:
        n_slots: samples decoded at once, over all models.
        max_waiting: samples that may wait for a slot.
    """

    def __init__(self, n_slots: int, max_waiting: int) -> None:
        self.n_slots, self.max_waiting = n_slots, max_waiting
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._queue = FairQueue()
        self._streams: WeakSet[TokenStream] = WeakSet()
        self._active: dict[Request, Waiting] = {}
        self._n_open = 0
        self._stopping = False
        self._seconds_per_sample = 1.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._when_failed: Callable[[Exception], None] | None = None
        self._thread = threading.Thread(target=self._run, name=f"{UNBREAKABLE}model", daemon=True)

    def start(self, when_failed: Callable[[Exception], None]) -> None:
        """Start the thread, in a running event loop; `when_failed` is called in the loop if the thread dies."""
        self._loop, self._when_failed = asyncio.get_running_loop(), when_failed
        self._thread.start()

    async def stop(self, wait_s: float = STOP_S) -> None:
        """Stop the thread after the current step or call; open streams end with an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, wait_s)

    def wake(self) -> None:
        """Make the thread check its streams again."""
        with self._changed:
            self._changed.notify()

    @property
    def load(self) -> Load:
        """How busy the thread is."""
        active = len(self._active)
        return Load(max(0, self._n_open - active), active)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a short function in the thread, between two steps."""
        assert self._loop is not None
        loop = self._loop
        future: asyncio.Future[T] = loop.create_future()

        def resolve(value: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        def run() -> None:
            try:
                self._call_in_loop(resolve, function(), None)
            except BaseException as error:
                self._call_in_loop(resolve, None, error)

        with self._changed:
            if self._stopping:
                raise draining()
            self._calls.append(run)
            self._changed.notify()
        return await future

    def submit(self, engine: Engine, client: str, samples: list[SampleRequest], timeout_s: float) -> TokenStream:
        """Queue samples; called in the event loop.

        Raises:
            ApiError: 429: the queue is full; 503: the thread stops.
        """
        stream = TokenStream(engine, client, samples, time.monotonic() + timeout_s, self.wake)
        with self._changed:
            if self._stopping:
                raise draining()
            self._open(len(samples))
            self._streams.add(stream)
            self._queue.extend(client, ((stream, sample) for sample in samples))
            self._changed.notify()
        return stream

    @property
    def n_places(self) -> int:
        """Samples that may wait or hold a slot."""
        return self.n_slots + self.max_waiting

    @contextmanager
    def places(self, n: int) -> Iterator[None]:
        """Reserve places in the queue while prompts are encoded, so that this work is bounded, too.

        Raises:
            ApiError: 429: the queue is full.
        """
        with self._changed:
            self._open(n)
        try:
            yield
        finally:
            self._close(n)

    def _open(self, n: int) -> None:
        if self._n_open + n > self.n_places:
            message = f"{self._n_open} texts are being decoded or waiting, and there is no room for {n} more; try later"
            wait_s = self._seconds_per_sample * self.max_waiting / self.n_slots / 2
            raise ApiError(429, message, "queue_full", retry_after_s=min(60, max(1, round(wait_s))))
        self._n_open += n

    def _close(self, n: int) -> None:
        with self._changed:
            self._n_open -= n

    def _call_in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        error = draining()
        try:
            self._work()
        except Exception as bug:  # a thread that dies silently would leave all clients waiting
            error = ApiError(500, f"the decoder failed: {type(bug).__name__}", "internal_error")
            with self._changed:
                self._stopping = True
            assert self._when_failed is not None
            self._call_in_loop(self._when_failed, bug)
        while self._calls:
            self._calls.popleft()()
        with self._changed:
            streams = list(self._streams)
        for stream in streams:
            self._call_in_loop(stream.fail, error)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._active or self._queue or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
                call = self._calls.popleft() if self._calls else None
            if call is not None:
                call()
            self._drop_cancelled()
            self._admit()
            for engine in {stream.engine for stream, _ in self._active.values()}:
                self._step(engine)

    def _drop_cancelled(self) -> None:
        """End samples that are cancelled or past their deadline."""
        now = time.monotonic()
        gone = [(stream, sample) for stream, sample in self._active.values() if stream.is_over(sample, now)]
        for stream, sample in gone:
            assert sample.request is not None
            stream.engine.stop(sample.request)
            self._end(sample.request)
        with self._changed:
            over = self._queue.pop_if(lambda stream, sample: stream.is_over(sample, now))
            self._n_open -= len(over)
        gone += over
        late = {stream for stream, _ in gone if now > stream.deadline}
        for stream, sample in gone:
            if stream not in late:  # a last batch would look like a regular end
                self._deliver({stream: [TokenBatch(sample.number, [], True)]})
        for stream in late:
            self._call_in_loop(stream.fail, deadline_exceeded())

    def _admit(self) -> None:
        """Give free slots to waiting samples.

        A sample that its engine cannot take now keeps its turn, and the samples behind it for the same engine wait.
        """
        blocked = set[Engine]()
        while len(self._active) < self.n_slots:
            with self._changed:
                waiting = self._queue.first(blocked)
            if waiting is None:
                return
            if self._try_add(*waiting):
                with self._changed:
                    self._queue.remove(waiting)
            else:
                blocked.add(waiting[0].engine)

    def _try_add(self, stream: TokenStream, sample: SampleRequest) -> bool:
        """Give a sample a slot; False if it has to wait. One that is refused, or has no tokens to generate, ends."""
        engine = stream.engine
        try:
            request = sample.request or engine.new_request(sample.prompt, sample.config, sample.generator)
        except (GroundlingError, ValueError) as error:
            known = no_memory(error) if isinstance(error, NoMemoryError) else None
            self._refuse(stream, known or ApiError(400, str(error), "invalid_value"))
            return True
        sample.request = request
        try:
            if not engine.try_add(request):
                return False
        except Exception as error:
            self._refuse(stream, no_memory(error) if isinstance(error, NoMemoryError) else self._fail(engine, error))
            return True
        if request.finished:
            self._close(1)
            self._deliver({stream: [TokenBatch(sample.number, [], True)]})
        else:
            self._active[request] = (stream, sample)
        return True

    def _step(self, engine: Engine) -> None:
        start = time.monotonic()
        try:
            outputs = engine.step()
        except Exception as error:  # the other models continue
            self._fail(engine, error)
            return
        batches: dict[TokenStream, list[TokenBatch]] = {}
        for request, tokens in outputs:
            stream, sample = self._active[request]
            batches.setdefault(stream, []).append(TokenBatch(sample.number, tokens, request.finished))
            if request.finished:
                self._end(request)
                spent = (time.monotonic() - start) * (len(request.tokens) - request.n_prompt)
                self._seconds_per_sample += 0.1 * (spent - self._seconds_per_sample)
        self._deliver(batches)

    def _deliver(self, batches: dict[TokenStream, list[TokenBatch]]) -> None:
        """Hand tokens over to their streams, and wake the readers that wait for them."""
        awaited = [stream for stream, own in batches.items() if stream.put(own)]
        if awaited:
            self._call_in_loop(_notify_all, awaited)

    def _fail(self, engine: Engine, error: Exception) -> ApiError:
        """End all active samples of a model with an error, and return it."""
        message = str(error) if isinstance(error, GroundlingError) else f"the model failed: {type(error).__name__}"
        failed = ApiError(500, message, "model_failed")
        for request, (stream, _) in list(self._active.items()):
            if stream.engine is engine:
                engine.stop(request)
                self._end(request)
                self._call_in_loop(stream.fail, failed)
        return failed

    def _refuse(self, stream: TokenStream, error: ApiError) -> None:
        self._close(1)
        self._call_in_loop(stream.fail, error)

    def _end(self, request: Request) -> None:
        del self._active[request]
        self._close(1)


def _notify_all(awaited: Sequence[TokenStream]) -> None:
    for stream in awaited:
        stream.notify()
