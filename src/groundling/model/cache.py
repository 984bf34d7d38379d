"""The keys and values of the positions a model has read, so that a new token costs one position and not all.

Shapes: L n_layer, N slots, B batch, H n_kv_head, S block_size or the positions so far, T new positions, D head_size.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from groundling.model.gpt import GPTConfig

LINE_BYTES = 64

Places = slice | Tensor
"""Where new positions stand: the same for all rows of a batch (slice), or each row's own (BT)."""


class KVCache:
    """Room for one window of `block_size` positions in each of several slots, allocated once.

    A forward pass asks for the `places` of its new positions, hands over each layer's new keys and values with
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
        shape = (config.n_layer, batch_size, config.kv_heads(), config.block_size, config.head_width())
        self.k_LNHSD, self.v_LNHSD = _zeros(shape, dtype, device), _zeros(shape, dtype, device)
        self.length = 0

    @property
    def room(self) -> int:
        """How many positions still fit."""
        return self.k_LNHSD.size(3) - self.length

    def places(self, n_new: int) -> Places:
        """Where the next `n_new` positions stand."""
        return slice(self.length, self.length + n_new)

    def mask(self, n_new: int) -> Tensor | None:
        """True where a new position may look, for the call of an attention kernel; None: at all, or causally from 0.

        PyTorch's `is_causal` would align its triangle to the upper left corner, which is wrong once something was read.
        """
        if n_new == 1 or self.length == 0:
            return None
        seen_TS = torch.ones(n_new, self.length + n_new, dtype=torch.bool, device=self.k_LNHSD.device)
        return seen_TS.tril(self.length)

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return views of all of its keys and values so far (BHSD)."""
        end = self.length + k_BHTD.size(2)
        self.k_LNHSD[layer, :, :, self.length : end] = k_BHTD
        self.v_LNHSD[layer, :, :, self.length : end] = v_BHTD
        seen = self.k_LNHSD[layer, :, :, :end], self.v_LNHSD[layer, :, :, :end]
        return seen[0].type_as(k_BHTD), seen[1].type_as(v_BHTD)

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
        for kept_LNHSD in (self.k_LNHSD, self.v_LNHSD):
            kept_LNHSD[:, target, :, :n_positions] = kept_LNHSD[:, source, :, :n_positions]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros that take memory, in the main memory, only where something is written: most windows are never full."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    plain = {8: np.int64, 4: np.int32, 2: np.int16}[dtype.itemsize]
    n = math.prod(shape)
    with_room = np.zeros(n + LINE_BYTES // dtype.itemsize, dtype=plain)
    return from_a_line(with_room)[:n].view(dtype).view(shape)


def from_a_line(array: npt.NDArray[Any]) -> Tensor:
    """A flat array from where a line of the processor's caches begins, for a vector that lies across two is read twice.

    Args:
        array: up to `LINE_BYTES` longer than what is needed of it.
    """
    return torch.from_numpy(array[-array.ctypes.data % LINE_BYTES // array.itemsize :])


class CacheRows(KVCache):
    """Slots of a cache as a batch, whose rows may be of different lengths. Made by `KVCache.rows`.

    Each row's new positions follow on its own; the longest row says how far all are looked at, and a mask hides what
    lies behind the shorter ones.
    """

    def __init__(self, cache: KVCache, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self.k_LNHSD, self.v_LNHSD = cache.k_LNHSD, cache.v_LNHSD
        self.length = max(lengths)
        device = self.k_LNHSD.device
        self._slots_B = torch.tensor(slots, device=device)
        self._lengths_B1 = torch.tensor(lengths, device=device)[:, None]
        self._even = min(lengths) == self.length

    def places(self, n_new: int) -> Places:
        """Where the next `n_new` positions of each row stand."""
        return super().places(n_new) if self._even else self._places_BT(n_new)

    def mask(self, n_new: int) -> Tensor | None:
        """True where a new position may look (B1TS), or None as in `KVCache`."""
        if self._even:
            return super().mask(n_new)
        seen_S = torch.arange(self.length + n_new, device=self.k_LNHSD.device)
        return (seen_S <= self._places_BT(n_new)[:, :, None])[:, None]

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return copies of all keys and values so far (BHSD)."""
        n_new = k_BHTD.size(2)
        rows_B1, places_BT = self._slots_B[:, None], self._places_BT(n_new)
        seen = []
        for kept_LNHSD, new_BHTD in ((self.k_LNHSD, k_BHTD), (self.v_LNHSD, v_BHTD)):
            kept_LNHSD[layer].transpose(1, 2)[rows_B1, places_BT] = new_BHTD.transpose(1, 2).type_as(kept_LNHSD)
            seen.append(kept_LNHSD[layer][self._slots_B, :, : self.length + n_new].type_as(new_BHTD))
        return seen[0], seen[1]

    def _places_BT(self, n_new: int) -> Tensor:
        return self._lengths_B1 + torch.arange(n_new, device=self._lengths_B1.device)
