"""What is said before the first step, and that finding it out leaves no trace."""

import pytest
import torch

from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system import runtime
from groundling.system.runtime import RuntimeConfig
from groundling.train import estimate as estimates
from groundling.train.estimate import describe_seconds, estimate, memory_bytes, total_flops

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=11, dropout=0.3)


@pytest.fixture
def picked():
    return runtime.pick(RuntimeConfig(device="cpu", dtype="float32", compile="off", tune_allocator=False))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(CONFIG)


def test_it_is_arithmetic_and_one_measurement(model, picked):
    cost = estimate(model, picked, n_steps=10, batch_size=6, micro_batch_size=3, n_train_tokens=240)
    assert cost.n_parameters == sum(p.numel() for p in model.parameters())
    assert cost.n_tokens == 10 * 6 * 8
    assert cost.flops == model.flops_per_token() * cost.n_tokens == total_flops(model, 10, 6)
    assert 0 < cost.seconds < 60
    lines = cost.lines()
    assert [line.split()[0] for line in lines] == ["parameters", "tokens", "work", "time"]
    assert f"{cost.n_parameters:,}" in lines[0]
    assert "480 in all, 2.0 times the training text of 240" in lines[1]
    assert "GB of memory of " in lines[2]


def test_twice_the_steps_take_twice_as_long(model, picked, monkeypatch):
    monkeypatch.setattr(estimates, "_measure", lambda *_: 0.25)  # a measurement differs from the next
    short, long = (
        estimate(model, picked, n_steps=n, batch_size=4, micro_batch_size=4, n_train_tokens=99) for n in (1, 1000)
    )
    assert (short.seconds, long.seconds) == (0.25, 250)


def test_it_leaves_no_trace(model, picked):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    generator = torch.get_rng_state()
    estimate(model, picked, n_steps=1, batch_size=2, micro_batch_size=2, n_train_tokens=99)
    assert torch.equal(torch.get_rng_state(), generator), "dropout must not have drawn from training's generator"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert model.training


def test_memory_is_weights_and_saved_activations(model, picked):
    of_weights = 16 * model.n_parameters()
    one, two = (memory_bytes(model, picked, rows) - of_weights for rows in (1, 2))
    assert two == 2 * one > 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (2 * 3600, "2.0 h")]
)
def test_durations_in_words(seconds, words):
    assert describe_seconds(seconds) == words
