"""The decoding thread without a server: turns of clients, load, refusals, failures, and its end."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch

from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import slots
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.generate import generate_batch
from groundling.sample.request import Request, row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.slots import CacheMemory
from groundling.serve.decode.fair_queue import FairQueue
from groundling.serve.decode.stream import SampleRequest, TokenStream
from groundling.serve.decode.worker import Load, Worker
from groundling.serve.http.errors import ApiError
from groundling.system.memory import Memory

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=64, vocab_size=11)
POSITION = 2 * 8 * 4
"""Bytes of keys and values."""


@pytest.fixture(scope="module")
def gpt() -> GPT:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return GPT(CONFIG).eval()


def engine_of(gpt: GPT, n_slots: int = 4, memory: CacheMemory | None = None) -> Engine:
    return Engine(gpt, DecodeConfig(native="off"), n_slots, memory=memory)


def sample(prompt: list[int], n: int = 3, number: int = 0) -> SampleRequest:
    config = SamplingConfig(max_new_tokens=n, temperature=1.0, seed=7)
    return SampleRequest(number, prompt, config, row_generator(config.seed, 0))


def alone(gpt: GPT, prompt: list[int], n: int = 3) -> list[int]:
    return generate_batch(engine_of(gpt), [prompt], sample(prompt, n).config)[0]


def submit(worker: Worker, engine: Engine, client: str, *samples: SampleRequest, timeout_s: float = 60) -> TokenStream:
    return worker.submit(engine, client, list(samples), timeout_s)


def watch_admissions(*engines: Engine) -> list[int]:
    """The first ids of the prompts that get a slot from now on, in order."""
    admitted: list[int] = []
    for engine in engines:

        def try_add(request: Request, before: Callable[[Request], bool] = engine.try_add) -> bool:
            if before(request):
                admitted.append(request.tokens[0])
                return True
            return False

        engine.try_add = try_add  # type: ignore[method-assign]
    return admitted


def watch_steps(worker: Worker, *engines: Engine) -> list[Load]:
    """The load at the beginning of each step from now on."""
    loads: list[Load] = []
    for engine in engines:

        def step(before: Callable[[], Any] = engine.step) -> Any:
            loads.append(worker.load)
            return before()

        engine.step = step  # type: ignore[method-assign]
    return loads


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


async def read(stream: TokenStream) -> list[int]:
    """All tokens of a stream with one sample."""
    return [token.id async for batches in stream.batches(0) for batch in batches for token in batch.tokens]


async def error_of(stream: TokenStream) -> tuple[int, str | None, str]:
    with pytest.raises(ApiError) as caught:
        await read(stream)
    return caught.value.status, caught.value.code, caught.value.message


def run(worker: Worker, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start the worker and act. What was submitted before is all there when it looks for the first time."""

    async def main() -> None:
        failures: list[Exception] = []
        worker.start(failures.append)
        try:
            async with asyncio.timeout(60):
                await act()
        finally:
            await worker.stop()
        assert not worker._thread.is_alive()
        assert failures == []

    asyncio.run(main())


# Turns and slots


@pytest.mark.parametrize("n_slots", [1, 2])
def test_clients_take_turns_and_each_keeps_its_order(gpt, n_slots):
    worker, engine = Worker(n_slots, 10), engine_of(gpt)
    admitted = watch_admissions(engine)
    streams = [
        submit(worker, engine, "greedy", *(sample([i], 2, i) for i in range(4))),
        submit(worker, engine, "other", sample([5], 2), sample([6], 2, 1)),
        submit(worker, engine, "third", sample([8], 2)),
    ]

    async def act() -> None:
        for stream in streams:
            await read(stream)
        assert admitted == [0, 5, 8, 1, 6, 2, 3]
        assert worker.load == (0, 0)

    run(worker, act)


def test_a_later_client_does_not_wait_for_all_samples_of_another(gpt):
    worker, engine = Worker(1, 10), engine_of(gpt)
    admitted, step = watch_admissions(engine), engine.step
    streams = [submit(worker, engine, "greedy", *(sample([i], 2, i) for i in range(3)))]

    def submit_in_the_first_step() -> Any:
        if engine.counts.steps == 0:
            streams.append(submit(worker, engine, "late", sample([9], 2)))
        return step()

    engine.step = submit_in_the_first_step  # type: ignore[method-assign]

    async def act() -> None:
        for stream in streams:
            await read(stream)
        assert admitted == [0, 1, 9, 2]

    run(worker, act)


