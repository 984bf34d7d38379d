"""Rung 1, bigram: predict the next character from the current one alone.

Adds a V x V table. Row i holds one number (a logit) for each character that may follow character i; the forward pass
is a row lookup, and training fills the table in.

The data, the loss and the sampler are complete from this rung on. Only the model grows.

The lecture's validation loss: about 2.5 after training, about 4.87 before. The untrained table is worse than a uniform
guess (ln 65 = 4.17) because its random logits are confident and wrong.

Shapes: B sequences in a batch, T positions in a sequence, V characters in the vocabulary.
"""

from torch import Tensor, nn


class BigramModel(nn.Module):
    """A V x V table: row i holds the logits of the character after i."""

    def __init__(self, vocab_size: int, block_size: int = 8) -> None:
        super().__init__()
        self.block_size = block_size  # the context length; the bigram uses one character of it
        self.next_character = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx_BT: Tensor) -> Tensor:
        """Return next-character logits for each position."""
        logits_BTV: Tensor = self.next_character(idx_BT)
        return logits_BTV
