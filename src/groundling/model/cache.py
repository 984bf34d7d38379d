"""The keys and values of the positions a model has read, so that a new token costs one position and not all.

Memory follows use. Each slot has its own, which doubles when it is full, up to the slot's limit; what it holds is
copied bit by bit. A window of some ten thousand positions can take gigabytes, and most texts fill little of theirs.

Shapes: L n_layer, N slots, B batch, H n_kv_head, S positions that a slot has memory for, or the positions so far, T new
positions, D head_size; 2: keys, then values.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from groundling.model.config import GPTConfig

LINE_BYTES = 64
FIRST_POSITIONS = 256
"""That a slot gets memory for at first: to grow from less costs more than it saves."""
PART = 16
"""A slot has memory for a multiple of so many: each head begins with a line of the processor's caches, of any size."""
PIECE_BYTES = 1 << 25
"""Memory is taken in pieces of about this size, of one layer at least: while a slot grows, one piece is there twice."""
LARGE_BYTES = 1 << 22
"""Buffers of this size and more use huge pages, as NumPy's do: fewer misses in the page table's cache."""
PAGE_BYTES = 1 << 21
"""Of a large page, in most machines; whole ones begin where one can be."""

Positions = slice | Tensor
"""Where new positions stand: the same for all rows of a batch (slice), or each row's own (BT)."""


class _Slot:
    """One sequence's keys and values."""

    def __init__(self, limit: int) -> None:
        self.limit, self.capacity = limit, 0
        self.layers: list[Tensor] = []
        """Of each layer 2HSD, contiguous."""


