"""Between the thread that decodes and those who read: all tokens come, in order, and nobody sleeps through them."""

import asyncio
import functools
import random
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
import torch

from groundling.sample.sampler import SamplingConfig, Token
from groundling.serve.decode.stream import SampleRequest, TokenBatch, TokenStream
from groundling.serve.http.errors import ApiError

N_SAMPLES, N_TOKENS = 3, 40


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs in an event loop of its own."""

    @functools.wraps(test)
    def run(**values: Any) -> None:
        asyncio.run(test(**values))

    return run


class Thread:
    """Stands for the worker: what it is told to put, it puts from a thread of its own, and wakes whom it has to."""

    def __init__(self) -> None:
        self.n_rings, self.n_wakes = 0, 0
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        self.n_wakes += 1

    def stream(self) -> TokenStream:
        samples = [SampleRequest(number, [1], SamplingConfig(), torch.Generator()) for number in range(N_SAMPLES)]
        return TokenStream(None, "client", samples, time.monotonic() + 60, self.wake)  # type: ignore[arg-type]

    def write(self, stream: TokenStream, draw: random.Random, pause_s: float) -> None:
        for id in range(N_TOKENS):
            for number in range(N_SAMPLES):
                if stream.put([TokenBatch(number, [Token(id)], id == N_TOKENS - 1)]):
                    self.n_rings += 1
                    self._loop.call_soon_threadsafe(stream.notify)
            if draw.random() < 0.5:
                time.sleep(draw.random() * pause_s)


async def _read(stream: TokenStream, interval_s: float) -> tuple[dict[int, list[int]], int]:
    read: dict[int, list[int]] = {}
    n_times = 0
    async for batches in stream.batches(interval_s):
        n_times += 1
        assert len({batch.number for batch in batches}) == len(batches), "of each sample one part"
        for number, tokens, _ in batches:
            read.setdefault(number, []).extend(token.id for token in tokens)
    return read, n_times


@pytest.mark.slow
@pytest.mark.parametrize("interval_s", [0, 0.001, 0.02])
@pytest.mark.parametrize("pause_s", [0, 0.0005, 0.003])
@in_a_loop
async def test_every_token_arrives_under_any_interleaving(interval_s: float, pause_s: float) -> None:
    for seed in range(20):
        thread = Thread()
        stream = thread.stream()
        writer = threading.Thread(target=thread.write, args=(stream, random.Random(seed), pause_s))
        writer.start()
        async with asyncio.timeout(10):
            read, _ = await _read(stream, interval_s)
        writer.join()
        assert read == {number: list(range(N_TOKENS)) for number in range(N_SAMPLES)}


@in_a_loop
async def test_a_sleeping_reader_is_woken_for_the_last_token_only() -> None:
    """At an endless pace: the first tokens come at once, and the rest when all is there."""
    thread = Thread()
    stream = thread.stream()
    stream.put([TokenBatch(0, [Token(-1)], False)])
    reading = asyncio.create_task(_read(stream, 1e9))
    while stream._alarm is None:  # until the reader has the first token, and rests
        await asyncio.sleep(0)
    writer = threading.Thread(target=thread.write, args=(stream, random.Random(1), 0.01))
    writer.start()
    async with asyncio.timeout(60):
        read, n_times = await reading
    writer.join()
    assert read == {number: [*([-1] if number == 0 else []), *range(N_TOKENS)] for number in range(N_SAMPLES)}
    assert n_times == 2
    assert thread.n_rings == 1, "for the last"


@in_a_loop
async def test_tokens_before_an_error_are_read_first() -> None:
    thread = Thread()
    stream = thread.stream()
    stream.put([TokenBatch(0, [Token(5)], True)])
    stream.fail(ApiError(503, "the time is up", "deadline_exceeded"))
    batches = stream.batches()
    seen = await anext(batches)
    with pytest.raises(ApiError, match="the time is up"):
        await anext(batches)
    assert seen == [TokenBatch(0, [Token(5)], True)]
    assert all(sample.cancelled for sample in stream.samples)


@in_a_loop
async def test_an_error_wakes_a_sleeping_reader_unless_the_stream_is_complete() -> None:
    thread = Thread()
    stream = thread.stream()
    stream.put([TokenBatch(0, [Token(5)], False)])
    reading = asyncio.create_task(_read(stream, 600.0))
    await asyncio.sleep(0.02)
    stream.fail(ApiError(500, "the model failed", "model_failed"))
    async with asyncio.timeout(5):
        with pytest.raises(ApiError, match="the model failed"):
            await reading
    whole = thread.stream()
    whole.put([TokenBatch(number, [Token(1)], True) for number in range(N_SAMPLES)])
    whole.fail(ApiError(503, "the server is shutting down", "draining"))
    assert (await _read(whole, 0.0))[0] == {number: [1] for number in range(N_SAMPLES)}


@in_a_loop
async def test_an_early_exit_cancels_all_samples() -> None:
    thread = Thread()
    stream = thread.stream()
    stream.put([TokenBatch(0, [Token(5)], False)])
    async with aclosing(stream.batches()) as batches:
        await anext(batches)
    assert all(sample.cancelled for sample in stream.samples)
    assert thread.n_wakes >= 1
