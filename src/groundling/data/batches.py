"""Seeded batches of token windows.

The seed and a sample's number determine its window. So the state is one number, training resumes exactly at any step,
and a step has the same batch for any number of ranks, each of which takes its own part.

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
"""Offsets drawn from one generator; a part of the order that seeds define."""


class MicroBatch(Protocol):
    """The input of an objective, which returns its loss summed over the targets."""

    @property
    def n_targets(self) -> int:
        """Number of targets; the gradient is divided by their sum over all micro-batches and ranks."""
        ...

    def to(self, device: torch.device) -> "MicroBatch":
        """Copy to another device."""
        ...


class Feed(Protocol):
    """Source of the micro-batches of each training step."""

    def next_step(self) -> Sequence[MicroBatch]:
        """This rank's micro-batches of the next step."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Position in the data."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore a position from `state_dict`."""
        ...


@dataclass(frozen=True)
class Batch:
    """Windows of token ids and their targets: the next id at each position, or IGNORE."""

    idx_BT: Tensor
    targets_BT: Tensor
    n_targets: int
    """Number of targets other than IGNORE."""
    teacher_probs_BTV: Tensor | None = None
    """A teacher's distribution of each target, for distillation."""

    def to(self, device: torch.device) -> "Batch":
        """Copy to another device."""
        if device.type == "cpu":
            return self
        teacher_probs_BTV = None if self.teacher_probs_BTV is None else self.teacher_probs_BTV.to(device)
        return Batch(
            self.idx_BT.to(device, non_blocking=True), self.targets_BT.to(device), self.n_targets, teacher_probs_BTV
        )


class RandomOffsets:
    """Offsets of windows drawn at random with replacement, as in the lecture."""

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
    """Offsets of adjacent windows, each once per epoch; every epoch has a new order and a new first offset."""

    def __init__(self, n_tokens: int, block_size: int, seed: int) -> None:
        self._block_size, self._seed = block_size, seed
        # One window fewer than would fit, so each epoch can start at another offset and cut the text elsewhere.
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
    """A counter-based generator (Philox, Salmon et al. 2011): key and counter determine its draws.

    Purposes in use: 0 and 1 here; 2 order of examples, 3 order of prompts, 4 order of a round's replies (`align`);
    5 windows for estimating the training loss (`evals`).
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, part, purpose, number]))


Teacher = Callable[[list[int], int], Tensor]
"""(offsets of windows, block_size) -> distributions of their targets, probs_BTV."""


def windows(tokens: Tokens, offsets: list[int], block_size: int, teacher: Teacher | None = None) -> Batch:
    """Make a batch of the windows that start at `offsets`; the target of each position is the next token."""
    positions_BT = np.asarray(offsets)[:, None] + np.arange(block_size + 1)
    tokens_BT = torch.from_numpy(np.asarray(tokens)[positions_BT].astype(np.int64))
    teacher_probs_BTV = None if teacher is None else teacher(offsets, block_size)
    return Batch(
        tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), len(offsets) * block_size, teacher_probs_BTV
    )


class Batches:
    """Batches of a training run.

    Args:
        tokens: a one-dimensional array of token ids, memory-mapped or not.
        block_size: T.
        batch_size: sequences per step, over all ranks.
        micro_batch_size: sequences in one forward pass on one rank.
        order: "random" offsets, or shuffled "epochs" without replacement.
        seed: seed of the order.
        rank: rank of this process, which selects its part of each batch.
        world_size: number of ranks.
        teacher: gives the distributions for distillation; None: none.

    Raises:
        ConfigError: a size is not a multiple of another, or the text is too short for a window.
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
        """This rank's micro-batches of the next step."""
        first = self._next_sample + self._rank * self._share
        self._next_sample += self._batch_size
        starts = range(first, first + self._share, self._micro)
        groups = [[self._offset_of(sample) for sample in range(start, start + self._micro)] for start in starts]
        return [windows(self._tokens, offsets, self._block_size, self._teacher) for offsets in groups]

    def state_dict(self) -> dict[str, int]:
        """Number of the next sample."""
        return {"next_sample": self._next_sample}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore a position from `state_dict`, with any number of ranks."""
        self._next_sample = int(state["next_sample"])


def whole_split(
    tokens: Tokens, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield a split as consecutive windows: every token but the first is a target exactly once, on one rank.

    The last window is padded with IGNORE.
    """
    starts = range(0, len(tokens) - 1, block_size)
    groups = [starts[i : i + batch_size] for i in range(0, len(starts), batch_size)]
    for group in groups[rank::world_size]:
        tokens_N = np.asarray(tokens[group[0] : group[-1] + block_size + 1]).astype(np.int64)
        idx_N = np.zeros(len(group) * block_size, np.int64)
        targets_N = np.full(len(group) * block_size, IGNORE, np.int64)
        n_targets = len(tokens_N) - 1
        idx_N[:n_targets], targets_N[:n_targets] = tokens_N[:-1], tokens_N[1:]
        shape = (len(group), block_size)
        yield Batch(torch.from_numpy(idx_N.reshape(shape)), torch.from_numpy(targets_N.reshape(shape)), n_targets)
