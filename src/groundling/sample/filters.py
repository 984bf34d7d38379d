"""What may be drawn next: each filter takes logits and returns logits, with -inf for what it drops.

All are pure, keep at least one token of each row, and prefer the lower id where scores are equal.

Shapes: B samples, V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from groundling.errors import CheckpointError

DROPPED = -math.inf


def require_scores(best_B: Iterable[float]) -> None:
    """Check the best score of each row.

    Raises:
        CheckpointError: it is NaN or infinity: the scores are damaged, or nothing is left of a row.
    """
    for row, best in enumerate(best_B):
        if not math.isfinite(best):
            raise CheckpointError(
                f"the model's best score is {best} (sample {row}): "
                "its weights are damaged, or its training diverged; use an earlier checkpoint"
            )


def below(logits_BV: Tensor, n_ids: int | None) -> Tensor:
    """Only the ids below `n_ids`, or all (None): a model's vocabulary may be padded beyond its tokenizer's."""
    return logits_BV if n_ids in (None, logits_BV.size(-1)) else logits_BV[:, :n_ids]


def logit_bias(logits_BV: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add to the scores of some ids; -inf forbids one."""
    if not bias:
        return logits_BV
    bias_V = torch.zeros_like(logits_BV[0])
    bias_V[list(bias)] = torch.tensor(list(bias.values()), dtype=bias_V.dtype, device=bias_V.device)
    return logits_BV + bias_V


def repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make the tokens that were seen less likely (above 1) or more (below 1): arXiv:1909.05858, section 4.1.

    A positive score is divided and a negative one multiplied: dividing both would reward the unlikely.
    """
    if penalty == 1:
        return logits_BV
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def count_penalties(logits_BV: Tensor, counts_BV: Tensor, presence: float, frequency: float) -> Tensor:
    """Take `presence` once from each token that occurred, and `frequency` for each time it did."""
    if presence == 0 and frequency == 0:
        return logits_BV
    counts_BV = counts_BV.type_as(logits_BV)
    return logits_BV - presence * counts_BV.clamp(max=1) - frequency * counts_BV


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


def typical_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens whose probabilities reach `p` together, those first that surprise most as expected:
    whose surprise is nearest to the distribution's entropy (locally typical sampling, arXiv:2202.00666).
    """
    if p >= 1:
        return logits_BV
    logprobs_BV = logits_BV.log_softmax(-1)
    probs_BV = logprobs_BV.exp()
    entropy_B1 = -(probs_BV * logprobs_BV).nan_to_num(0.0).sum(-1, keepdim=True)  # a dropped one adds nothing
    order_BV = (entropy_B1 + logprobs_BV).abs().sort(dim=-1, stable=True).indices
    sorted_BV = probs_BV.gather(-1, order_BV)
    reached_before_BV = (sorted_BV.cumsum(-1) - sorted_BV) >= p
    reached_before_BV[:, 0] = False
    return logits_BV.masked_fill(torch.zeros_like(reached_before_BV).scatter(-1, order_BV, reached_before_BV), DROPPED)


def race(logits_BV: Tensor, noise_BV: Tensor) -> Tensor:
    """Draw an id of each row (B) by the race of exponential clocks: id i wins with its probability exactly.

    All that is random is in the noise, and the winner mostly stays when the scores change a little: so two models that
    share it mostly draw the same. A dropped id never wins.

    Args:
        logits_BV: after all filters.
        noise_BV: draws from the exponential distribution, above 0.
    """
    weights_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp()  # who wins does not depend on their sum
    return (weights_BV / noise_BV).argmax(-1)


def race_of_few(logits_BV: Tensor, t: float, noise_BV: Tensor) -> Tensor:
    """`race` at a temperature, with nothing dropped, by NumPy: PyTorch's exp wakes other threads even for few numbers,
    and while these wait for more, they keep those of compiled code from their cores.

    Args:
        logits_BV: as the model gave them, on the CPU.
        t: the temperature, above 0.
        noise_BV: draws from the exponential distribution, above 0.

    Raises:
        CheckpointError: the scores are not finite.
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
