"""Filters of logits: each takes logits and returns logits, with -inf for the tokens it drops.

All are pure, keep at least one token per row, and prefer the lower id on ties.

Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from groundling.errors import CheckpointError

DROPPED = -math.inf


def require_scores(best_B: Iterable[float]) -> None:
    """Check the best logit of each row.

    Raises:
        CheckpointError: it is NaN or infinite.
    """
    for row, best in enumerate(best_B):
        if not math.isfinite(best):
            raise CheckpointError(
                f"the model's best score is {best} (sample {row}): "
                "its weights are damaged, or its training diverged; use an earlier checkpoint"
            )


def below(logits_BV: Tensor, n_ids: int | None) -> Tensor:
    """Keep the ids below `n_ids`, or all (None): a model's vocabulary may be padded beyond its tokenizer's."""
    return logits_BV if n_ids in (None, logits_BV.size(-1)) else logits_BV[:, :n_ids]


def logit_bias(logits_BV: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add to the logits of some ids; -inf forbids one."""
    if not bias:
        return logits_BV
    bias_V = torch.zeros_like(logits_BV[0])
    bias_V[list(bias)] = torch.tensor(list(bias.values()), dtype=bias_V.dtype, device=bias_V.device)
    return logits_BV + bias_V


def repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely (penalty above 1) or more likely (below 1): arXiv:1909.05858, section 4.1.

    Positive logits are divided and negative ones multiplied: dividing both would raise the negative ones.
    """
    if penalty == 1:
        return logits_BV
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def count_penalties(logits_BV: Tensor, counts_BV: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtract `presence` once from each token that occurred, and `frequency` once per occurrence."""
    if presence == 0 and frequency == 0:
        return logits_BV
    counts_BV = counts_BV.type_as(logits_BV)
    return logits_BV - presence * counts_BV.clamp(max=1) - frequency * counts_BV


def greedy(logits_BV: Tensor) -> Tensor:
    """The id of the best logit in each row (B); the lowest on ties."""
    return logits_BV.argmax(-1)


def temperature(logits_BV: Tensor, t: float) -> Tensor:
    """Sharpen (t below 1) or flatten (above 1) the distribution; t must be above 0 (use `greedy` for 0).

    The best logit becomes 0, so that nothing overflows for small t.
    """
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(t, torch.finfo(logits_BV.dtype).tiny)


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keep the `k` best of each row; exactly `k`, ties included."""
    if k >= logits_BV.size(-1):
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    better_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    places_left_B1 = k - better_BV.sum(-1, keepdim=True)
    return logits_BV.masked_fill(~(better_BV | (equal_BV & (equal_BV.cumsum(-1) <= places_left_B1))), DROPPED)


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities sum to `p`: nucleus sampling (arXiv:1904.09751)."""
    if p >= 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probs_BV = sorted_BV.softmax(-1)
    reached_before_BV = (probs_BV.cumsum(-1) - probs_BV) >= p
    reached_before_BV[:, 0] = False
    return logits_BV.masked_fill(torch.zeros_like(reached_before_BV).scatter(-1, order_BV, reached_before_BV), DROPPED)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep tokens at least `p` times as likely as the best one (arXiv:2407.01082)."""
    if p == 0:
        return logits_BV
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(p), DROPPED)


def typical_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens whose probabilities sum to `p`, by distance of their surprisal from the entropy.

    This is locally typical sampling (arXiv:2202.00666).
    """
    if p >= 1:
        return logits_BV
    logprobs_BV = logits_BV.log_softmax(-1)
    probs_BV = logprobs_BV.exp()
    entropy_B1 = -(probs_BV * logprobs_BV).nan_to_num(0.0).sum(-1, keepdim=True)  # dropped tokens add nothing
    order_BV = (entropy_B1 + logprobs_BV).abs().sort(dim=-1, stable=True).indices
    sorted_BV = probs_BV.gather(-1, order_BV)
    reached_before_BV = (sorted_BV.cumsum(-1) - sorted_BV) >= p
    reached_before_BV[:, 0] = False
    return logits_BV.masked_fill(torch.zeros_like(reached_before_BV).scatter(-1, order_BV, reached_before_BV), DROPPED)


def exponential_race(logits_BV: Tensor, noise_BV: Tensor) -> Tensor:
    """Sample an id of each row (B): the argmin of noise / probability has the distribution of the probabilities.

    This is the Gumbel-max trick in its exponential form (arXiv:1411.0030). All randomness is in the noise,
    so two models with similar logits mostly sample the same id from the same noise. A dropped id is never sampled.

    Args:
        logits_BV: after all filters.
        noise_BV: draws from the exponential distribution, above 0.
    """
    weights_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp()  # the sum does not change the argmax
    return (weights_BV / noise_BV).argmax(-1)


def exponential_race_of_few(logits_BV: Tensor, t: float, noise_BV: Tensor) -> Tensor:
    """`exponential_race` at a temperature, without filters, in NumPy.

    PyTorch's exp wakes its thread pool even for small arrays, and the spinning threads take the cores from the native
    decoder.

    Args:
        logits_BV: of the model, on the CPU.
        t: the temperature, above 0.
        noise_BV: draws from the exponential distribution, above 0.

    Raises:
        CheckpointError: the logits are not finite.
    """
    logits = logits_BV.numpy()
    best = logits.max(-1, keepdims=True)
    require_scores(best[:, 0].tolist())
    weights = logits - best
    with np.errstate(over="ignore", under="ignore"):
        weights /= max(t, np.finfo(weights.dtype).tiny)
        np.exp(weights, out=weights)
        weights /= noise_BV.numpy()
    return torch.from_numpy(weights.argmax(-1))
