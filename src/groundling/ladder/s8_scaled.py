"""Rung 8, scaled up: nothing new in kind, a good deal more of it, and dropout to keep it honest.

Adds:
- Size: 6 blocks in place of 3, 6 heads, 384 numbers for a position, and 256 characters of context in place of 8.
- Dropout: in training, a random fifth of the numbers is set to zero (and the rest scaled up to make good) in three
  places: the attention weights, and the end of each half of a block.

Why: rung 7 has run out of room, not of ideas. A model of ten million parameters has room enough to learn its one
million characters by heart; dropout makes every step train a different thinned-out network, so no unit can lean on
one particular other, and what is learned has to hold more generally. With dropout 0 and the same sizes, this rung
is rung 7.

The lecture's validation loss: 1.48.

Shapes: B sequences in a batch, T positions, S positions looked at (here S = T), C = n_embd numbers for a position.
"""

from functools import partial

from torch import Tensor, nn

from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head
from groundling.ladder.s4_multi_head import MultiHead
from groundling.ladder.s5_feed_forward import FeedForward
from groundling.ladder.s6_residual import ResidualBlock, chain


class DropoutHead(Head):
    """A head that in training now and then fails to hear one of the positions it listens to."""

    def __init__(self, n_embd: int, head_size: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, head_size, block_size)
        self.dropout = nn.Dropout(dropout)

    def share(self, q_BTD: Tensor, k_BSD: Tensor) -> Tensor:
        """The weights of a plain head, some of them set to zero."""
        weights_BTS: Tensor = self.dropout(super().share(q_BTD, k_BSD))
        return weights_BTS


class ScaledModel(EmbeddingModel):
    """The whole lecture: embeddings, pre-norm residual blocks with dropout, a final norm, `lm_head`."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 256,
        n_embd: int = 384,
        n_head: int = 6,
        n_layer: int = 6,
        dropout: float = 0.2,
    ) -> None:
        blocks = [
            ResidualBlock(
                communicate=chain(
                    norm=nn.LayerNorm(n_embd),
                    heads=MultiHead(n_embd, n_head, block_size, make_head=partial(DropoutHead, dropout=dropout)),
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
