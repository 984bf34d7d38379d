"""Counting as a teacher: what came after the last few tokens elsewhere in the training text.

A network spends much of a short training on finding out how often one letter follows another. Counting does that in
seconds, and its answer is a whole distribution where the text shows one token. So the first steps of a short run learn
from both: from the token that stands there, and from what has stood there before (docs/log.md has what that gains).
Knowledge distillation (arXiv:1503.02531) from the oldest of language models; nothing of it stays in the trained model.

Shapes: N tokens of the text, V vocabulary, B sequences, T positions.
"""

import torch
from torch import Tensor

MAX_COUNTS = 1 << 19
"""Counts that are looked up at once: what fits into a cache."""


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
        del counts_CV  # before the next order's are made: it is twice as large as what is returned
    return probs_NV
