"""Sequences of any lengths in rows of one width, so that little of a batch is padding; none sees another.

A sequence of n ids takes n positions. The target of each is its next id; the last has none, but what is read there
may be scored. Values that belong to positions go into rows and come back by the same plan. Replies to one prompt share
it: it is read once, and each reply sees it and itself.

Shapes: B rows, T positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from groundling.model.loss import IGNORE
from groundling.model.packed import Layout

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
    layout: Layout
    """Which sequence of its row a position belongs to; padding is the last."""
    targets_BT: Tensor
    """The next id of the same sequence, or IGNORE."""
    packing: Packing

    def said_targets(self, said: Sequence[Sequence[bool]]) -> Tensor:
        """The targets that were said (BT), IGNORE for all others: `said` tells it of each sequence's ids."""
        said_BT = self.packing.spread([flags[1:] for flags in said], 0, torch.bool)
        return torch.where(said_BT, self.targets_BT, IGNORE)


MIN_WIDTH = 256
"""Of rows: attention over so few positions costs little beside all else, and short examples leave less padding."""
WIDTH_STEP = 64
EXAMPLES_ALIKE = 64
"""Examples whose rows have one width: a single long one makes only those of its neighbours wider."""


def row_width(sizes: Sequence[int], max_length: int) -> int:
    """How wide rows for examples of these sizes are: as wide as the longest, not as wide as the context.

    Attention in a row costs with the square of its width, whatever stands in it.
    """
    longest = max(sizes, default=0)
    return min(max_length, max(MIN_WIDTH, -(-longest // WIDTH_STEP) * WIDTH_STEP))


def alike(sizes: Sequence[int], max_length: int) -> Iterator[tuple[range, int]]:
    """The numbers of examples, in their order and some at a time, each with the width of their rows."""
    n_alike = len(sizes) if row_width(sizes, max_length) <= MIN_WIDTH else EXAMPLES_ALIKE
    for first in range(0, len(sizes), max(1, n_alike)):
        numbers = range(first, min(first + n_alike, len(sizes)))
        yield numbers, row_width([sizes[number] for number in numbers], max_length)


def sizes_of_exchanges(exchanges: Sequence[Exchange]) -> list[int]:
    """How wide a row each exchange asks for: replies to one prompt share it, if they fit into about two of them."""
    sizes: list[int] = []
    for prompt, group in groupby(exchanges, key=lambda exchange: exchange[0]):
        said = [len(reply) for _, reply in group]
        longest, together = len(prompt) + max(said), len(prompt) - 1 + sum(1 + n for n in said)
        sizes += [max(longest, min(together, 2 * longest))] * len(said)
    return sizes


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
    numbers = [[number_of[i]] * len(ids) for i, ids in enumerate(sequences)]
    numbers_BT = packing.spread(numbers, len(sequences), torch.long)
    return Rows(
        packing.spread(sequences, 0, torch.long),
        Layout(numbers_BT, torch.zeros_like(numbers_BT)),
        packing.spread([ids[1:] for ids in sequences], IGNORE, torch.long),
        packing,
    )


def pack_exchanges(exchanges: Sequence[Exchange], width: int) -> Rows:
    """Put replies into rows, those to one prompt behind it as far as they fit; a reply's targets are what it says.

    The prompt's last id stands before each reply, since that is where its first id is guessed. The packing's sequences
    are these: one id of the prompt, and the reply.

    Raises:
        ValueError: an exchange is longer than a row.
    """
    trees = _trees(exchanges, width)
    packing = plan([_tree_size(exchanges, tree) for tree in trees], width)
    seats = [Seat(0, 0)] * len(exchanges)
    idx_BT = torch.zeros(packing.shape, dtype=torch.long)
    numbers_BT = torch.full(packing.shape, len(trees), dtype=torch.long)
    branches_BT = torch.zeros(packing.shape, dtype=torch.long)
    for number, (tree, (row, start)) in enumerate(zip(trees, packing.seats, strict=True)):
        shared, place = exchanges[tree[0]][0][:-1], start
        pieces = [shared] if shared else []
        for i in tree:
            seats[i] = Seat(row, start + sum(map(len, pieces)))
            pieces.append(_branch(exchanges[i]))
        for branch, ids in enumerate(pieces):
            here = slice(place, place := place + len(ids))
            idx_BT[row, here] = torch.tensor(ids, dtype=torch.long)
            numbers_BT[row, here], branches_BT[row, here] = number, branch
    said = Packing(seats, [1 + len(said) for _, said in exchanges], packing.shape)
    targets_BT = said.spread([said for _, said in exchanges], IGNORE, torch.long)
    return Rows(idx_BT, Layout(numbers_BT, branches_BT), targets_BT, said)


def _branch(exchange: Exchange) -> list[int]:
    prompt, said = exchange
    return [prompt[-1], *said]


def _trees(exchanges: Sequence[Exchange], width: int) -> list[list[int]]:
    """The numbers of exchanges that share a prompt and a row: neighbours, as many as fit.

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


def packed_size(exchanges: Sequence[Exchange], width: int) -> int:
    """How many positions exchanges take in rows, padding aside."""
    return sum(_tree_size(exchanges, tree) for tree in _trees(exchanges, width))


def _tree_size(exchanges: Sequence[Exchange], tree: Sequence[int]) -> int:
    return len(exchanges[tree[0]][0]) - 1 + sum(1 + len(exchanges[i][1]) for i in tree)


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


def groups_of_exchanges(exchanges: Sequence[Exchange], max_length: int, n_rows: int) -> Iterator[tuple[list[int], int]]:
    """Cut prompts with what was said to them, in their order, into groups that fill at most `n_rows` rows, each with
    the rows' width.

    Args:
        exchanges: N.
        max_length: the most ids of an exchange.
        n_rows: of a group.
    """
    for numbers, width in alike(sizes_of_exchanges(exchanges), max_length):
        some = exchanges[numbers.start : numbers.stop]
        trees = _trees(some, width)
        for group in groups_of_rows([_tree_size(some, tree) for tree in trees], width, n_rows):
            yield [numbers[i] for number in group for i in trees[number]], width


def groups_of_trees(
    together: Sequence[Sequence[Exchange]], max_length: int, n_rows: int
) -> list[tuple[list[int], int]]:
    """Cut what is compared, in its order, into groups that fill about `n_rows` rows, each with the rows' width.

    Args:
        together: exchanges of each number; they stay in one group.
        max_length: the most ids of an exchange.
        n_rows: of a group.
    """
    asked = [max(sizes_of_exchanges(exchanges)) for exchanges in together]
    return [
        ([numbers[i] for i in group], width)
        for numbers, width in alike(asked, max_length)
        for group in groups_of_size([packed_size(together[n], width) for n in numbers], n_rows * width)
    ]


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
