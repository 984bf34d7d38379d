"""Rung 1, the bigram: guess the next character from the present one alone.

Adds: a table with one row for each character and, in that row, one number (a logit) for each character that
may follow. Looking up a row *is* the whole model; training only fills the table in.

Why start here: everything around the model is already complete (ids go in, logits come out, a loss compares
them with the truth, a sampler draws the next character), so that from now on only the model has to grow.

The lecture's validation loss: about 2.5 after training. Before it, about 4.87: worse than the ln(65) = 4.17 of
a uniform guess, because a random table is sure of itself and wrong.

Shapes: B sequences in a batch, T positions in a sequence, V characters in the vocabulary.
"""

from torch import Tensor, nn


class BigramModel(nn.Module):
    """A V x V table: row i holds the logits of whatever comes after character i."""

    def __init__(self, vocab_size: int, block_size: int = 8) -> None:
        super().__init__()
        self.block_size = block_size  # how much of the past a rung is shown; this one uses one character of it
        self.next_character = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx_BT: Tensor) -> Tensor:
        """For each position, the logits of the character after it."""
        logits_BTV: Tensor = self.next_character(idx_BT)
        return logits_BTV
