"""Shuffled epochs of examples of any kind; the examples of a step follow from the seed and its number."""

from collections.abc import Callable, Sequence

import numpy as np

from groundling.data.batches import MicroBatch, counted_generator
from groundling.errors import DataError, require
from groundling.system import distributed


class ShuffledIndices:
    """The indices below n in shuffled epochs.

    Args:
        n: number of examples.
        seed: seed of the order.
        purpose: separates the shuffles of one run; see `counted_generator`.
    """

    def __init__(self, n: int, seed: int, purpose: int) -> None:
        self.n, self._seed, self._purpose = n, seed, purpose
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, place: int) -> int:
        """The index at a position counted over all epochs."""
        epoch, inside = divmod(place, self.n)
        if epoch != self._epoch:
            generator = counted_generator(self._seed, self._purpose, epoch)
            self._epoch, self._order = epoch, generator.permutation(self.n)
        return int(self._order[inside])


class ExampleFeed:
    """Steps of `batch_size` examples; each rank makes micro-batches of its share.

    Args:
        n_examples: number of examples.
        batch_size: examples per step, over all ranks.
        make: indices of examples -> at least one micro-batch.
        seed: seed of the order.

    Raises:
        ConfigError: the batch does not divide over the ranks.
        DataError: there are no examples.
    """

    def __init__(
        self, n_examples: int, batch_size: int, make: Callable[[list[int]], Sequence[MicroBatch]], seed: int
    ) -> None:
        if n_examples == 0:
            raise DataError("no example is left to train on; the counts above say why")
        size = distributed.world_size()
        require(
            batch_size % size == 0,
            f"batch_size {batch_size} does not divide over {size} ranks; make it a multiple of {size}",
        )
        self._batch_size, self._make = batch_size, make
        self._example = ShuffledIndices(n_examples, seed, purpose=2)
        self._next = 0

    def next_step(self) -> Sequence[MicroBatch]:
        """This rank's micro-batches of the next step."""
        share = self._batch_size // distributed.world_size()
        first = self._next + distributed.rank() * share
        self._next += self._batch_size
        return self._make([self._example(number) for number in range(first, first + share)])

    def n_steps(self, epochs: float) -> int:
        """Number of steps in `epochs` epochs, rounded; at least 1."""
        return max(1, round(self._example.n * epochs / self._batch_size))

    def state_dict(self) -> dict[str, int]:
        """The position in the data."""
        return {"next_sample": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a `state_dict`."""
        self._next = int(state["next_sample"])
