"""Rung 4, multi-head attention: several small conversations in place of one large one.

Adds: `n_head` heads side by side, each `n_embd / n_head` wide; their answers are laid end to end, so that the
width stays what it was.

Why: one softmax makes one choice. A position may want a vowel nearby *and* the start of the line *and* the last
name spoken; with one head it gets a blur of the three, with three heads it gets each. The cost in parameters and
arithmetic is the same.

The lecture's validation loss: 2.28.

Shapes: B sequences in a batch, T positions, C = n_embd numbers for a position, H = n_head heads, D = C / H
numbers in a query, key or value.
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
        """What every head found: H answers of D numbers each make C again."""
        return torch.cat([head(x_BTC) for head in self.heads], dim=-1)


def size_of_head(n_embd: int, n_head: int) -> int:
    """The width of each head, when `n_head` of them share `n_embd` numbers evenly."""
    require(n_embd % n_head == 0, f"n_embd={n_embd} cannot be shared by n_head={n_head} heads; choose a multiple")
    return n_embd // n_head


class MultiHeadModel(EmbeddingModel):
    """Embeddings, heads in parallel, `lm_head`."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32, n_head: int = 4) -> None:
        head_size = size_of_head(n_embd, n_head)
        heads = MultiHead(Head(n_embd, head_size, block_size) for _ in range(n_head))
        super().__init__(vocab_size, block_size, n_embd, body=heads)
