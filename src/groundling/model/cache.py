"""The keys and values of the positions a model has read, so that a new token costs one position and not all.

Shapes: L n_layer, B batch, H n_kv_head, S block_size or the positions so far, T new positions, D head_size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from groundling.model.gpt import GPTConfig


class KVCache:
    """Room for one window of `block_size` positions, allocated once.

    A forward pass hands over each layer's new keys and values with `extend`, and then calls `advance` once.
    """

    def __init__(
        self,
        config: "GPTConfig",
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layer, batch_size, config.kv_heads(), config.block_size, config.head_width())
        self.k_LBHSD = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBHSD = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def room(self) -> int:
        """How many positions still fit."""
        return self.k_LBHSD.size(3) - self.length

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return views of all of its keys and values so far (BHSD)."""
        end = self.length + k_BHTD.size(2)
        self.k_LBHSD[layer, :, :, self.length : end] = k_BHTD
        self.v_LBHSD[layer, :, :, self.length : end] = v_BHTD
        return self.k_LBHSD[layer, :, :, :end], self.v_LBHSD[layer, :, :, :end]

    def advance(self, n_positions: int) -> None:
        """Count `n_positions` as read; every layer has stored them."""
        self.length += n_positions

    def clear(self) -> None:
        """Forget everything; the memory is used again."""
        self.length = 0
