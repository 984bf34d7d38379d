"""Rung 4, multi-head attention: several small heads in parallel.

Adds `n_head` heads of width `n_embd / n_head` and concatenates their outputs, which keeps the width.

One softmax makes one choice. A position may need a vowel nearby *and* the start of the line; one head averages the two,
two heads find both. Parameters and arithmetic stay the same.

The lecture's validation loss: 2.28.

Shapes: B sequences in a batch, T positions, C = n_embd, H = n_head heads, D = C / H.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from groundling.errors import require
from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head


class MultiHead(nn.Module):
    """Heads in parallel, concatenated."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Concatenate the outputs of all heads: H times D is C."""
        return torch.cat([head(x_BTC) for head in self.heads], dim=-1)


def size_of_head(n_embd: int, n_head: int) -> int:
    """Return the width of a head.

    Raises:
        ConfigError: `n_embd` is not a multiple of `n_head`.
    """
    require(n_embd % n_head == 0, f"n_embd={n_embd} cannot be shared by n_head={n_head} heads; choose a multiple")
    return n_embd // n_head


class MultiHeadModel(EmbeddingModel):
    """Embeddings, multi-head attention, `lm_head`."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32, n_head: int = 4) -> None:
        head_size = size_of_head(n_embd, n_head)
        heads = MultiHead(Head(n_embd, head_size, block_size) for _ in range(n_head))
        super().__init__(vocab_size, block_size, n_embd, body=heads)
