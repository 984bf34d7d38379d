"""Several short sequences in one row, none of which sees another.

Shapes: B rows, T positions, H heads, D head_size.
"""

import torch
from torch import Tensor

from groundling.model.cache import KVCache, Places


class Packed(KVCache):
    """Given to a GPT in place of a cache: it remembers nothing, and says who stands where and may see what.

    Args:
        numbers_BT: which sequence of its row each position belongs to; those of one sequence stand together.
    """

    def __init__(self, numbers_BT: Tensor) -> None:
        self.length = 0
        T = numbers_BT.size(1)
        here_T = torch.arange(T, device=numbers_BT.device)
        begins_BT = torch.ones_like(numbers_BT, dtype=torch.bool)
        begins_BT[:, 1:] = numbers_BT[:, 1:] != numbers_BT[:, :-1]
        start_BT = torch.where(begins_BT, here_T, 0).cummax(1).values
        self._places_BT = here_T - start_BT
        same_BTT = numbers_BT[:, :, None] == numbers_BT[:, None, :]
        self._mask_B1TT = (same_BTT & (here_T[:, None] >= here_T))[:, None]

    def places(self, n_new: int) -> Places:  # noqa: ARG002
        """Where each position stands in its own sequence (BT)."""
        return self._places_BT

    def mask(self, n_new: int) -> Tensor | None:  # noqa: ARG002
        """True where a position may look: at itself and earlier ones of its own sequence (B1TT)."""
        return self._mask_B1TT

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The keys and values as they are."""
        return k_BHTD, v_BHTD

    def advance(self, n_positions: int) -> None:
        """Nothing is kept."""