def test_tokens_do_not_depend_on_the_other_clients(gpt):
    worker, engines = Worker(3, 10), [engine_of(gpt), engine_of(gpt)]
    prompts = [[1], [1, 2, 3], [4, 5], [6], [7, 8, 9]]
    streams = [submit(worker, engines[i % 2], f"{i}", sample(prompt, 5 + i)) for i, prompt in enumerate(prompts)]

    async def act() -> None:
        found = await asyncio.gather(*map(read, streams))
        assert found == [alone(gpt, prompt, 5 + i) for i, prompt in enumerate(prompts)]

    run(worker, act)


def test_slots_are_counted_over_all_models(gpt):
    worker, engines = Worker(2, 10), [engine_of(gpt), engine_of(gpt)]
    loads = watch_steps(worker, *engines)
    streams = [submit(worker, engines[i % 2], f"{i}", sample([i], 3)) for i in range(5)]

    async def act() -> None:
        await asyncio.gather(*map(read, streams))
        assert max(load.active for load in loads) == 2
        assert loads[0] == (3, 2)

    run(worker, act)


def test_a_sample_that_waits_for_a_prefix_is_not_being_decoded(gpt):
    """It has no slot: it counts as waiting until the other one has read what both begin with."""
    worker, engine = Worker(2, 10), engine_of(gpt)
    shared = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    loads = watch_steps(worker, engine)
    streams = [submit(worker, engine, client, sample([*shared, i], 3)) for i, client in enumerate("ab")]

    async def act() -> None:
        found = await asyncio.gather(*map(read, streams))
        assert loads == [(1, 1), (0, 2), (0, 2), (0, 1)]
        assert engine.counts.reused == len(shared)
        assert found == [alone(gpt, [*shared, i]) for i in range(2)]

    run(worker, act)


def test_a_full_model_does_not_block_another(gpt):
    """Its samples wait in their order, also behind the one that was refused, and keep their turns."""
    worker, full, free = Worker(4, 10), engine_of(gpt), engine_of(gpt)
    admitted, try_add = watch_admissions(full, free), full.try_add
    full.try_add = lambda _: free.counts.steps >= 6 and try_add(_)  # type: ignore[method-assign]
    streams = [
        submit(worker, full, "one", sample([0], 2)),
        submit(worker, free, "one", sample([1], 9)),
        submit(worker, full, "two", sample([2], 2)),
        submit(worker, full, "one", sample([3], 2)),
        submit(worker, free, "two", sample([4], 2)),
    ]
    loads = watch_steps(worker, free)

    async def act() -> None:
        await asyncio.gather(*map(read, streams))
        assert admitted == [1, 4, 0, 2, 3]
        assert loads[0] == (3, 2)

    run(worker, act)


def test_a_cancelled_sample_is_dropped_and_the_others_of_its_stream_end(gpt):
    worker, engine = Worker(1, 10), engine_of(gpt)
    admitted = watch_admissions(engine)
    stream = submit(worker, engine, "one", *(sample([i], 4, i) for i in range(3)))
    stream.cancel(1)

    async def act() -> None:
        await read(stream)
        assert admitted == [0, 2]
        assert worker.load == (0, 0)

    run(worker, act)


def test_a_sample_without_tokens_ends_at_once(gpt):
    worker, engine = Worker(1, 10), engine_of(gpt)
    stream = submit(worker, engine, "one", sample([1], 0))

    async def act() -> None:
        assert [batch async for batches in stream.batches(0) for batch in batches] == [(0, [], True)]
        assert worker.load == (0, 0)

    run(worker, act)


# What is refused


def test_a_full_queue_refuses_and_says_when_to_try_again(gpt):
    worker, engine = Worker(1, 2), engine_of(gpt)
    submit(worker, engine, "one", sample([1]), sample([2], number=1))
    with pytest.raises(ApiError, match=r"2 texts are being decoded or waiting, .* no room for 2 more") as caught:
        submit(worker, engine, "two", sample([3]), sample([4], number=1))
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60
    assert worker.load == (2, 0)
    with worker.places(1), pytest.raises(ApiError, match="no room for 1 more"):
        submit(worker, engine, "two", sample([3]))
    submit(worker, engine, "two", sample([3]))
    assert worker.load == (3, 0)


