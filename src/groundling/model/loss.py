"""Losses, as functions of logits.

Shapes: B batch, T positions, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from groundling.model.numerics import at_least_float32

IGNORE = -100
"""Value of targets that do not count."""


def loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over all targets that are not IGNORE.

    A sum instead of a mean: the caller divides by the targets of the whole step, so that the cut into micro-batches
    does not change the result.
    """
    logits_NV = at_least_float32(logits_BTV).flatten(0, -2)
    return F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")


def distillation_loss_sum(logits_BTV: Tensor, targets_BT: Tensor, teacher_probs_BTV: Tensor, weight: float) -> Tensor:
    """Cross-entropy in nats with (1 - weight) target + weight teacher_probs, summed over targets (arXiv:1503.02531).

    Args:
        logits_BTV: of the student.
        targets_BT: the next ids, or IGNORE.
        teacher_probs_BTV: the teacher's distributions.
        weight: of teacher_probs.
    """
    log_probs_BTV = at_least_float32(logits_BTV).log_softmax(-1)
    counted_BT1 = (targets_BT != IGNORE).unsqueeze(-1)
    known_BTV = log_probs_BTV[..., : teacher_probs_BTV.size(-1)]  # the student's vocabulary may be padded
    soft = -(known_BTV * teacher_probs_BTV * counted_BT1).sum()
    return (1 - weight) * loss_sum(logits_BTV, targets_BT) + weight * soft


def token_logprobs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Log-probability of each target in nats (BT); 0 for IGNORE."""
    logits_BVT = at_least_float32(logits_BTV).movedim(-1, 1)
    return -F.cross_entropy(logits_BVT, targets_BT, ignore_index=IGNORE, reduction="none")
