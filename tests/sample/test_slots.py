"""Memory for keys and values is shared out so that what was begun can be ended."""

import dataclasses

import pytest
import torch

from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import slots
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.generate import generate_batch
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all
from groundling.sample.slots import CacheMemory, NoMemoryError
from groundling.system.memory import Memory

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=4096, vocab_size=11, position="rotary")
POSITION = 2 * 8 * 4
"""Bytes of keys and values."""


@pytest.fixture(autouse=True)
def _asked_always(monkeypatch):
    monkeypatch.setattr(slots, "UNASKED_BYTES", 0)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return GPT(CONFIG).eval()


def memory_for(n_positions: int) -> CacheMemory:
    """A machine that has memory for so many positions, of which caches take."""
    memory = CacheMemory(lambda _: Memory(0, n_positions * POSITION - memory.held()))
    return memory


def config(n: int) -> SamplingConfig:
    return SamplingConfig(max_new_tokens=n, temperature=1.0)


def engine_of(model: GPT, memory: CacheMemory, n_slots: int = 4) -> Engine:
    return Engine(model, DecodeConfig(native="off"), n_slots, memory=memory)


@pytest.mark.slow
def test_a_request_that_may_need_more_than_is_left_waits_and_gets_the_same_tokens(model):
    memory = memory_for(1600)
    engine = engine_of(model, memory)
    requests = [
        engine.new_request([i], config(n), row_generator(config(n).seed, i)) for i, n in enumerate((700, 800, 300))
    ]
    steps: dict[int, list[int]] = {}
    for request, _ in run_all(engine, requests):
        steps.setdefault(engine.counts.steps, []).append(requests.index(request))
        assert memory.held() <= 1600 * POSITION
    seen = set(map(tuple, steps.values()))
    assert seen == {(0, 1), (1, 2), (2,)}, "the third one waits for what the others may still need"
    for i, request in enumerate(requests):
        expected = generate_batch(engine_of(model, CacheMemory()), [[i]], request.config, i)
        assert request.tokens[1:] == expected[0]


def test_what_can_never_fit_is_refused_before_it_begins(model):
    engine = engine_of(model, memory_for(1000))
    with pytest.raises(ConfigError, match=r"keys and values of 1,200 tokens need 0\.0 GB.*smaller --context"):
        engine.new_request([1], config(1200), row_generator(0, 0))
    assert not engine.is_busy
    assert engine.longest == 992, "in parts of 16"
    assert len(generate_batch(engine, [[1]], config(900))[0]) == 900


def test_a_window_that_moves_needs_no_more_than_one_window():
    small = GPT(dataclasses.replace(CONFIG, block_size=64)).eval()
    assert len(generate_batch(engine_of(small, memory_for(256)), [[1]], config(300))[0]) == 300


def test_memory_that_others_took_meanwhile_is_an_error_of_the_one_request(model):
    left = [2000]
    memory = CacheMemory(lambda _: Memory(0, left[0] * POSITION - memory.held()))
    engine = engine_of(model, memory, 1)
    first, second = (engine.new_request([i], config(1500 if i else 20), row_generator(0, i)) for i in range(2))
    left[0] = 1000
    assert engine.try_add(first)
    assert not engine.try_add(second), "no slot is free"
    while not first.finished:
        engine.step()
    with pytest.raises(NoMemoryError, match="1,500 tokens"):
        engine.try_add(second)
    assert not engine.is_busy
    assert len(generate_batch(engine, [[1]], config(20))[0]) == 20


@pytest.mark.slow
def test_what_ended_texts_left_goes_when_another_model_needs_it(model):
    memory = memory_for(2200)
    one, two = engine_of(model, memory), engine_of(model, memory)
    generate_batch(one, [[1]], config(1500))
    generate_batch(one, [[2]], config(10))
    assert memory.held() == (1504 + 16) * POSITION
    generate_batch(two, [[1]], config(1900))
    assert memory.held() <= 2200 * POSITION
    read = one.counts.read
    expected = generate_batch(engine_of(model, CacheMemory()), [[1]], config(10))
    assert generate_batch(one, [[1]], config(10)) == expected, "what was released is read again"
    assert one.counts.read - read == 10


def test_a_prompt_is_not_copied_where_there_is_no_memory_for_two(model):
    """It shares half of a long text that has ended; the copy and the original do not fit together."""
    memory = memory_for(3000)
    engine = engine_of(model, memory)
    text = torch.randint(11, (2000,), generator=torch.Generator().manual_seed(1)).tolist()
    generate_batch(engine, [text], config(1))
    prompt = [*text[:900], *text[:1000]]
    expected = generate_batch(engine_of(model, CacheMemory()), [prompt], config(5))
    assert generate_batch(engine, [prompt], config(5)) == expected
    assert memory.held() <= 3000 * POSITION


@pytest.mark.slow
def test_a_draft_s_memory_counts(model):
    draft = GPT(dataclasses.replace(CONFIG, n_layer=2)).eval()
    memory = CacheMemory(lambda _: Memory(0, 3 * 1000 * POSITION - memory.held()))
    engine = Engine(model, DecodeConfig(native="off", speculate=2), 2, draft=draft, memory=memory)
    with pytest.raises(NoMemoryError, match="1,100 tokens"):
        engine.new_request([1], config(1100), row_generator(0, 0))
    requests = [engine.new_request([i], config(600), row_generator(0, i)) for i in range(2)]
    order = []
    for request, _ in run_all(engine, requests):
        order.append(requests.index(request))
        assert memory.held() <= 3000 * POSITION
    assert order == sorted(order), "one after the other"
    assert all(request.finished for request in requests)
