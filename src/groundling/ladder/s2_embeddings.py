"""Rung 2, embeddings: a character becomes a vector that says what it is and where it stands.

Adds: instead of V logits, the table now holds `n_embd` numbers for a character; a second table holds as many for
each position; their sum is what the model thinks with. A linear layer, `lm_head`, turns it into logits at the end.

Why: a vector is room to work in. The rungs above put something between the embedding and `lm_head` (the slot
called `body`, which lets everything pass here) and leave the rest of this page as it is. The loss hardly
moves yet: no position can see another, so knowing one's place does not help much.

The lecture's validation loss: none given; the model still knows no more than a bigram.

Shapes: B sequences in a batch, T positions in a sequence, C = n_embd numbers for a position, V vocabulary.
"""

import torch
from torch import Tensor, nn


class EmbeddingModel(nn.Module):
    """Embed tokens and positions, let `body` work on the vectors, read logits off the result."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32, body: nn.Module | None = None) -> None:
        super().__init__()
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.body = nn.Identity() if body is None else body
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx_BT: Tensor) -> Tensor:
        """For each position, the logits of the character after it."""
        T = idx_BT.shape[1]
        if self.block_size < T:
            raise ValueError(
                f"{T} positions came, but this model knows only {self.block_size}; pass idx[:, -{self.block_size}:]"
            )
        position_TC = self.position_embedding(torch.arange(T, device=idx_BT.device))
        x_BTC = self.token_embedding(idx_BT) + position_TC  # the same positions for every sequence of the batch
        logits_BTV: Tensor = self.lm_head(self.body(x_BTC))
        return logits_BTV
