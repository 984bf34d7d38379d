"""What may be drawn next: each filter takes logits and returns logits, with -inf for what it drops.

All are pure, keep at least one token of each row, and prefer the lower id where scores are equal.

Shapes: B samples, V vocabulary, N tokens of the context.
"""

import math

import torch
from torch import Tensor

from groundling.errors import CheckpointError

DROPPED = -math.inf


def require_scores(logits_BV: Tensor) -> Tensor:
    """Return the logits, if each row has a best one to choose.

    Raises:
        CheckpointError: a row has NaN or infinity for a score, or nothing is left of it.
    """
    best_B = logits_BV.amax(-1)  # NaN wins
    if not best_B.isfinite().all():
        row = int((~best_B.isfinite()).nonzero()[0])
        raise CheckpointError(
            f"the model's best score is {best_B[row].item()} (sample {row}): "
            "its weights are damaged, or its training diverged; use an earlier checkpoint"
        )
    return logits_BV


def below(logits_BV: Tensor, n_ids: int) -> Tensor:
    """Drop the ids from `n_ids` on: a model's vocabulary may be padded beyond its tokenizer's."""
    if n_ids >= logits_BV.size(-1):
        return logits_BV
    return logits_BV.index_fill(-1, torch.arange(n_ids, logits_BV.size(-1), device=logits_BV.device), DROPPED)


def repetition_penalty(logits_BV: Tensor, context_BN: Tensor, penalty: float) -> Tensor:
    """Make what the context already holds less likely (above 1) or more (below 1): arXiv:1909.05858, section 4.1.

    A positive score is divided and a negative one multiplied: dividing both would reward the unlikely.
    """
    if penalty == 1 or context_BN.size(-1) == 0:
        return logits_BV
    seen_BN = logits_BV.gather(-1, context_BN)
    return logits_BV.scatter(-1, context_BN, torch.where(seen_BN > 0, seen_BN / penalty, seen_BN * penalty))


def greedy(logits_BV: Tensor) -> Tensor:
    """The id of the best score in each row (B); the lowest where several are best."""
    return logits_BV.argmax(-1)


def temperature(logits_BV: Tensor, t: float) -> Tensor:
    """Sharpen (below 1) or flatten (above 1) the distribution; `t` is above 0, and 0 is `greedy`.

    The best score becomes 0, so that nothing overflows however small `t` is.
    """
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(t, torch.finfo(logits_BV.dtype).tiny)


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keep the `k` best of each row, and exactly `k` also where scores are equal."""
    if k >= logits_BV.size(-1):
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    better_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    places_left_B1 = k - better_BV.sum(-1, keepdim=True)
    return logits_BV.masked_fill(~(better_BV | (equal_BV & (equal_BV.cumsum(-1) <= places_left_B1))), DROPPED)


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest best tokens whose probabilities reach `p` together: nucleus sampling (arXiv:1904.09751)."""
    if p >= 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probs_BV = sorted_BV.softmax(-1)
    reached_before_BV = (probs_BV.cumsum(-1) - probs_BV) >= p
    reached_before_BV[:, 0] = False
    return logits_BV.masked_fill(torch.zeros_like(reached_before_BV).scatter(-1, order_BV, reached_before_BV), DROPPED)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep what is at least `p` times as likely as the best (arXiv:2407.01082)."""
    if p == 0:
        return logits_BV
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(p), DROPPED)
