"""KV cache: keys and values of past positions, so a new token costs one position instead of a whole window.

Memory is allocated on demand. Each slot doubles its own when full, up to its limit, and keeps its contents bit for
bit. A window of ten thousand positions can take gigabytes, and most sequences use little of it.

Shapes: L n_layer, N slots, B batch, H n_kv_head, S allocated or past positions, T new positions, D head_size; 2: keys,
then values.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from groundling.model.config import GPTConfig
from groundling.model.context import Positions

LINE_BYTES = 64
"""Cache line of the processor."""
FIRST_POSITIONS = 256
"""First allocation of a slot; growing from less costs more than it saves."""
CAPACITY_STEP = 16
"""A slot's capacity is a multiple of this, so that each head starts at a cache line for any head size and dtype."""
PIECE_BYTES = 1 << 25
"""Allocation size, rounded to whole layers. While a slot grows, one such piece exists twice."""
LARGE_BYTES = 1 << 22
"""Buffers from this size on use huge pages, as in NumPy: fewer TLB misses."""
PAGE_BYTES = 1 << 21
"""Huge page of most machines."""


class _Slot:
    """Keys and values of one sequence."""

    def __init__(self, limit: int) -> None:
        self.limit, self.capacity = limit, 0
        self.layers: list[Tensor] = []
        """2HSD per layer, contiguous."""


