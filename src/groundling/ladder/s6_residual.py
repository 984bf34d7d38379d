"""Rung 6, residuals: from a pipe to a stream, so that layers can be stacked.

Adds:
- Depth: communicate and compute become a block, and there are three of them.
- Residuals: a block *adds* its results to what came in, `x = x + f(x)`, where before it put them in its place.
- Projections: each half ends in a linear layer that translates its findings into the stream's own terms.
- Width inside: the feed-forward half thinks in a space four times as wide as the stream.

Why: layers merely stacked are hard to train, because a gradient has to pass through every one of them
to reach the first. A sum hands its gradient to both terms unchanged, so along the stream it flows from
the loss to the embeddings as if nothing stood between, and the blocks join in as they learn. A block whose
projections are zero does nothing at all; with all of them zero, this rung is rung 2.

The lecture's validation loss: 2.08.

Shapes: B sequences in a batch, T positions, C = n_embd numbers for a position.
"""

from collections import OrderedDict

from torch import Tensor, nn

from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head
from groundling.ladder.s4_multi_head import MultiHead, size_of_head
from groundling.ladder.s5_feed_forward import FeedForward


def chain(**parts: nn.Module) -> nn.Sequential:
    """Modules one after another, each with a name."""
    return nn.Sequential(OrderedDict(parts))


class ResidualBlock(nn.Module):
    """Communicate, then compute, and add each result to the stream instead of replacing it."""

    def __init__(self, communicate: nn.Module, compute: nn.Module) -> None:
        super().__init__()
        self.communicate = communicate
        self.compute = compute

    def forward(self, x_BTC: Tensor) -> Tensor:
        """The stream after both halves have added to it."""
        x_BTC = x_BTC + self.communicate(x_BTC)
        return x_BTC + self.compute(x_BTC)  # type: ignore[no-any-return]


class ResidualModel(EmbeddingModel):
    """Embeddings, residual blocks, `lm_head`."""

    def __init__(
        self, vocab_size: int, block_size: int = 8, n_embd: int = 32, n_head: int = 4, n_layer: int = 3
    ) -> None:
        head_size = size_of_head(n_embd, n_head)
        blocks = [
            ResidualBlock(
                communicate=chain(
                    heads=MultiHead(Head(n_embd, head_size, block_size) for _ in range(n_head)),
                    projection=nn.Linear(n_embd, n_embd),
                ),
                compute=chain(
                    feed_forward=FeedForward(n_embd, 4 * n_embd),
                    projection=nn.Linear(4 * n_embd, n_embd),
                ),
            )
            for _ in range(n_layer)
        ]
        super().__init__(vocab_size, block_size, n_embd, body=chain(blocks=nn.Sequential(*blocks)))
