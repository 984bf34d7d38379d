"""Rung 7, LayerNorm: normalise the input of each half of a block.

Adds a LayerNorm before each half of each block, and one before `lm_head`. It normalises the numbers of one position to
mean 0 and variance 1, then applies a learned scale and shift.

The residual stream grows with every block; the norm gives each half an input of the same scale. It stands inside the
branch ("pre-norm"), so the stream itself, and the gradient along it, stay untouched. The Transformer of 2017 normalised
after the sum ("post-norm"). With its norms replaced by the identity, this rung equals rung 6.

The lecture's validation loss: 2.06.

Shapes: B sequences in a batch, T positions, C = n_embd.
"""

from torch import Tensor, nn

from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head
from groundling.ladder.s4_multi_head import MultiHead, size_of_head
from groundling.ladder.s5_feed_forward import FeedForward
from groundling.ladder.s6_residual import ResidualBlock, chain


def layer_norm_by_hand(x_BTC: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute what an untrained `nn.LayerNorm` does: normalise each position over its C numbers."""
    centred_BTC = x_BTC - x_BTC.mean(dim=-1, keepdim=True)
    variance_BT1 = centred_BTC.square().mean(dim=-1, keepdim=True)
    return centred_BTC / (variance_BT1 + eps).sqrt()


class LayerNormModel(EmbeddingModel):
    """Embeddings, pre-norm residual blocks, a final norm, `lm_head`."""

    def __init__(
        self, vocab_size: int, block_size: int = 8, n_embd: int = 32, n_head: int = 4, n_layer: int = 3
    ) -> None:
        head_size = size_of_head(n_embd, n_head)
        blocks = [
            ResidualBlock(
                communicate=chain(
                    norm=nn.LayerNorm(n_embd),
                    heads=MultiHead(Head(n_embd, head_size, block_size) for _ in range(n_head)),
                    projection=nn.Linear(n_embd, n_embd),
                ),
                compute=chain(
                    norm=nn.LayerNorm(n_embd),
                    feed_forward=FeedForward(n_embd, 4 * n_embd),
                    projection=nn.Linear(4 * n_embd, n_embd),
                ),
            )
            for _ in range(n_layer)
        ]
        body = chain(blocks=nn.Sequential(*blocks), norm=nn.LayerNorm(n_embd))
        super().__init__(vocab_size, block_size, n_embd, body)
