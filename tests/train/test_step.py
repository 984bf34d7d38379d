"""One update: what it reports, how it is clipped, and that nothing that is not finite ever reaches a weight."""

import math

import pytest
import torch
from torch import Tensor, nn

from groundling.data.batches import Batch
from groundling.errors import TrainingError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.loss import loss_sum
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.step import Objective, train_step

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=6, vocab_size=7)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).double()


def batch(seed: int = 1, rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    idx_BT, targets_BT = torch.randint(CONFIG.vocab_size, (2, rows, 6), generator=generator).unbind()
    return Batch(idx_BT, targets_BT, rows * 6)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_it_reports_nats_per_target_and_the_gradient_norm(model):
    whole = batch()
    mean = loss_sum(model(whole.idx_BT), whole.targets_BT) / 24
    mean.backward()
    length = gradient(model).norm().item()
    stats = train_step(Objective(model), [whole], Optimizers(model, OptimConfig()), lr_factor=0.25)
    assert stats.loss == pytest.approx(mean.item(), rel=1e-12)
    assert stats.grad_norm == pytest.approx(length, rel=1e-12)
    assert (stats.n_targets, stats.lr_factor) == (24, 0.25)


@pytest.mark.parametrize("part", [0.25, 4.0])
def test_a_gradient_is_clipped_to_the_maximum_norm_and_never_scaled_up(model, part):
    optimizers = Optimizers(model, OptimConfig())
    free = train_step(Objective(model), [batch()], optimizers, lr_factor=0.0)
    as_it_came = gradient(model)
    stats = train_step(Objective(model), [batch()], optimizers, lr_factor=0.0, max_norm=part * free.grad_norm)
    assert stats.grad_norm == pytest.approx(free.grad_norm, rel=1e-12), "the length before it was clipped is reported"
    torch.testing.assert_close(gradient(model), as_it_came * min(1.0, part), rtol=1e-5, atol=0)


def test_the_last_steps_gradient_is_forgotten(model):
    optimizers = Optimizers(model, OptimConfig())
    first = train_step(Objective(model), [batch()], optimizers, lr_factor=0.0)
    again = train_step(Objective(model), [batch()], optimizers, lr_factor=0.0)
    assert first == again


def infinite_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return loss_sum(logits_BTV, targets_BT) + math.inf


def infinite_gradient(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The root of 0 is 0, and its slope is infinite."""
    return loss_sum(logits_BTV, targets_BT) + (logits_BTV[0, 0, 0] * 0).sqrt()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("loss", [infinite_loss, infinite_gradient])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_non_finite_step_changes_no_weight_and_no_optimizer_state(model, loss, max_norm, kind):
    optimizers = Optimizers(model, OptimConfig(kind=kind), torch.float64)
    train_step(Objective(model), [batch()], optimizers)
    before = weights(model)
    memory = {key: value.clone() for key, value in optimizers.state_tensors().items()}
    with pytest.raises(TrainingError, match="no weight was changed"):
        train_step(Objective(model, loss), [batch(2), batch(3)], optimizers, max_norm=max_norm)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    assert all(torch.equal(value, memory[key]) for key, value in optimizers.state_tensors().items())
    stats = train_step(Objective(model), [batch(2)], optimizers, max_norm=max_norm)
    assert math.isfinite(stats.loss), "training can go on from there"
    assert not torch.equal(weights(model)[0], before[0])


def test_the_forward_pass_uses_autocast_and_the_loss_does_not(model):
    model = model.float()
    seen = []

    def watch(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        seen.append((logits_BTV.dtype, torch.is_autocast_enabled("cpu")))
        return loss_sum(logits_BTV, targets_BT)

    objective = Objective(model, watch, lambda: torch.autocast("cpu", torch.bfloat16))
    total = objective(batch())
    assert seen == [(torch.bfloat16, False)]
    assert total.dtype == torch.float32
