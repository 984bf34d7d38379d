"""An n-gram teacher: next-token counts over the training text.

A network spends much of a short run on learning how often one letter follows another. Counting takes seconds and gives
a whole distribution where the text gives one token, so early steps learn from both (docs/log.md has the gain). This is
knowledge distillation (arXiv:1503.02531) from an n-gram model; nothing of the teacher stays in the trained model.

Shapes: N tokens of the text, V vocabulary, B sequences, T positions.
"""

import torch
from torch import Tensor

MAX_COUNTS = 1 << 19
"""Counts looked up at once: as many as fit into a cache."""


def leave_one_out(ids_N: Tensor, vocab_size: int, order: int, smoothing: float) -> Tensor:
    """The n-gram distribution of each token, leaving its own position out of the counts: probs_NV.

    Witten-Bell interpolation (1991): p = (count + a p') / (total + a), where p' is the distribution for the context
    without its farthest token, and a is `smoothing` times the number of distinct tokens seen in this context. The text
    is treated as circular, so that its first tokens have a context too.
    """
    probs_NV = torch.full((len(ids_N), vocab_size), 1 / vocab_size)
    contexts_N = torch.zeros_like(ids_N)  # an ID for each distinct context
    for n_seen in range(order):
        if n_seen:
            _, contexts_N = torch.unique(contexts_N * vocab_size + ids_N.roll(n_seen), return_inverse=True)
        n_contexts = int(contexts_N.max()) + 1
        counts_CV = torch.bincount(contexts_N * vocab_size + ids_N, minlength=n_contexts * vocab_size)
        counts_CV = counts_CV.view(n_contexts, vocab_size)
        n_rows = max(1, MAX_COUNTS // vocab_size)
        distinct_C = torch.cat([(counts > 0).sum(1) for counts in torch.split(counts_CV, n_rows)])
        totals_C, trust_C = counts_CV.sum(1), smoothing * distinct_C
        for first in range(0, len(ids_N), n_rows):
            rows = slice(first, first + n_rows)
            contexts, probs = contexts_N[rows], probs_NV[rows]
            trust = trust_C[contexts]
            probs.mul_(trust.unsqueeze(1)).add_(counts_CV[contexts])
            probs[torch.arange(len(probs)), ids_N[rows]] -= 1
            probs.div_((totals_C[contexts] - 1 + trust).unsqueeze(1))
        del counts_CV  # before the next order: it is twice as large as the result
    return probs_NV
