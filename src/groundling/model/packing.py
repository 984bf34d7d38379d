"""Packing: several sequences in one row, to reduce padding; none attends to another.

A sequence of n ids takes n positions. The target of each position is the next id; the last one has no target, but its
output may be scored. Replies to one prompt share it: the prompt is computed once, and each reply attends to it and
itself. `packer.py` decides which sequences make up a micro-batch.

Shapes: B rows, T positions, N of them that count, C n_embd, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from groundling.model.context import Positions
from groundling.model.gpt import GPT
from groundling.model.loss import IGNORE

Exchange = tuple[list[int], list[int]]
"""A prompt and a reply, as ids."""


class Layout(NamedTuple):
    """Which sequence each position of packed rows belongs to."""

    sequences_BT: Tensor
    """Number of the sequence in its row; its positions are contiguous."""
    branches_BT: Tensor
    """0: the beginning of the sequence, at least one position, which all its branches attend to. n > 0: the n-th branch
    after it, which no other branch attends to."""

    def to(self, device: torch.device) -> "Layout":
        """Copy to another device."""
        return Layout(self.sequences_BT.to(device), self.branches_BT.to(device))


class PackedSequences:
    """Positions and attention mask of packed rows, for one forward pass. An `AttentionContext` without past positions.

    Args:
        layout: of the rows.
    """

    def __init__(self, layout: Layout) -> None:
        self.length = 0
        sequences_BT, branches_BT = layout
        here_T = torch.arange(sequences_BT.size(1), device=sequences_BT.device)
        new_sequence_BT = _changes(sequences_BT)
        start_BT = _last(new_sequence_BT, here_T)
        # A branch counts on from the end of the shared beginning, wherever it is in the row.
        fork_BT = _last((branches_BT == 0) | new_sequence_BT, here_T)
        branch_BT = _last(new_sequence_BT | _changes(branches_BT), here_T)
        shared_BT = fork_BT - start_BT + 1
        self._positions_BT = torch.where(branches_BT == 0, here_T - start_BT, here_T - branch_BT + shared_BT)
        seen_BTT = (branches_BT[:, None, :] == 0) | (branches_BT[:, :, None] == branches_BT[:, None, :])
        same_BTT = sequences_BT[:, :, None] == sequences_BT[:, None, :]
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
    """Logits at some positions of packed sequences, in their order (NV).

    Less than half of a prompt and its reply needs logits, which take the most memory where a vocabulary is large.

    Args:
        model: a GPT.
        idx_BT: rows of ids.
        layout: of the rows.
        counted_BT: True at N positions.
    """
    x_BTC = model.features(idx_BT, PackedSequences(layout))
    # index_select: the backward pass of a boolean mask costs more than it saves.
    return model.lm_head(x_BTC.flatten(0, 1).index_select(0, counted_BT.flatten().nonzero()[:, 0]))  # type: ignore[no-any-return]


def _changes(values_BT: Tensor) -> Tensor:
    changes_BT = torch.ones_like(values_BT, dtype=torch.bool)
    changes_BT[:, 1:] = values_BT[:, 1:] != values_BT[:, :-1]
    return changes_BT


def _last(true_BT: Tensor, here_T: Tensor) -> Tensor:
    """The last position so far at which `true_BT` is True."""
    return torch.where(true_BT, here_T, 0).cummax(1).values


class Placement(NamedTuple):
    """Row and first position of a sequence."""

    row: int
    start: int


@dataclass(frozen=True)
class Packing:
    """Placement of sequences in packed rows."""

    placements: list[Placement]
    lengths: list[int]
    shape: tuple[int, int]

    def spread(self, values: Sequence[Tensor | Sequence[float]], fill: float, dtype: torch.dtype) -> Tensor:
        """Put one value per position of each sequence into rows (BT).

        Args:
            values: of each sequence, from its first position on; they may be fewer than its positions.
            fill: for padding and missing values.
            dtype: of the result.
        """
        rows_BT = torch.full(self.shape, fill, dtype=dtype)
        for (row, start), length, each in zip(self.placements, self.lengths, values, strict=True):
            assert len(each) <= length
            rows_BT[row, start : start + len(each)] = torch.as_tensor(each, dtype=dtype)
        return rows_BT

    def collect(self, rows_BT: Tensor) -> list[Tensor]:
        """The values at each sequence's positions: the inverse of `spread`."""
        return [
            rows_BT[row, start : start + length]
            for (row, start), length in zip(self.placements, self.lengths, strict=True)
        ]


@dataclass(frozen=True)
class Rows:
    """Packed sequences as model inputs."""

    idx_BT: Tensor
    layout: Layout
    """Padding is the last sequence."""
    targets_BT: Tensor
    """The next id of the same sequence, or IGNORE."""
    packing: Packing

    def masked_targets(self, loss_masks: Sequence[Sequence[bool]]) -> Tensor:
        """The targets that a loss mask includes (BT), IGNORE elsewhere.

        Args:
            loss_masks: of each sequence; True for each id to train on.
        """
        mask_BT = self.packing.spread([mask[1:] for mask in loss_masks], 0, torch.bool)
        return torch.where(mask_BT, self.targets_BT, IGNORE)


