"""Several short sequences in one row, none of which sees another; and several ways on from one beginning.

Shapes: B rows, T positions, N positions of them, C n_embd, H heads, D head_size, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from groundling.model.context import Positions
from groundling.model.gpt import GPT


class Layout(NamedTuple):
    """Who stands where in packed rows."""

    numbers_BT: Tensor
    """Which sequence of its row each position belongs to; those of one sequence stand together."""
    branches_BT: Tensor
    """0: of the sequence's beginning, which all that follows sees; n > 0: of its n-th way on, which no other sees. A
    sequence has a beginning of at least one position."""

    def to(self, device: torch.device) -> "Layout":
        """The same on another device."""
        return Layout(self.numbers_BT.to(device), self.branches_BT.to(device))


class PackedSequences:
    """Positions and attention mask of packed rows, for one forward pass. An `AttentionContext` without past positions.

    Args:
        layout: of the rows.
    """

    def __init__(self, layout: Layout) -> None:
        self.length = 0
        numbers_BT, branches_BT = layout
        here_T = torch.arange(numbers_BT.size(1), device=numbers_BT.device)
        new_sequence_BT = _changes(numbers_BT)
        start_BT = _last(new_sequence_BT, here_T)
        # A branch counts on from the end of the shared beginning, wherever it is in the row.
        fork_BT = _last((branches_BT == 0) | new_sequence_BT, here_T)
        branch_BT = _last(new_sequence_BT | _changes(branches_BT), here_T)
        shared_BT = fork_BT - start_BT + 1
        self._positions_BT = torch.where(branches_BT == 0, here_T - start_BT, here_T - branch_BT + shared_BT)
        seen_BTT = (branches_BT[:, None, :] == 0) | (branches_BT[:, :, None] == branches_BT[:, None, :])
        same_BTT = numbers_BT[:, :, None] == numbers_BT[:, None, :]
        self._mask_B1TT = (same_BTT & seen_BTT & (here_T[:, None] >= here_T))[:, None]

    def positions(self, _n_new: int) -> Positions:
        """Index of each position in its own sequence (BT)."""
        return self._positions_BT

    def mask(self, _n_new: int) -> Tensor | None:
        """True where a position may attend: itself and earlier positions of its own sequence (B1TT)."""
        return self._mask_B1TT

    def extend(self, _layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values unchanged: there are no past ones."""
        return k_BHTD, v_BHTD

    def advance(self, n_new: int) -> None:
        """Keep nothing."""


def logits_at(model: GPT, idx_BT: Tensor, layout: Layout, counted_BT: Tensor) -> Tensor:
    """The logits at some positions of packed sequences, in their order (NV): what is only read needs none.

    Of a prompt with its reply that is less than half; and logits of thousands of ids are what takes the most memory.

    Args:
        model: a GPT.
        idx_BT: rows of ids.
        layout: who stands where in them.
        counted_BT: True at N positions.
    """
    x_BTC = model.features(idx_BT, PackedSequences(layout))
    # By numbers, not by a mask, whose backward pass takes longer than what it saves.
    return model.lm_head(x_BTC.flatten(0, 1).index_select(0, counted_BT.flatten().nonzero()[:, 0]))  # type: ignore[no-any-return]


def _changes(values_BT: Tensor) -> Tensor:
    changes_BT = torch.ones_like(values_BT, dtype=torch.bool)
    changes_BT[:, 1:] = values_BT[:, 1:] != values_BT[:, :-1]
    return changes_BT


def _last(true_BT: Tensor, here_T: Tensor) -> Tensor:
    """The last position so far at which it was true."""
    return torch.where(true_BT, here_T, 0).cummax(1).values
