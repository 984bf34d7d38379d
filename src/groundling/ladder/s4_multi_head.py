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

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from groundling.errors import require
from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head


class MultiHead(nn.Module):
    """Heads in parallel, concatenated."""

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, make_head: Callable[[int, int, int], Head] = Head
    ) -> None:
        require(n_embd % n_head == 0, f"n_embd={n_embd} cannot be shared by n_head={n_head} heads; choose a multiple")
        super().__init__()
        self.heads = nn.ModuleList(make_head(n_embd, n_embd // n_head, block_size) for _ in range(n_head))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """What every head found: H answers of D numbers each make C again.

        The same as `torch.cat([head(x_BTC) for head in self.heads], dim=-1)` in an eighth of the calls, which is
        where a small model's time goes: all heads read the same x, so one product with all their matrices serves all.
        """
        B, T, _ = x_BTC.shape
        heads = [cast(Head, head) for head in self.heads]
        matrices: list[Tensor] = [getattr(head, name).weight for name in ("query", "key", "value") for head in heads]
        asked_BTF = linear(x_BTC, torch.cat(matrices))
        q_BHTD, k_BHSD, v_BHSD = asked_BTF.view(B, T, 3, len(heads), -1).permute(2, 0, 3, 1, 4)
        found_BHTD: Tensor = heads[0].share(q_BHTD, k_BHSD) @ v_BHSD
        return found_BHTD.transpose(1, 2).flatten(start_dim=2)


class MultiHeadModel(EmbeddingModel):
    """Embeddings, heads in parallel, `lm_head`."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32, n_head: int = 4) -> None:
        super().__init__(vocab_size, block_size, n_embd, body=MultiHead(n_embd, n_head, block_size))