class KVCache:
    """Slots for up to `block_size` positions each. An `AttentionContext`: a batch of all slots, equally long.

    `rows` makes a batch of selected slots of different lengths.

    Args:
        config: of the model.
        batch_size: number of slots.
        dtype: of the stored keys and values.
        device: of the stored keys and values.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.n_moves = 0
        """Number of reallocations; each makes pointers to a slot's memory stale."""
        self.length = 0
        """Positions read by all slots as a batch."""
        self._slots = [_Slot(config.block_size) for _ in range(batch_size)]

    @property
    def n_slots(self) -> int:
        """N."""
        return len(self._slots)

    @property
    def room(self) -> int:
        """Positions that still fit."""
        return self.config.block_size - self.length

    def positions(self, n_new: int) -> Positions:
        """Indices of the next `n_new` positions."""
        return slice(self.length, self.length + n_new)

    def mask(self, n_new: int) -> Tensor | None:
        """True where a new position may attend (TS), or None; see `AttentionContext`."""
        return _causal_mask(self.length, n_new, self.device)

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all of its keys and values so far (BHSD)."""
        return self.extend_slots(layer, k_BHTD, v_BHTD, range(self.n_slots), [self.length] * self.n_slots)

    def advance(self, n_new: int) -> None:
        """Mark `n_new` positions as read; every layer has stored them."""
        self.length += n_new

    def clear(self) -> None:
        """Forget all positions and keep the memory."""
        self.length = 0

    def rows(self, slots: Sequence[int], lengths: Sequence[int]) -> "CacheRows":
        """A batch of some slots, for one forward pass.

        Args:
            slots: one per row.
            lengths: positions of each slot that count as read; the rest is overwritten.
        """
        return CacheRows(self, slots, lengths)

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """Copy the first positions of slot `source` to slot `target`."""
        self.reserve(target, n_positions)
        for ours_2HSD, theirs_2HSD in zip(self._slots[target].layers, self._slots[source].layers, strict=True):
            ours_2HSD[:, :, :n_positions] = theirs_2HSD[:, :, :n_positions]

    def capacity(self, slot: int) -> int:
        """Allocated positions of a slot."""
        return self._slots[slot].capacity

    def layers(self, slot: int) -> Sequence[Tensor]:
        """A slot's memory: 2HSD per layer, contiguous; empty if nothing is allocated."""
        return self._slots[slot].layers

    def n_bytes(self, n_positions: int) -> int:
        """Bytes of a slot with this capacity, after rounding."""
        c = self.config
        return 2 * c.n_layer * c.kv_heads() * _rounded(n_positions) * c.head_width() * self.dtype.itemsize

    def limit(self, slot: int, n_positions: int, n_kept: int = 0) -> None:
        """Cap the growth of a slot, and shrink it if it is far larger than needed.

        Args:
            slot: index of the slot.
            n_positions: the most that its sequence will need.
            n_kept: positions in the slot that the sequence reuses.
        """
        own = self._slots[slot]
        own.limit = n_positions
        if own.capacity > 2 * max(n_positions, n_kept, FIRST_POSITIONS):
            self._move(own, _rounded(max(n_positions, n_kept)))

    def reserve(self, slot: int, n_positions: int) -> None:
        """Allocate memory for the first `n_positions` of a slot and keep its contents.

        Raises:
            MemoryError: out of memory; the slot is unchanged, or empty.
        """
        own = self._slots[slot]
        if n_positions > own.capacity:
            grown = max(2 * own.capacity, FIRST_POSITIONS)
            self._move(own, _rounded(max(n_positions, min(grown, own.limit))))

    def release(self, slot: int) -> None:
        """Free a slot's memory."""
        self._slots[slot].layers, self._slots[slot].capacity = [], 0
        self.n_moves += 1

    @torch.inference_mode(False)
    @torch.no_grad()
    def _move(self, slot: _Slot, capacity: int) -> None:
        """Reallocate a slot and copy what fits."""
        c = self.config
        shape_2HSD = (2, c.kv_heads(), capacity, c.head_width())
        n_together = max(1, PIECE_BYTES // (math.prod(shape_2HSD) * self.dtype.itemsize))
        n_kept, old = min(slot.capacity, capacity), slot.layers
        slot.layers, slot.capacity = [], 0  # a consistent state if an allocation below fails
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

    def extend_slots(
        self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor, slots: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """`extend` for some slots, each after its own length."""
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
            # Masked positions must still be finite: they are zeros, or stale keys and values.
            short = [F.pad(each, (0, 0, 0, end - each.size(2))) if each.size(2) < end else each for each in seen]
            seen_B2HSD = torch.stack(short)
        seen_B2HSD = seen_B2HSD.type_as(k_BHTD)
        return seen_B2HSD[:, 0], seen_B2HSD[:, 1]


class CacheRows:
    """Some slots of a cache as a batch for one forward pass. An `AttentionContext`, made by `KVCache.rows`.

    Each row's new positions follow its own past ones. All rows are as wide as the longest; a mask hides the padding.
    """

    def __init__(self, cache: KVCache, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._cache, self._slots, self._lengths = cache, list(slots), list(lengths)
        self.length = max(lengths)
        self._lengths_B1 = torch.tensor(lengths, device=cache.device)[:, None]
        self._even = min(lengths) == self.length

    def positions(self, n_new: int) -> Positions:
        """Indices of the next `n_new` positions of each row."""
        return slice(self.length, self.length + n_new) if self._even else self._positions_BT(n_new)

    def mask(self, n_new: int) -> Tensor | None:
        """True where a new position may attend (TS or B1TS), or None; see `AttentionContext`."""
        device = self._cache.device
        if self._even:
            return _causal_mask(self.length, n_new, device)
        seen_S = torch.arange(self.length + n_new, device=device)
        return (seen_S <= self._positions_BT(n_new)[:, :, None])[:, None]

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all keys and values so far (BHSD)."""
        return self._cache.extend_slots(layer, k_BHTD, v_BHTD, self._slots, self._lengths)

    def advance(self, n_new: int) -> None:
        """Mark `n_new` positions as read, for this batch only."""
        self.length += n_new

    def _positions_BT(self, n_new: int) -> Tensor:
        return self._lengths_B1 + torch.arange(n_new, device=self._lengths_B1.device)


def _causal_mask(length: int, n_new: int, device: torch.device) -> Tensor | None:
    """The mask of equally long rows (TS); None where an attention kernel needs none.

    PyTorch's `is_causal` aligns its triangle to the upper left corner, which is wrong after past positions.
    """
    if n_new == 1 or length == 0:
        return None
    return torch.ones(n_new, length + n_new, dtype=torch.bool, device=device).tril(length)


def _rounded(n_positions: int) -> int:
    return -(-n_positions // CAPACITY_STEP) * CAPACITY_STEP


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in memory mapped directly: freeing it returns it to the system, while an allocator may keep it.

    Writes to all of it, so that the system accounts for it at once.

    Raises:
        MemoryError: out of memory.
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
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape).zero_()


def aligned(array: npt.NDArray[Any]) -> Tensor:
    """A flat array from its first cache line on: an unaligned vector load touches two lines.

    Args:
        array: with up to `LINE_BYTES` to spare.
    """
    return torch.from_numpy(array[-array.ctypes.data % LINE_BYTES // array.itemsize :])