def test_an_expired_request_ends_with_an_error(gpt):
    worker, engine = Worker(1, 10), engine_of(gpt)
    late = submit(worker, engine, "late", sample([1]), timeout_s=-1)
    good = submit(worker, engine, "good", sample([2]))

    async def act() -> None:
        assert (await error_of(late))[:2] == (503, "deadline_exceeded")
        assert await read(good) == alone(gpt, [2])
        assert worker.load == (0, 0)

    run(worker, act)


def test_a_request_that_can_never_fit_is_refused_alone(gpt, monkeypatch):
    monkeypatch.setattr(slots, "UNASKED_BYTES", 0)
    memory = CacheMemory(lambda _: Memory(0, 32 * POSITION - memory.held()))
    worker, engine = Worker(2, 10), engine_of(gpt, memory=memory)
    never = submit(worker, engine, "one", sample([1], 60))
    good = submit(worker, engine, "one", sample([2], 20))
    unknown = submit(worker, engine, "one", sample([400]))

    async def act() -> None:
        status, code, message = await error_of(never)
        assert (status, code) == (400, "insufficient_memory")
        assert "keys and values of 60 tokens" in message
        assert await read(good) == alone(gpt, [2], 20)
        assert (await error_of(unknown))[:2] == (400, "invalid_value")
        assert worker.load == (0, 0)

    run(worker, act)


def test_a_request_that_fits_no_longer_is_refused_when_its_turn_comes(gpt, monkeypatch):
    """Other programs take memory while it waits for the one that is running."""
    monkeypatch.setattr(slots, "UNASKED_BYTES", 0)
    left = [50]
    memory = CacheMemory(lambda _: Memory(0, left[0] * POSITION - memory.held()))
    worker, engine = Worker(2, 10), engine_of(gpt, memory=memory)
    running, waiting, after = (submit(worker, engine, "one", sample([i], n)) for i, n in enumerate((30, 40, 10)))
    loads, step = watch_steps(worker, engine), engine.step

    def take_memory() -> Any:
        left[0] = 32
        return step()

    engine.step = take_memory  # type: ignore[method-assign]

    async def act() -> None:
        assert await read(running) == alone(gpt, [0], 30)
        assert (await error_of(waiting))[:2] == (400, "insufficient_memory")
        assert await read(after) == alone(gpt, [2], 10)
        assert loads[:30] == [(2, 1)] * 30, "the short one does not overtake the one that waits"
        assert worker.load == (0, 0)

    run(worker, act)


# Failures


async def only_these_fail(worker: Worker, gpt, bad: Engine, broken: list[TokenStream], fine: TokenStream) -> None:
    for stream in broken:
        assert await error_of(stream) == (500, "model_failed", "the model failed: RuntimeError")
    assert await read(fine) == alone(gpt, [1], 9)
    assert worker.load == (0, 0)
    assert not bad.is_busy


def test_a_model_that_fails_ends_its_own_requests_and_no_other_s(gpt):
    worker, bad, good = Worker(4, 10), engine_of(gpt), engine_of(gpt)
    works, bad.step = bad.step, failing(RuntimeError("secret inside"))  # type: ignore[method-assign]
    broken = [submit(worker, bad, "one", sample([i], 9)) for i in range(2)]
    fine = submit(worker, good, "two", sample([1], 9))

    async def act() -> None:
        await only_these_fail(worker, gpt, bad, broken, fine)
        bad.step = works  # type: ignore[method-assign]
        assert await read(submit(worker, bad, "one", sample([1], 9))) == alone(gpt, [1], 9)

    run(worker, act)


def test_a_model_that_fails_to_take_a_request_ends_that_and_its_running_ones(gpt):
    worker, bad, good = Worker(4, 10), engine_of(gpt), engine_of(gpt)
    try_add = bad.try_add

    def fail_the_second(request: Request) -> bool:
        if request.tokens == [2]:
            raise RuntimeError("secret inside")
        return try_add(request)

    bad.try_add = fail_the_second  # type: ignore[method-assign]
    broken = [submit(worker, bad, "one", sample([i], 9)) for i in (1, 2)]
    fine = submit(worker, good, "two", sample([1], 9))

    async def act() -> None:
        await only_these_fail(worker, gpt, bad, broken, fine)

    run(worker, act)


