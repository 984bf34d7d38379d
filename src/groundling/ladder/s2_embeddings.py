"""Rung 2, embeddings: represent each character by a vector of what it is and where it stands.

Adds a token embedding of `n_embd` numbers instead of V logits, a position embedding of the same width, and a linear
layer, `lm_head`, that maps their sum to logits.

Later rungs insert a `body` between the embeddings and `lm_head`; here it is the identity. The loss hardly changes: no
position sees another, so the position adds little.

The lecture's validation loss: not given; the model still knows no more than a bigram.

Shapes: B sequences in a batch, T positions in a sequence, C = n_embd, V vocabulary.
"""

import torch
from torch import Tensor, nn


class EmbeddingModel(nn.Module):
    """Token and position embeddings, `body`, `lm_head`."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32, body: nn.Module | None = None) -> None:
        super().__init__()
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.body = nn.Identity() if body is None else body
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx_BT: Tensor) -> Tensor:
        """Return next-character logits for each position.

        Raises:
            ValueError: there are more positions than `block_size`.
        """
        T = idx_BT.shape[1]
        if self.block_size < T:
            raise ValueError(
                f"got {T} positions, but this model has only {self.block_size}; pass idx[:, -{self.block_size}:]"
            )
        position_TC = self.position_embedding(torch.arange(T, device=idx_BT.device))
        x_BTC = self.token_embedding(idx_BT) + position_TC  # broadcast over the batch
        logits_BTV: Tensor = self.lm_head(self.body(x_BTC))
        return logits_BTV
