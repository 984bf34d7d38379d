"""Sequences of any lengths in rows of one width, so that little of a batch is padding; none sees another.

A sequence of n ids takes n positions. The target of each is its next id; the last has none, but what is read there
may be scored. Values that belong to positions go into rows and come back by the same plan.

Shapes: B rows, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from groundling.model.loss import IGNORE

Exchange = tuple[list[int], list[int]]
"""A prompt and what was said to it, as ids."""


class Seat(NamedTuple):
    """Where a sequence stands."""

    row: int
    start: int


@dataclass(frozen=True)
class Packing:
    """A plan of who stands where."""

    seats: list[Seat]
    """Of each sequence."""
    lengths: list[int]
    shape: tuple[int, int]

    def spread(self, values: Sequence[Tensor | Sequence[float]], fill: float, dtype: torch.dtype) -> Tensor:
        """One value for each position of each sequence, in rows (BT); `fill` elsewhere.

        Args:
            values: of each sequence, from its first position on; there may be fewer values than positions.
            fill: for padding, and where values are missing.
            dtype: of the result.
        """
        rows_BT = torch.full(self.shape, fill, dtype=dtype)
        for (row, start), length, each in zip(self.seats, self.lengths, values, strict=True):
            assert len(each) <= length
            rows_BT[row, start : start + len(each)] = torch.as_tensor(each, dtype=dtype)
        return rows_BT

    def collect(self, rows_BT: Tensor) -> list[Tensor]:
        """The values of each sequence's positions: what `spread` has put there."""
        return [
            rows_BT[row, start : start + length] for (row, start), length in zip(self.seats, self.lengths, strict=True)
        ]


@dataclass(frozen=True)
class Rows:
    """Packed sequences as a model reads them."""

    idx_BT: Tensor
    numbers_BT: Tensor
    """Which sequence of its row a position belongs to; padding is the last."""
    targets_BT: Tensor
    """The next id of the same sequence, or IGNORE."""
    packing: Packing

    def said_targets(self, said: Sequence[Sequence[bool]]) -> Tensor:
        """The targets that were said (BT), IGNORE for all others: `said` tells it of each sequence's ids."""
        said_BT = self.packing.spread([flags[1:] for flags in said], 0, torch.bool)
        return torch.where(said_BT, self.targets_BT, IGNORE)


def plan(lengths: Sequence[int], width: int) -> Packing:
    """Seat sequences, the longest first, each in the fullest row that still has room (best fit).

    Raises:
        ValueError: one is longer than a row.
    """
    if max(lengths, default=0) > width:
        raise ValueError(f"a sequence of {max(lengths)} ids does not fit into a row of {width}")
    taken: list[int] = []
    seats = [Seat(0, 0)] * len(lengths)
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        fits = [row for row in range(len(taken)) if taken[row] + length <= width]
        if fits:
            row = max(fits, key=taken.__getitem__)
        else:
            row = len(taken)
            taken.append(0)
        seats[number] = Seat(row, taken[row])
        taken[row] += length
    # A batch is no wider than its fullest row.
    return Packing(seats, list(lengths), (len(taken), max(taken, default=0)))


def pack(sequences: Sequence[Sequence[int]], width: int) -> Rows:
    """Put sequences into rows of at most `width` positions.

    Raises:
        ValueError: one is longer than a row.
    """
    packing = plan([len(ids) for ids in sequences], width)
    order = sorted(range(len(sequences)), key=packing.seats.__getitem__)
    number_of = {number: place for place, number in enumerate(order)}
    return Rows(
        packing.spread(sequences, 0, torch.long),
        packing.spread([[number_of[i]] * len(ids) for i, ids in enumerate(sequences)], len(sequences), torch.long),
        packing.spread([ids[1:] for ids in sequences], IGNORE, torch.long),
        packing,
    )


def groups_of_rows(lengths: Sequence[int], width: int, n_rows: int) -> list[list[int]]:
    """Cut sequences, in their order, into groups that each fill about `n_rows` rows and never more."""
    groups: list[list[int]] = []
    for number, length in enumerate(lengths):
        last = groups[-1] if groups else []
        n_taken = sum(lengths[i] for i in last)
        crowded = n_taken + length > n_rows * width
        if not groups or crowded or plan([*(lengths[i] for i in last), length], width).shape[0] > n_rows:
            groups.append([number])
        else:
            last.append(number)
    return groups


def groups_of_exchanges(exchanges: Sequence[Exchange], width: int, n_rows: int) -> list[list[int]]:
    """`groups_of_rows` for prompts with what was said to them."""
    return groups_of_rows([len(prompt) + len(said) for prompt, said in exchanges], width, n_rows)


def groups_of_size(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Cut what stays together, in its order, into groups of at most `most` ids in all; a larger one is alone."""
    groups: list[list[int]] = []
    n_taken = 0
    for number, size in enumerate(sizes):
        if not groups or n_taken + size > most:
            groups.append([])
            n_taken = 0
        groups[-1].append(number)
        n_taken += size
    return groups
