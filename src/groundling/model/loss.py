"""What a model is trained on is a function of its logits, and nothing else.

Shapes: B batch, T positions, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from groundling.model.numerics import at_least_float32

IGNORE = -100
"""A target of this value is not counted."""


def loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The cross-entropy in nats, summed over all targets that are not IGNORE.

    Summed and not averaged: the caller divides by the number of targets of the whole step, so that how a batch
    is cut never changes the result.
    """
    logits_NV = at_least_float32(logits_BTV).flatten(0, -2)
    return F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")


def distillation_loss_sum(logits_BTV: Tensor, targets_BT: Tensor, hints_BTV: Tensor, weight: float) -> Tensor:
    """The same, where a part `weight` of each target is a teacher's distribution instead (arXiv:1503.02531).

    In nats, summed: the cross-entropy with the mixture (1 - weight) target + weight hints.
    """
    log_probs_BTV = at_least_float32(logits_BTV).log_softmax(-1)
    counted_BT1 = (targets_BT != IGNORE).unsqueeze(-1)
    told = -(log_probs_BTV[..., : hints_BTV.size(-1)] * hints_BTV * counted_BT1).sum()  # a vocabulary may be padded
    return (1 - weight) * loss_sum(logits_BTV, targets_BT) + weight * told


def sequence_log_probs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The log-probability of each row's targets, summed over the positions that are not IGNORE: a tensor of B nats."""
    log_probs_BTV = at_least_float32(logits_BTV).log_softmax(-1)
    counted_BT = targets_BT != IGNORE
    picked_BT = log_probs_BTV.gather(-1, targets_BT.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (picked_BT * counted_BT).sum(-1)


def token_logprobs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The log-probability of each target (BT), in nats; 0 where there is none (IGNORE)."""
    logits_BVT = at_least_float32(logits_BTV).movedim(-1, 1)
    return -F.cross_entropy(logits_BVT, targets_BT, ignore_index=IGNORE, reduction="none")
