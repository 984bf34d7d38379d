"""Rung 3, one head of self-attention: each position asks its past a question, and listens to who answers.

Adds: for every position three small vectors, each a linear map of its embedding.
- The query: what am I looking for?
- The key: what do I hold?
- The value: what do I say, if you choose to listen to me?

A query times a key is a score; the scores of one position over its past become weights by softmax; the position
receives the weighted mean of the values. The future is masked out, for it is what we are asked to guess. The
scores are scaled by head_size**-0.5: a sum of head_size products grows like the root of head_size, and large
scores would make the softmax pick one position and ignore the rest from the very start.

Why: the mean of the past (see `trick.py`) treats a vowel five characters ago like the letter just before.
Attention lets the data decide what matters.

The lecture's validation loss: about 2.4.

Shapes: B sequences in a batch, T positions, S positions looked at (here S = T), C = n_embd numbers for a
position, D = head_size numbers in a query, key or value, V vocabulary.
"""

import torch
from torch import Tensor, nn

from groundling.ladder.s2_embeddings import EmbeddingModel


class Head(nn.Module):
    """One head of causal self-attention."""

    tril: Tensor

    def __init__(self, n_embd: int, head_size: int, block_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.scale = head_size**-0.5
        tril = torch.tril(torch.ones(block_size, block_size))
        self.register_buffer("tril", tril, persistent=False)  # moves with the model, but is not learned or saved

    def forward(self, x_BTC: Tensor) -> Tensor:
        """For each position, the weighted mean of the values of its past."""
        T = x_BTC.shape[-2]
        v_BSD, q_BTD, k_BSD = self.value(x_BTC), self.query(x_BTC), self.key(x_BTC)
        weights_BTS = q_BTD @ k_BSD.transpose(-2, -1) * self.scale
        weights_BTS = weights_BTS.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        weights_BTS = weights_BTS.softmax(dim=-1)
        out_BTD: Tensor = weights_BTS @ v_BSD
        return out_BTD


class OneHeadModel(EmbeddingModel):
    """Embeddings, one head as wide as they are, `lm_head`."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32) -> None:
        super().__init__(vocab_size, block_size, n_embd, body=Head(n_embd, n_embd, block_size))
