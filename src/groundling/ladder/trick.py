"""The mathematical trick in self-attention: average the past, four times, each faster and more general.

The simplest way for a position to hear from its past is to take the mean of the vectors so far, its own
included. The lecture computes this mean in three ways; the last of them already is self-attention, only with
scores that are all zero. The fourth way is the call that production code makes.

Shapes: B sequences in a batch, T positions, S positions looked at (here S = T), C numbers for a position.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_by_loops(x_BTC: Tensor) -> Tensor:
    """Say what is meant: for each sequence and each position, the mean of everything up to there."""
    mean_BTC = torch.empty_like(x_BTC)
    for b, x_TC in enumerate(x_BTC):
        for t in range(len(x_TC)):
            mean_BTC[b, t] = x_TC[: t + 1].mean(dim=0)
    return mean_BTC


def mean_by_matrix(x_BTC: Tensor) -> Tensor:
    """All at once: a row of a triangular matrix says how much to take from each position; 1/3, 1/3, 1/3, 0, 0."""
    T = x_BTC.shape[1]
    weights_TS = torch.tril(torch.ones(T, T, dtype=x_BTC.dtype, device=x_BTC.device))
    weights_TS = weights_TS / weights_TS.sum(dim=1, keepdim=True)
    return weights_TS @ x_BTC


def mean_by_softmax(x_BTC: Tensor) -> Tensor:
    """Start from scores instead: zero for the past, minus infinity for the future; softmax makes them weights.

    Equal scores give equal weights. As soon as the scores depend on the data, the mean becomes a choice.
    """
    T = x_BTC.shape[1]
    tril_TS = torch.tril(torch.ones(T, T, dtype=torch.bool, device=x_BTC.device))
    scores_TS = torch.zeros(T, T, dtype=x_BTC.dtype, device=x_BTC.device).masked_fill(~tril_TS, float("-inf"))
    return scores_TS.softmax(dim=-1) @ x_BTC


def mean_by_fused_attention(x_BTC: Tensor) -> Tensor:
    """The production call: queries and keys of zero make every score zero; the values are x itself."""
    zeros_BTC = torch.zeros_like(x_BTC)
    return F.scaled_dot_product_attention(zeros_BTC, zeros_BTC, x_BTC, is_causal=True)
