"""The loss is a sum over the targets that count, in a precision that can hold it.

Shapes: B batch, T positions, V vocabulary.
"""

import math

import pytest
import torch

from groundling.model.loss import IGNORE, distillation_loss_sum, loss_sum, token_logprobs
from groundling.model.numerics import at_least_float32

B, T, V = 3, 5, 7


def sequence_log_probs(logits_BTV, targets_BT):
    return token_logprobs(logits_BTV, targets_BT).sum(-1)


@pytest.fixture
def logits_BTV():
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def targets_BT():
    targets_BT = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
    targets_BT[0, 2:] = IGNORE
    targets_BT[1, 0] = IGNORE
    return targets_BT


def by_hand(logits_BTV, targets_BT) -> list[float]:
    """Each row's nats, one target after the other, in Python's own numbers."""
    rows = []
    for logits_TV, targets_T in zip(logits_BTV.tolist(), targets_BT.tolist(), strict=True):
        pairs = [(logits, t) for logits, t in zip(logits_TV, targets_T, strict=True) if t != IGNORE]
        rows.append(sum(math.log(sum(map(math.exp, logits))) - logits[t] for logits, t in pairs))
    return rows


def test_it_is_the_sum_over_what_counts(logits_BTV, targets_BT):
    rows = by_hand(logits_BTV, targets_BT)
    assert loss_sum(logits_BTV, targets_BT).item() == pytest.approx(sum(rows), rel=1e-12)
    assert (-sequence_log_probs(logits_BTV, targets_BT)).tolist() == pytest.approx(rows, rel=1e-12)


def test_what_does_not_count_has_no_gradient(logits_BTV, targets_BT):
    for loss in (loss_sum, lambda *pair: -sequence_log_probs(*pair).sum()):
        logits = logits_BTV.clone().requires_grad_()
        loss(logits, targets_BT).backward()
        counted_BT = targets_BT != IGNORE
        assert not logits.grad[~counted_BT].any()
        assert (logits.grad[counted_BT] != 0).all()
        # Of each target's softmax: the sum over the vocabulary is 0.
        torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(B, T).double(), rtol=0, atol=1e-12)


def test_where_nothing_counts_it_is_0_and_not_nan(logits_BTV):
    nothing_BT = torch.full((B, T), IGNORE)
    logits = logits_BTV.requires_grad_()
    loss_sum(logits, nothing_BT).backward()
    assert loss_sum(logits, nothing_BT).item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert sequence_log_probs(logits, nothing_BT).tolist() == [0.0] * B


def test_the_sum_is_in_float32_or_better():
    """2,000 targets of ln 7 nats: bfloat16 would stop growing at a few hundred."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        uniform_BTV = torch.zeros(1, 2000, V, dtype=dtype)
        targets_BT = torch.zeros(1, 2000, dtype=torch.long)
        assert loss_sum(uniform_BTV, targets_BT).dtype == torch.float32
        assert loss_sum(uniform_BTV, targets_BT).item() == pytest.approx(2000 * math.log(V), rel=1e-4)
        assert sequence_log_probs(uniform_BTV, targets_BT).item() == pytest.approx(-2000 * math.log(V), rel=1e-4)
    assert at_least_float32(torch.zeros(1).double()).dtype == torch.float64


def test_a_teacher_who_expects_what_stands_there_changes_nothing():
    logits_BTV, targets_BT = torch.randn(2, 3, 5), torch.tensor([[1, 4, 0], [2, 2, IGNORE]])
    teacher_probs_BTV = torch.nn.functional.one_hot(targets_BT.clamp(min=0), 5).float()
    torch.testing.assert_close(
        distillation_loss_sum(logits_BTV, targets_BT, teacher_probs_BTV, 0.3), loss_sum(logits_BTV, targets_BT)
    )


def test_with_a_teacher_the_loss_is_the_cross_entropy_with_the_mixture():
    logits_BTV, targets_BT = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    teacher_probs_BTV = torch.rand(2, 3, 5).softmax(-1)
    mixture_BTV = 0.7 * torch.nn.functional.one_hot(targets_BT, 5) + 0.3 * teacher_probs_BTV
    expected = torch.nn.functional.cross_entropy(logits_BTV.mT, mixture_BTV.mT, reduction="sum")
    torch.testing.assert_close(distillation_loss_sum(logits_BTV, targets_BT, teacher_probs_BTV, 0.3), expected)
    torch.testing.assert_close(
        distillation_loss_sum(logits_BTV, targets_BT, teacher_probs_BTV, 0.0), loss_sum(logits_BTV, targets_BT)
    )
