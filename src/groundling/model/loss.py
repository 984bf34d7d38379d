"""What a model is trained on is a function of its logits, and nothing else.

Shapes: B batch, T positions, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from groundling.model.layers import at_least_float32

IGNORE = -100
"""A target of this value is not counted."""


def loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The cross-entropy in nats, summed over all targets that are not IGNORE.

    Summed and not averaged: the caller divides by the number of targets of the whole step, so that how a batch
    is cut never changes the result.
    """
    logits_NV = at_least_float32(logits_BTV).flatten(0, -2)
    return F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")


def sequence_log_probs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The log-probability of each row's targets, summed over the positions that are not IGNORE: a tensor of B nats."""
    log_probs_BTV = at_least_float32(logits_BTV).log_softmax(-1)
    counted_BT = targets_BT != IGNORE
    picked_BT = log_probs_BTV.gather(-1, targets_BT.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (picked_BT * counted_BT).sum(-1)
