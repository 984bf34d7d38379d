"""The losses that are reported: means over every target, whatever the batches, and no trace left behind."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groundling.data.batches import Batch, RandomOffsets, whole_split
from groundling.evals.loss import (
    MAX_TRAIN_WINDOWS,
    TOKENS_AT_ONCE,
    Interrupted,
    mean_loss,
    random_batches_loss,
    train_loss_estimate,
    whole_split_loss,
)
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.loss import IGNORE

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=6, vocab_size=7, dropout=0.5)
TOKENS = (np.arange(100) ** 2 % 7).astype(np.uint16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(CONFIG).double().train()


class Uniform(nn.Module):
    """Knows nothing: all tokens are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(7))

    def forward(self, idx_BT):
        return self.bias.expand(*idx_BT.shape, 7)


def test_uniform_logits_have_loss_ln_v():
    assert whole_split_loss(Uniform(), TOKENS, 6) == pytest.approx(math.log(7), rel=1e-6)
    assert random_batches_loss(Uniform(), TOKENS, 6, n_batches=3) == pytest.approx(math.log(7), rel=1e-6)


def test_it_is_the_mean_over_all_targets_in_consecutive_windows(model):
    """The last window is shorter; a mean of the windows' means would be another number."""
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for start in range(0, 99, 6):
            piece = torch.from_numpy(TOKENS[start : start + 7].astype(np.int64))
            nats += F.cross_entropy(model(piece[None, :-1])[0], piece[1:], reduction="sum").item()
    assert whole_split_loss(model, TOKENS, 6) == pytest.approx(nats / 99, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing(model, batch_size):
    expected = whole_split_loss(model, TOKENS, 6)
    assert mean_loss(model, whole_split(TOKENS, 6, batch_size)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(model, training):
    model.train(training)
    generator = torch.get_rng_state()
    first = whole_split_loss(model, TOKENS, 6), random_batches_loss(model, TOKENS, 6, n_batches=2)
    assert first == (whole_split_loss(model, TOKENS, 6), random_batches_loss(model, TOKENS, 6, n_batches=2))
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off(model):
    without = GPT(GPTConfig(**{**CONFIG.__dict__, "dropout": 0.0})).double()
    without.load_state_dict(model.state_dict())
    assert whole_split_loss(model, TOKENS, 6) == whole_split_loss(without, TOKENS, 6)


def test_random_batches_are_those_of_their_seed(model):
    one, again, other = (random_batches_loss(model, TOKENS, 6, n_batches=2, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_the_training_loss_is_the_mean_over_its_own_random_windows(model):
    generator = torch.get_rng_state()
    loss = train_loss_estimate(model, TOKENS, 6, n_windows=10)
    assert loss == train_loss_estimate(model, TOKENS, 6, n_windows=10)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    draws = np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 5, 0])).integers(0, 94, 1024)[:10]
    pieces = torch.from_numpy(np.stack([TOKENS[start : start + 7] for start in draws]).astype(np.int64))
    model.eval()
    with torch.no_grad():
        expected = F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-12)


def test_the_training_loss_is_not_estimated_on_the_windows_that_a_run_draws():
    own, drawn = RandomOffsets(10_000, 8, 0, purpose=5), RandomOffsets(10_000, 8, 0)
    assert [own(n) for n in range(5)] != [drawn(n) for n in range(5)]


def test_the_training_loss_uses_a_limited_number_of_windows():
    shapes = []

    class Counting(Uniform):
        def forward(self, idx_BT):
            shapes.append(idx_BT.shape)
            return super().forward(idx_BT)

    train_loss_estimate(Counting(), TOKENS, 90, n_windows=10_000)
    assert sum(n for n, _ in shapes) == MAX_TRAIN_WINDOWS
    assert max(n * length for n, length in shapes) <= TOKENS_AT_ONCE


def test_it_uses_the_requested_precision(model):
    seen = []
    model.float().register_forward_hook(lambda *parts: seen.append(parts[-1].dtype))
    loss = whole_split_loss(model, TOKENS, 6, lambda: torch.autocast("cpu", torch.bfloat16))
    assert set(seen) == {torch.bfloat16}
    assert loss == pytest.approx(whole_split_loss(model, TOKENS, 6), rel=1e-2)


def test_an_interrupted_evaluation_restores_the_model(model):
    n_asked = 0

    def at_the_second_batch() -> bool:
        nonlocal n_asked
        n_asked += 1
        return n_asked == 2

    with pytest.raises(Interrupted):
        mean_loss(model, whole_split(TOKENS, 6, 2), asked_to_stop=at_the_second_batch)
    assert n_asked == 2
    assert model.training


def test_an_error_restores_the_model(model):
    too_long = torch.zeros(1, 7, dtype=torch.long)
    with pytest.raises(ValueError, match="positions"):
        mean_loss(model, [Batch(too_long, too_long, 7)])
    assert model.training


def test_without_targets_the_loss_is_0(model):
    idx_BT = torch.zeros(1, 6, dtype=torch.long)
    assert mean_loss(model, [Batch(idx_BT, torch.full_like(idx_BT, IGNORE), 0)]) == 0.0