def test_a_dead_thread_fails_all_waiting_requests(gpt):
    worker, engine = Worker(1, 10), engine_of(gpt)
    error = RuntimeError("secret inside")
    engine.new_request = failing(error)  # type: ignore[method-assign]
    streams = [submit(worker, engine, "one", sample([i])) for i in range(2)]

    async def main() -> None:
        failures: list[Exception] = []
        worker.start(failures.append)
        for stream in streams:
            assert await error_of(stream) == (500, "internal_error", "the decoder failed: RuntimeError")
        with pytest.raises(ApiError, match="shutting down"):
            submit(worker, engine, "one", sample([1]))
        assert failures == [error]
        await worker.stop()

    asyncio.run(main())


# Calls, and the end


def test_a_call_runs_in_the_thread_and_passes_its_error_on(gpt):
    worker, engine = Worker(1, 10), engine_of(gpt)
    stream = submit(worker, engine, "one", sample([1], 50))

    async def act() -> None:
        name = await worker.call(lambda: worker._thread.is_alive() and engine.counts.steps)
        assert isinstance(name, int)
        with pytest.raises(KeyError, match="unknown"):
            await worker.call(failing(KeyError("unknown")))
        assert await read(stream) == alone(gpt, [1], 50)

    run(worker, act)


def test_stopping_ends_running_and_waiting_requests_and_refuses_new_ones(gpt):
    worker, engine = Worker(1, 10), engine_of(gpt)
    streams = [submit(worker, engine, "one", sample([i], 100_000)) for i in range(2)]

    async def main() -> None:
        worker.start(lambda _: None)
        readers = [asyncio.ensure_future(error_of(stream)) for stream in streams]
        await worker.call(lambda: None)  # the first one is running by now
        await worker.stop()
        assert [await reader for reader in readers] == [(503, "draining", "the server is shutting down")] * 2
        with pytest.raises(ApiError, match="shutting down"):
            submit(worker, engine, "one", sample([1]))
        with pytest.raises(ApiError, match="shutting down"):
            await worker.call(lambda: None)

    asyncio.run(main())


def test_a_call_that_was_queued_is_still_made_when_the_thread_stops(gpt):
    worker = Worker(1, 10)

    async def main() -> None:
        worker.start(lambda _: None)
        calls = [asyncio.ensure_future(worker.call(lambda n=n: n)) for n in range(5)]  # type: ignore[misc]
        await asyncio.sleep(0)  # all are queued
        await worker.stop()
        assert await asyncio.gather(*calls) == list(range(5))

    asyncio.run(main())


# The queue


def stream_of(engine: object, client: str) -> TokenStream:
    return TokenStream(engine, client, [], 0.0, lambda: None)  # type: ignore[arg-type]


def test_the_queue_gives_turns_and_skips_blocked_engines():
    queue, one, two = FairQueue(), "engine one", "engine two"
    a, b = stream_of(one, "a"), stream_of(two, "b")
    a_other = stream_of(two, "a")
    samples = {name: sample([1]) for name in ("a1", "a2", "a3", "b1", "b2")}
    queue.extend("a", [(a, samples["a1"]), (a, samples["a2"]), (a_other, samples["a3"])])
    queue.extend("b", [(b, samples["b1"]), (b, samples["b2"])])

    def name_of(blocked: set[str]) -> str | None:
        waiting = queue.first(blocked)  # type: ignore[arg-type]
        return waiting and next(name for name, known in samples.items() if known is waiting[1])

    assert name_of(set()) == name_of(set()) == "a1", "looking takes no turn"
    assert name_of({one}) == "a3", "a client's own, but for the blocked model's"
    assert name_of({one, two}) is None
    queue.remove((a, samples["a1"]))
    assert name_of(set()) == "b1"
    queue.remove((b, samples["b1"]))
    assert name_of(set()) == "a2"
    assert [gone for _, gone in queue.pop_if(lambda _, each: each is samples["a2"])] == [samples["a2"]]
    assert name_of(set()) == "a3", "it is still this client's turn"
    queue.remove((a_other, samples["a3"]))
    queue.remove((b, samples["b2"]))
    assert not queue
    with contextlib.suppress(KeyError):
        queue.remove((b, samples["b2"]))
        pytest.fail("it was not there")
