"""What new positions attend to besides each other: the interface between a GPT and a KV cache or packed rows.

Shapes: B batch, H n_kv_head, T new positions, S all positions attended to, D head_size.
"""

from typing import Protocol

from torch import Tensor

Positions = slice | Tensor
"""Indices of new positions in their sequences: the same for all rows of a batch (slice), or per row (BT)."""


class AttentionContext(Protocol):
    """What a GPT needs to know about the positions of a forward pass.

    A pass calls `positions` and `mask` with the number of new positions, `extend` once per layer, and `advance` last.
    """

    length: int
    """Positions read before; with the new ones at most the model's block_size."""

    def positions(self, n_new: int, /) -> Positions:
        """Indices of the next `n_new` positions."""
        ...

    def mask(self, n_new: int, /) -> Tensor | None:
        """Attention mask, True where a new position may attend (TS or B1TS).

        None means that a new position attends to everything (T = 1), or causally to the new positions (length 0).
        """
        ...

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor, /) -> tuple[Tensor, Tensor]:
        """Take a layer's new keys and values; return all keys and values to attend to (BHSD)."""
        ...

    def advance(self, n_new: int, /) -> None:
        """Mark `n_new` positions as read, after all layers."""
        ...