def plan(lengths: Sequence[int], width: int) -> Packing:
    """Assign sequences to rows by best fit decreasing: the longest first, each to the fullest row with room.

    Raises:
        ValueError: a sequence is longer than `width`.
    """
    if max(lengths, default=0) > width:
        raise ValueError(f"a sequence of {max(lengths)} ids does not fit into a row of {width}")
    taken: list[int] = []
    placements = [Placement(0, 0)] * len(lengths)
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        fits = [row for row in range(len(taken)) if taken[row] + length <= width]
        if fits:
            row = max(fits, key=taken.__getitem__)
        else:
            row = len(taken)
            taken.append(0)
        placements[number] = Placement(row, taken[row])
        taken[row] += length
    # A batch is no wider than its fullest row.
    return Packing(placements, list(lengths), (len(taken), max(taken, default=0)))


def pack(sequences: Sequence[Sequence[int]], width: int) -> Rows:
    """Pack sequences into rows of at most `width` positions.

    Raises:
        ValueError: a sequence is longer than `width`.
    """
    packing = plan([len(ids) for ids in sequences], width)
    order = sorted(range(len(sequences)), key=packing.placements.__getitem__)
    number_of = {number: place for place, number in enumerate(order)}
    numbers = [[number_of[i]] * len(ids) for i, ids in enumerate(sequences)]
    sequences_BT = packing.spread(numbers, len(sequences), torch.long)
    return Rows(
        packing.spread(sequences, 0, torch.long),
        Layout(sequences_BT, torch.zeros_like(sequences_BT)),
        packing.spread([ids[1:] for ids in sequences], IGNORE, torch.long),
        packing,
    )


def pack_exchanges(exchanges: Sequence[Exchange], width: int) -> Rows:
    """Pack prompts and replies; neighbouring replies to one prompt share it as far as they fit into a row.

    The prompt's last id is repeated before each reply, since the reply's first id is predicted there. The packing's
    sequences are these: one id of the prompt, and the reply. Targets are the reply's ids.

    Raises:
        ValueError: an exchange is longer than `width`.
    """
    trees = prompt_trees(exchanges, width)
    packing = plan([tree_size(exchanges, tree) for tree in trees], width)
    placements = [Placement(0, 0)] * len(exchanges)
    idx_BT = torch.zeros(packing.shape, dtype=torch.long)
    sequences_BT = torch.full(packing.shape, len(trees), dtype=torch.long)
    branches_BT = torch.zeros(packing.shape, dtype=torch.long)
    for number, (tree, (row, start)) in enumerate(zip(trees, packing.placements, strict=True)):
        shared, place = exchanges[tree[0]][0][:-1], start
        parts = [shared] if shared else []
        for i in tree:
            placements[i] = Placement(row, start + sum(map(len, parts)))
            prompt, reply = exchanges[i]
            parts.append([prompt[-1], *reply])
        for branch, ids in enumerate(parts):
            here = slice(place, place := place + len(ids))
            idx_BT[row, here] = torch.tensor(ids, dtype=torch.long)
            sequences_BT[row, here], branches_BT[row, here] = number, branch
    replies = Packing(placements, [1 + len(reply) for _, reply in exchanges], packing.shape)
    targets_BT = replies.spread([reply for _, reply in exchanges], IGNORE, torch.long)
    return Rows(idx_BT, Layout(sequences_BT, branches_BT), targets_BT, replies)


def prompt_trees(exchanges: Sequence[Exchange], width: int) -> list[list[int]]:
    """Group the indices of neighbouring exchanges that share a prompt and fit into one row.

    A prompt of one id has nothing to share.
    """
    trees: list[list[int]] = []
    for _, group in groupby(range(len(exchanges)), key=lambda i: exchanges[i][0]):
        numbers = list(group)
        shared = len(exchanges[numbers[0]][0]) - 1
        sizes = [1 + len(exchanges[i][1]) for i in numbers]
        parts = groups_of_size(sizes, width - shared if shared else 0)
        trees += [[numbers[place] for place in part] for part in parts]
    return trees


def tree_size(exchanges: Sequence[Exchange], tree: Sequence[int]) -> int:
    """Positions that a prompt and its replies take in a row."""
    return len(exchanges[tree[0]][0]) - 1 + sum(1 + len(exchanges[i][1]) for i in tree)


def groups_of_size(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Cut items, in order, into groups of at most `limit` positions in all; a larger item is a group of its own."""
    groups: list[list[int]] = []
    n_taken = 0
    for number, size in enumerate(sizes):
        if not groups or n_taken + size > limit:
            groups.append([])
            n_taken = 0
        groups[-1].append(number)
        n_taken += size
    return groups
