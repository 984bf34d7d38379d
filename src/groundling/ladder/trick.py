"""The mathematical trick in self-attention: average the past, in four equivalent ways.

The simplest way to pass data forward in time is the mean of all vectors up to and including the current one. The
lecture computes it in three ways; the third is self-attention with all scores zero. The fourth is the fused call of
production code.

Shapes: B sequences in a batch, T positions, S positions attended to (here S = T), C numbers for a position.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_by_loops(x_BTC: Tensor) -> Tensor:
    """Average with loops: for each sequence and position, the mean of all vectors so far."""
    mean_BTC = torch.empty_like(x_BTC)
    for b, x_TC in enumerate(x_BTC):
        for t in range(len(x_TC)):
            mean_BTC[b, t] = x_TC[: t + 1].mean(dim=0)
    return mean_BTC


def mean_by_matrix(x_BTC: Tensor) -> Tensor:
    """Average with one matrix product: row 3 of the lower triangular weights is 1/3, 1/3, 1/3, 0, 0."""
    T = x_BTC.shape[1]
    weights_TS = torch.tril(torch.ones(T, T, dtype=x_BTC.dtype, device=x_BTC.device))
    weights_TS = weights_TS / weights_TS.sum(dim=1, keepdim=True)
    return weights_TS @ x_BTC


def mean_by_softmax(x_BTC: Tensor) -> Tensor:
    """Average with softmax: scores of zero for the past, minus infinity for the future.

    Equal scores give equal weights. Self-attention makes the scores depend on the data.
    """
    T = x_BTC.shape[1]
    tril_TS = torch.tril(torch.ones(T, T, dtype=torch.bool, device=x_BTC.device))
    scores_TS = torch.zeros(T, T, dtype=x_BTC.dtype, device=x_BTC.device).masked_fill(~tril_TS, float("-inf"))
    return scores_TS.softmax(dim=-1) @ x_BTC


def mean_by_fused_attention(x_BTC: Tensor) -> Tensor:
    """Average with the production call: zero queries and keys give zero scores; the values are x."""
    zeros_BTC = torch.zeros_like(x_BTC)
    return F.scaled_dot_product_attention(zeros_BTC, zeros_BTC, x_BTC, is_causal=True)
