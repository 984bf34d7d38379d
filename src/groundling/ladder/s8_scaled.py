"""Rung 8, scaled up: a larger model, and dropout against overfitting.

Adds:
- Size: 6 blocks instead of 3, 6 heads, n_embd 384, and a context of 256 characters instead of 8.
- Dropout: in training, sets a random fifth of the numbers to zero and scales up the rest, in three places: the
  attention weights, and the end of each half of a block.

Ten million parameters can memorise a text of one million characters. Dropout trains a different subnetwork at each
step, so no unit can rely on one other unit. With dropout 0 and the same sizes, this rung equals rung 7.

The lecture's validation loss: 1.48.

Shapes: B sequences in a batch, T positions, S positions attended to (here S = T), C = n_embd.
"""

from torch import Tensor, nn

from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head
from groundling.ladder.s4_multi_head import MultiHead, size_of_head
from groundling.ladder.s5_feed_forward import FeedForward
from groundling.ladder.s6_residual import ResidualBlock, chain


class DropoutHead(Head):
    """A head with dropout on its attention weights."""

    def __init__(self, n_embd: int, head_size: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, head_size, block_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the weighted mean of past values for each position."""
        T = x_BTC.shape[-2]
        v_BSD, q_BTD, k_BSD = self.value(x_BTC), self.query(x_BTC), self.key(x_BTC)
        weights_BTS = q_BTD @ k_BSD.transpose(-2, -1) * self.scale
        weights_BTS = weights_BTS.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        weights_BTS = weights_BTS.softmax(dim=-1)
        weights_BTS = self.dropout(weights_BTS)
        out_BTD: Tensor = weights_BTS @ v_BSD
        return out_BTD


class ScaledModel(EmbeddingModel):
    """The lecture's final model: embeddings, pre-norm residual blocks with dropout, a final norm, `lm_head`."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 256,
        n_embd: int = 384,
        n_head: int = 6,
        n_layer: int = 6,
        dropout: float = 0.2,
    ) -> None:
        head_size = size_of_head(n_embd, n_head)
        blocks = [
            ResidualBlock(
                communicate=chain(
                    norm=nn.LayerNorm(n_embd),
                    heads=MultiHead(DropoutHead(n_embd, head_size, block_size, dropout) for _ in range(n_head)),
                    projection=nn.Linear(n_embd, n_embd),
                    dropout=nn.Dropout(dropout),
                ),
                compute=chain(
                    norm=nn.LayerNorm(n_embd),
                    feed_forward=FeedForward(n_embd, 4 * n_embd),
                    projection=nn.Linear(4 * n_embd, n_embd),
                    dropout=nn.Dropout(dropout),
                ),
            )
            for _ in range(n_layer)
        ]
        body = chain(blocks=nn.Sequential(*blocks), norm=nn.LayerNorm(n_embd))
        super().__init__(vocab_size, block_size, n_embd, body)
