"""Rung 5, feed-forward: compute on each position after attention.

Adds a linear layer and a ReLU, applied to each position separately.

Attention only mixes: its output is a weighted mean of values that are linear in their input. The feed-forward layer
adds the nonlinearity. From here on a layer is a pair: *communicate* (attention, across positions), then *compute*
(feed-forward, within one position).

The lecture's validation loss: 2.24.

Shapes: B sequences in a batch, T positions, C = n_embd, F hidden features (here F = C).
"""

from torch import Tensor, nn

from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head
from groundling.ladder.s4_multi_head import MultiHead, size_of_head


class FeedForward(nn.Module):
    """A linear layer and a ReLU, the same for every position."""

    def __init__(self, n_embd: int, n_hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_embd, n_hidden)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the hidden features of each position."""
        hidden_BTF: Tensor = self.linear(x_BTC)
        return hidden_BTF.relu()


class FeedForwardModel(EmbeddingModel):
    """Embeddings, heads, feed-forward, `lm_head`."""

    def __init__(self, vocab_size: int, block_size: int = 8, n_embd: int = 32, n_head: int = 4) -> None:
        head_size = size_of_head(n_embd, n_head)
        heads = MultiHead(Head(n_embd, head_size, block_size) for _ in range(n_head))
        body = nn.Sequential(heads, FeedForward(n_embd, n_embd))
        super().__init__(vocab_size, block_size, n_embd, body)
