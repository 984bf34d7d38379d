"""Rung 3, one head of self-attention: each position gathers data from the positions before it.

Adds three linear maps of each position's vector:
- query: what am I looking for?
- key: what do I contain?
- value: what do I pass on if you attend to me?

The dot product of a query and a key is a score. Softmax turns the scores of one position into weights over its past,
and the output is the weighted mean of the values. The mask hides the future, which is what the model predicts. The
factor head_size**-0.5 keeps the variance of the scores near 1: larger scores make softmax nearly one-hot.

The plain mean of `trick.py` weights all past characters equally. Attention makes the weights depend on the data.

The lecture's validation loss: about 2.4.

Shapes: B sequences in a batch, T positions, S positions attended to (here S = T), C = n_embd, D = head_size,
V vocabulary.
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
        self.register_buffer("tril", tril, persistent=False)  # moves with the model; not trained, not saved

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the weighted mean of past values for each position."""
        T = x_BTC.shape[-2]
        v_BSD, q_BTD, k_BSD = self.value(x_BTC), self.query(x_BTC), self.key(x_BTC)
        weights_BTS = q_BTD @ k_BSD.transpose(-2, -1) * self.scale
        weights_BTS = weights_BTS.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        weights_BTS = weights_BTS.softmax(dim=-1)
        out_BTD: Tensor = weights_BTS @ v_BSD
        return out_BTD


class OneHeadModel(EmbeddingModel):
    """Embeddings, one head of width `n_embd`, `lm_head`."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32) -> None:
        super().__init__(vocab_size, block_size, n_embd, body=Head(n_embd, n_embd, block_size))
