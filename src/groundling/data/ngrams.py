"""A teacher that only counts: what came after the last few tokens elsewhere in the training text.

A network spends much of a short training on finding out how often one letter follows another. Counting does that in
seconds, and its answer is a whole distribution where the text shows one token. So the first steps of a short run learn
from both: from the token that stands there, and from what has stood there before (docs/log.md has what that gains).
Knowledge distillation (arXiv:1503.02531) from the oldest of language models; nothing of it stays in the trained model.

Shapes: N tokens of the text, V vocabulary, B sequences, T positions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groundling.errors import require

MOST_BYTES = 2 << 30
ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A distribution of n-gram counts, learned from beside the text: for a short training on a small vocabulary."""

    weight: float = 0.0
    """The teacher's part in the loss at the highest learning rate; it falls as the rate falls. 0: no teacher."""
    order: int = 6
    """n of the n-grams: the teacher sees the last n - 1 tokens."""
    smoothing: float = 2.0
    """How much a context trusts the shorter one inside it, per distinct token that was seen after it."""

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1, f"teacher.weight is {self.weight}; it must be in [0, 1]")
        require(1 <= self.order <= 16, f"teacher.order is {self.order}; it must be 1 to 16")
        require(self.smoothing > 0, f"teacher.smoothing is {self.smoothing}; it must be positive")


class NgramTeacher:
    """For each position of a text, the distribution of its token by all other places of the text.

    Args:
        tokens: the training text.
        vocab_size: V.
        config: how to count.

    Raises:
        ConfigError: the table would be too large.
    """

    def __init__(self, tokens: npt.NDArray[np.unsignedinteger], vocab_size: int, config: TeacherConfig) -> None:
        n_bytes = 2 * len(tokens) * vocab_size
        require(
            n_bytes <= MOST_BYTES,
            f"the teacher's table for {len(tokens):,} tokens and a vocabulary of {vocab_size:,} would take "
            f"{n_bytes / 1e9:,.1f} GB, at most {MOST_BYTES / 1e9:.1f} are allowed; set teacher.weight to 0",
        )
        ids_N = torch.from_numpy(np.asarray(tokens).astype(np.int64))
        self._table_NV = leave_one_out(ids_N, vocab_size, config.order, config.smoothing).half()

    def __call__(self, offsets: list[int], block_size: int) -> Tensor:
        """The distributions of the targets of the windows that start at `offsets`: probs_BTV."""
        return torch.stack([self._table_NV[offset + 1 : offset + 1 + block_size] for offset in offsets])


def leave_one_out(ids_N: Tensor, vocab_size: int, order: int, smoothing: float) -> Tensor:
    """The distribution of each token by the n-grams of all other places: probs_NV.

    Interpolated as by Witten and Bell (1991): p = (count + a p') / (total + a), where p' is the distribution by the
    context without its farthest token, and a is `smoothing` times the number of distinct tokens that were seen in this
    context. A place does not count itself, or it would know its own answer. The text is taken as a circle, so that its
    first tokens have a context too.
    """
    probs_NV = torch.full((len(ids_N), vocab_size), 1 / vocab_size)
    contexts_N = torch.zeros_like(ids_N)  # the same number, the same context
    for n_seen in range(order):
        if n_seen:
            _, contexts_N = torch.unique(contexts_N * vocab_size + ids_N.roll(n_seen), return_inverse=True)
        n_contexts = int(contexts_N.max()) + 1
        counts_CV = torch.bincount(contexts_N * vocab_size + ids_N, minlength=n_contexts * vocab_size)
        counts_CV = counts_CV.view(n_contexts, vocab_size).float()
        totals_C, trust_C = counts_CV.sum(1), smoothing * (counts_CV > 0).sum(1)
        for first in range(0, len(ids_N), ROWS_AT_ONCE):  # what fits into a cache
            rows = slice(first, first + ROWS_AT_ONCE)
            contexts, probs = contexts_N[rows], probs_NV[rows]
            trust = trust_C[contexts]
            probs.mul_(trust.unsqueeze(1)).add_(counts_CV[contexts])
            probs[torch.arange(len(probs)), ids_N[rows]] -= 1
            probs.div_((totals_C[contexts] - 1 + trust).unsqueeze(1))
    return probs_NV
