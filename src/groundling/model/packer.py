"""Group examples into micro-batches of packed rows, and choose the width of the rows.

Groups keep the order of the examples, so a step depends on the seed only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from groundling.model.packing import Exchange, groups_of_size, plan, prompt_trees, tree_size

MIN_WIDTH = 256
"""Minimum row width: attention over so few positions is cheap, and short examples leave less padding."""
WIDTH_STEP = 64
"""Row widths are multiples of this."""
EXAMPLES_ALIKE = 64
"""Consecutive examples that share a row width, so that a long one widens the rows of its neighbours only."""

Group = tuple[list[int], int]
"""Indices of examples in one micro-batch, and the width of its rows."""


@dataclass(frozen=True)
class Packer:
    """Cuts examples into micro-batches of at most `max_rows` rows, no wider than their examples need."""

    max_length: int
    """Ids of the longest example, and so the widest row."""
    max_rows: int

    def group_sequences(self, lengths: Sequence[int]) -> Iterator[Group]:
        """Group sequences of these lengths."""
        for numbers, width in self.widths(lengths):
            for group in groups_of_rows([lengths[number] for number in numbers], width, self.max_rows):
                yield [numbers[i] for i in group], width

    def group_exchanges(self, exchanges: Sequence[Exchange]) -> Iterator[Group]:
        """Group prompts and replies; neighbours that share a prompt share its positions."""
        for numbers, width in self.widths(exchange_sizes(exchanges)):
            some = exchanges[numbers.start : numbers.stop]
            trees = prompt_trees(some, width)
            for group in groups_of_rows([tree_size(some, tree) for tree in trees], width, self.max_rows):
                yield [numbers[i] for number in group for i in trees[number]], width

    def group_comparisons(self, comparisons: Sequence[Sequence[Exchange]]) -> Iterator[Group]:
        """Group sets of exchanges that must stay in one micro-batch; about `max_rows` rows each."""
        sizes = [max(exchange_sizes(exchanges)) for exchanges in comparisons]
        for numbers, width in self.widths(sizes):
            packed = [packed_size(comparisons[number], width) for number in numbers]
            for group in groups_of_size(packed, self.max_rows * width):
                yield [numbers[i] for i in group], width

    def widths(self, sizes: Sequence[int]) -> Iterator[tuple[range, int]]:
        """Cut examples, in order, into runs of indices that share a row width."""
        n_alike = len(sizes) if self.row_width(sizes) <= MIN_WIDTH else EXAMPLES_ALIKE
        for first in range(0, len(sizes), max(1, n_alike)):
            numbers = range(first, min(first + n_alike, len(sizes)))
            yield numbers, self.row_width([sizes[number] for number in numbers])

    def row_width(self, sizes: Sequence[int]) -> int:
        """Row width for examples of these sizes: that of the longest, since attention is quadratic in the width."""
        longest = max(sizes, default=0)
        return min(self.max_length, max(MIN_WIDTH, -(-longest // WIDTH_STEP) * WIDTH_STEP))


def exchange_sizes(exchanges: Sequence[Exchange]) -> list[int]:
    """Row width for each exchange: room for its neighbours with the same prompt, up to twice the longest."""
    sizes: list[int] = []
    for prompt, group in groupby(exchanges, key=lambda exchange: exchange[0]):
        lengths = [len(reply) for _, reply in group]
        longest, together = len(prompt) + max(lengths), len(prompt) - 1 + sum(1 + n for n in lengths)
        sizes += [max(longest, min(together, 2 * longest))] * len(lengths)
    return sizes


def packed_size(exchanges: Sequence[Exchange], width: int) -> int:
    """Positions that exchanges take in rows of `width`, without padding."""
    return sum(tree_size(exchanges, tree) for tree in prompt_trees(exchanges, width))


def groups_of_rows(lengths: Sequence[int], width: int, max_rows: int) -> list[list[int]]:
    """Cut sequences, in order, into groups that each pack into at most `max_rows` rows."""
    groups: list[list[int]] = []
    for number, length in enumerate(lengths):
        last = groups[-1] if groups else []
        n_taken = sum(lengths[i] for i in last)
        crowded = n_taken + length > max_rows * width
        if not groups or crowded or plan([*(lengths[i] for i in last), length], width).shape[0] > max_rows:
            groups.append([number])
        else:
            last.append(number)
    return groups