class KVCache:
    """Room for one window of `block_size` positions in each of several slots, taken as it is needed.

    A forward pass asks for the `positions` of its new positions, hands over each layer's new keys and values with
    `extend`, and then calls `advance` once. Given to it as it is, the cache is a batch whose rows are all equally long;
    `rows` picks some slots of any lengths.
    """

    def __init__(
        self,
        config: "GPTConfig",
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.n_moves = 0
        """Counts how often a slot's memory became another: pointers to it are stale then."""
        self.length = 0
        self._slots = [_Slot(config.block_size) for _ in range(batch_size)]

    @property
    def n_slots(self) -> int:
        """N."""
        return len(self._slots)

    @property
    def room(self) -> int:
        """How many positions still fit."""
        return self.config.block_size - self.length

    def positions(self, n_new: int) -> Positions:
        """Where the next `n_new` positions stand."""
        return slice(self.length, self.length + n_new)

    def mask(self, n_new: int) -> Tensor | None:
        """True where a new position may look, for the call of an attention kernel; None: at all, or causally from 0.

        PyTorch's `is_causal` would align its triangle to the upper left corner, which is wrong once something was read.
        """
        if n_new == 1 or self.length == 0:
            return None
        seen_TS = torch.ones(n_new, self.length + n_new, dtype=torch.bool, device=self.device)
        return seen_TS.tril(self.length)

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all of its keys and values so far (BHSD)."""
        return self._extend(layer, k_BHTD, v_BHTD, range(self.n_slots), [self.length] * self.n_slots)

    def advance(self, n_positions: int) -> None:
        """Count `n_positions` as read; every layer has stored them."""
        self.length += n_positions

    def clear(self) -> None:
        """Forget everything; the memory is used again."""
        self.length = 0

    def rows(self, slots: Sequence[int], lengths: Sequence[int]) -> "CacheRows":
        """Some slots as the rows of a batch, each with its own number of positions that count as read."""
        return CacheRows(self, slots, lengths)

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """Let a slot begin with the first positions of another."""
        self.reserve(target, n_positions)
        for ours_2HSD, theirs_2HSD in zip(self._slots[target].layers, self._slots[source].layers, strict=True):
            ours_2HSD[:, :, :n_positions] = theirs_2HSD[:, :, :n_positions]

    def capacity(self, slot: int) -> int:
        """Positions that a slot has memory for."""
        return self._slots[slot].capacity

    def layers(self, slot: int) -> Sequence[Tensor]:
        """A slot's memory: of each layer 2HSD, contiguous; nothing where the slot has none."""
        return self._slots[slot].layers

    def n_bytes(self, n_positions: int) -> int:
        """What a slot takes that has memory for so many positions, after rounding."""
        c = self.config
        return 2 * c.n_layer * c.kv_heads() * _rounded(n_positions) * c.head_width() * self.dtype.itemsize

    def limit(self, slot: int, n_positions: int, n_kept: int = 0) -> None:
        """Say how many positions a slot will need at most: it does not grow beyond that, and gives back far more.

        Args:
            slot: which.
            n_positions: at most.
            n_kept: what it holds of the sequence already.
        """
        own = self._slots[slot]
        own.limit = n_positions
        if own.capacity > 2 * max(n_positions, n_kept, FIRST_POSITIONS):
            self._move(own, _rounded(max(n_positions, n_kept)))

    def reserve(self, slot: int, n_positions: int) -> None:
        """Have memory for the first `n_positions` of a slot; what it holds stays.

        Raises:
            MemoryError: there is not so much; the slot is as it was, or holds nothing.
        """
        own = self._slots[slot]
        if n_positions > own.capacity:
            wished = max(2 * own.capacity, FIRST_POSITIONS)
            self._move(own, _rounded(max(n_positions, min(wished, own.limit))))

    def release(self, slot: int) -> None:
        """Give a slot's memory back; it holds nothing then."""
        self._slots[slot].layers, self._slots[slot].capacity = [], 0
        self.n_moves += 1

    @torch.inference_mode(False)
    @torch.no_grad()
    def _move(self, slot: _Slot, capacity: int) -> None:
        """Let a slot have other memory, that holds what fits of the old."""
        c = self.config
        shape_2HSD = (2, c.kv_heads(), capacity, c.head_width())
        n_together = max(1, PIECE_BYTES // (math.prod(shape_2HSD) * self.dtype.itemsize))
        n_kept, old = min(slot.capacity, capacity), slot.layers
        slot.layers, slot.capacity = [], 0  # should there be too little memory
        self.n_moves += 1
        for first in range(0, c.n_layer, n_together):
            n = min(n_together, c.n_layer - first)
            new_L2HSD = _zeros((n, *shape_2HSD), self.dtype, self.device)
            if n_kept:
                for new_2HSD, old_2HSD in zip(new_L2HSD, old[:n], strict=True):
                    new_2HSD[:, :, :n_kept] = old_2HSD[:, :, :n_kept]
                del old[:n], old_2HSD
            slot.layers += new_L2HSD
        slot.capacity = capacity

    def _extend(
        self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor, slots: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """`extend` for some slots, each after a length of its own."""
        n_new = k_BHTD.size(2)
        end = max(lengths) + n_new
        new_B2HTD = torch.stack((k_BHTD, v_BHTD), 1)
        seen = []
        for slot, length, new_2HTD in zip(slots, lengths, new_B2HTD, strict=True):
            if layer == 0:
                self.reserve(slot, length + n_new)
            kept_2HSD = self._slots[slot].layers[layer]
            kept_2HSD[:, :, length : length + n_new] = new_2HTD
            seen.append(kept_2HSD[:, :, :end])
        if len(seen) == 1:
            seen_B2HSD = seen[0][None]
        else:
            # What lies behind a row's own positions is masked; it has to be numbers, and is: zeros, or once was read.
            short = [F.pad(each, (0, 0, 0, end - each.size(2))) if each.size(2) < end else each for each in seen]
            seen_B2HSD = torch.stack(short)
        seen_B2HSD = seen_B2HSD.type_as(k_BHTD)
        return seen_B2HSD[:, 0], seen_B2HSD[:, 1]


def _rounded(n_positions: int) -> int:
    return -(-n_positions // PART) * PART


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in memory of their own, which goes back to the system at once when it is free: an allocator may keep it.

    All of it is written to, so that the system counts it as used at once.

    Raises:
        MemoryError: there is not so much.
    """
    if device.type != "cpu":
        try:
            return torch.zeros(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            raise MemoryError(str(error).splitlines()[0]) from error
    own: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    n_bytes = math.prod(shape) * dtype.itemsize
    is_large = n_bytes >= LARGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE")
    try:
        memory = mmap.mmap(-1, -(-n_bytes // PAGE_BYTES) * PAGE_BYTES if is_large else n_bytes, **own)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(str(error)) from error
    if is_large:
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape).zero_()


def aligned(array: npt.NDArray[Any]) -> Tensor:
    """A flat array from where a line of the processor's caches begins, for a vector that lies across two is read twice.

    Args:
        array: up to `LINE_BYTES` longer than what is needed of it.
    """
    return torch.from_numpy(array[-array.ctypes.data % LINE_BYTES // array.itemsize :])


class CacheRows(KVCache):
    """Slots of a cache as a batch, whose rows may be of different lengths. Made by `KVCache.rows`, for one pass.

    Each row's new positions follow on its own; the longest row says how far all are looked at, and a mask hides what
    lies behind the shorter ones.
    """

    def __init__(self, cache: KVCache, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._cache, self._chosen, self._lengths = cache, list(slots), list(lengths)
        self.config, self.device = cache.config, cache.device
        self.length = max(lengths)
        self._lengths_B1 = torch.tensor(lengths, device=cache.device)[:, None]
        self._even = min(lengths) == self.length

    def positions(self, n_new: int) -> Positions:
        """Where the next `n_new` positions of each row stand."""
        return super().positions(n_new) if self._even else self._places_BT(n_new)

    def mask(self, n_new: int) -> Tensor | None:
        """True where a new position may look (B1TS), or None as in `KVCache`."""
        if self._even:
            return super().mask(n_new)
        seen_S = torch.arange(self.length + n_new, device=self.device)
        return (seen_S <= self._places_BT(n_new)[:, :, None])[:, None]

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all keys and values so far (BHSD)."""
        return self._cache._extend(layer, k_BHTD, v_BHTD, self._chosen, self._lengths)

    def _places_BT(self, n_new: int) -> Tensor:
        return self._lengths_B1 + torch.arange(n_new, device=self._lengths_B1.device)
