"""Seeded batches of token windows. Where a sample lies follows from the seed and the sample's number alone.

So the state is one number, resume is exact at any point, and the batch of a step is the same for any number of
ranks: each takes its own part of it.

Shapes: B sequences, T block_size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groundling.errors import require
from groundling.model.loss import IGNORE

Tokens = npt.NDArray[np.unsignedinteger]
Order = Literal["random", "epochs"]
DRAWS_AT_ONCE = 1024


class MicroBatch(Protocol):
    """The input of an objective: a module that maps its kind of micro-batch to a loss summed over the targets."""

    @property
    def n_targets(self) -> int:
        """Number of targets; the gradient is divided by their sum over all micro-batches and ranks."""
        ...

    def to(self, device: torch.device) -> "MicroBatch":
        """Copy to another device."""
        ...


class Feed(Protocol):
    """Where the steps of a training come from."""

    def next_step(self) -> Sequence[MicroBatch]:
        """The micro-batches of the next step that are this rank's."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Where we are."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where `state_dict` was taken."""
        ...


@dataclass(frozen=True)
class Batch:
    """Token ids, and for each position the id that comes next (or IGNORE)."""

    idx_BT: Tensor
    targets_BT: Tensor
    n_targets: int
    """How many targets count."""
    teacher_probs_BTV: Tensor | None = None
    """The teacher's distribution of each target; None: no teacher."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        if device.type == "cpu":
            return self
        probs_BTV = None if self.teacher_probs_BTV is None else self.teacher_probs_BTV.to(device)
        return Batch(self.idx_BT.to(device, non_blocking=True), self.targets_BT.to(device), self.n_targets, probs_BTV)


class RandomOffsets:
    """Windows that start anywhere, drawn with replacement, as in the lecture."""

    def __init__(self, n_tokens: int, block_size: int, seed: int, purpose: int = 0) -> None:
        self._n_starts = n_tokens - block_size
        self._seed, self._purpose = seed, purpose
        self._block, self._draws = -1, np.empty(0, np.int64)

    def __call__(self, sample: int) -> int:
        """The offset of sample number `sample`."""
        block, place = divmod(sample, DRAWS_AT_ONCE)
        if block != self._block:
            draws = counted_generator(self._seed, self._purpose, block).integers(0, self._n_starts, DRAWS_AT_ONCE)
            self._block, self._draws = block, draws
        return int(self._draws[place])


class ShuffledEpochs:
    """Windows side by side, each once an epoch, in a new order and from a new first offset in every epoch."""

    def __init__(self, n_tokens: int, block_size: int, seed: int) -> None:
        self._block_size, self._seed = block_size, seed
        # One window is given up, so that each epoch can start at another offset and meet other window borders.
        self.n_windows = max(1, (n_tokens - block_size) // block_size)
        self._n_shifts = min(block_size, n_tokens - self.n_windows * block_size)
        self._epoch, self._shift, self._order = -1, 0, np.empty(0, np.int64)

    def __call__(self, sample: int) -> int:
        """The offset of sample number `sample`."""
        epoch, place = divmod(sample, self.n_windows)
        if epoch != self._epoch:
            generator = counted_generator(self._seed, purpose=1, number=epoch)
            self._shift = int(generator.integers(0, self._n_shifts))
            self._epoch, self._order = epoch, generator.permutation(self.n_windows)
        return self._shift + int(self._order[place]) * self._block_size


def counted_generator(seed: int, purpose: int, number: int, part: int = 0) -> np.random.Generator:
    """A counter-based generator (Philox, Salmon et al. 2011): its draws follow from its key and counter alone.

    Purposes in use: 0 and 1 here, 2 the order of examples, 3 of prompts, 4 of a round's replies (`align`), 5 the
    windows on which the training loss is estimated (`evals`).
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, part, purpose, number]))


Teacher = Callable[[list[int], int], Tensor]
"""(offsets of windows, block_size) -> the distributions of their targets, probs_BTV."""


def windows(tokens: Tokens, offsets: list[int], block_size: int, teacher: Teacher | None = None) -> Batch:
    """A batch of the windows that start at `offsets`; the target of each position is the token after it."""
    places_BT = np.asarray(offsets)[:, None] + np.arange(block_size + 1)
    tokens_BT = torch.from_numpy(np.asarray(tokens)[places_BT].astype(np.int64))
    probs_BTV = None if teacher is None else teacher(offsets, block_size)
    return Batch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), len(offsets) * block_size, probs_BTV)


class Batches:
    """The batches of one run, from any of its steps on.

    Args:
        tokens: a one-dimensional array of token ids, memory-mapped or not.
        block_size: T.
        batch_size: sequences a step, over all ranks.
        micro_batch_size: sequences in one forward pass on one rank.
        order: "random" offsets, or shuffled "epochs" without replacement.
        seed: of the order.
        rank, world_size: which part of each batch is ours.
        teacher: gives the distributions of the targets; None: no teacher.

    Raises:
        ConfigError: the sizes do not divide each other, or the text is too short for a window.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        block_size: int,
        batch_size: int,
        micro_batch_size: int | None = None,
        order: Order = "random",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        teacher: Teacher | None = None,
    ) -> None:
        require(
            len(tokens) > block_size,
            f"{len(tokens)} tokens are too few for one window; a block_size of {block_size} needs {block_size + 1}",
        )
        require(
            batch_size % world_size == 0,
            f"batch_size {batch_size} does not divide over {world_size} ranks; make it a multiple of {world_size}",
        )
        self._share = batch_size // world_size
        self._micro = min(micro_batch_size or self._share, self._share)
        require(
            self._share % self._micro == 0,
            f"micro_batch_size {self._micro} does not divide the {self._share} sequences of a rank's step; change one",
        )
        self._tokens, self._block_size, self._batch_size, self._rank = tokens, block_size, batch_size, rank
        offsets = RandomOffsets if order == "random" else ShuffledEpochs
        self._offset_of = offsets(len(tokens), block_size, seed)
        self._teacher = teacher
        self._next_sample = 0

    def next_step(self) -> list[Batch]:
        """The micro-batches of the next step that are this rank's."""
        first = self._next_sample + self._rank * self._share
        self._next_sample += self._batch_size
        starts = range(first, first + self._share, self._micro)
        groups = [[self._offset_of(sample) for sample in range(start, start + self._micro)] for start in starts]
        return [windows(self._tokens, offsets, self._block_size, self._teacher) for offsets in groups]

    def state_dict(self) -> dict[str, int]:
        """Where we are: the number of the next sample."""
        return {"next_sample": self._next_sample}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where `state_dict` was taken, with any number of ranks."""
        self._next_sample = int(state["next_sample"])


def whole_split(
    tokens: Tokens, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """A split in consecutive windows: every token but the first is a target exactly once, on one of the ranks.

    The last window is filled up with IGNORE.
    """
    starts = range(0, len(tokens) - 1, block_size)
    groups = [starts[i : i + batch_size] for i in range(0, len(starts), batch_size)]
    for group in groups[rank::world_size]:
        piece = np.asarray(tokens[group[0] : group[-1] + block_size + 1]).astype(np.int64)
        idx_N = np.zeros(len(group) * block_size, np.int64)
        targets_N = np.full(len(group) * block_size, IGNORE, np.int64)
        idx_N[: len(piece) - 1], targets_N[: len(piece) - 1] = piece[:-1], piece[1:]
        shape = (len(group), block_size)
        yield Batch(torch.from_numpy(idx_N.reshape(shape)), torch.from_numpy(targets_N.reshape(shape)), len(piece) - 1)
