"""Run a GPT by the compiled library: pass pointers to its tensors, and its matrices packed (README.md).

Shapes: N outputs, K inputs, R rows, V vocabulary.
"""

import ctypes
import os
import weakref
from array import array
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from groundling.model.cache import LINE_BYTES, KVCache, aligned
from groundling.model.gpt import GPT, Block
from groundling.model.layers import LearnedPositions, Rotary, SwiGLU
from groundling.sample.filters import require_scores
from groundling.sample.native import abi
from groundling.sample.native.build import Library
from groundling.sample.quantize import Weights, to_int8
from groundling.sample.runner import TokenSpan


class _CachePointers:
    """Pointers to the memory of a cache's slots; refreshed after a slot has moved."""

    def __init__(self, cache: KVCache) -> None:
        self._cache, self._n_moves = cache, -1
        self._kv, self._capacities = array("Q"), array("q")
        self._struct = abi.Cache()

    def address(self) -> int:
        """Address of an `abi.Cache`, valid until a slot moves."""
        cache = self._cache
        if self._n_moves != cache.n_moves:
            slots = range(cache.n_slots)
            layers = [[layer.data_ptr() for layer in cache.layers(slot)] for slot in slots]
            empty = [0] * cache.config.n_layer
            self._kv = array(
                "Q", [pointer for row in zip(*(own or empty for own in layers), strict=True) for pointer in row]
            )
            self._capacities = array("q", [cache.capacity(slot) for slot in slots])
            pointers = (self._kv.buffer_info()[0], self._capacities.buffer_info()[0])
            self._struct = abi.Cache(*pointers, cache.n_slots, cache.dtype == torch.bfloat16)
            self._n_moves = cache.n_moves
        return ctypes.addressof(self._struct)


def can_read(model: nn.Module) -> bool:
    """Whether the library can run this model: a GPT in float32 on the CPU."""
    in_float32 = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    return isinstance(model, GPT) and in_float32


class NativeRunner:
    """A `ModelRunner` by the compiled library. The logits of a row do not depend on the other rows.

    Copies and packs the matrices: later changes of the model's weights have no effect.

    Args:
        model: a GPT for which `can_read` holds.
        cache: the KV cache, float32 or bfloat16.
        weights: the precision of the matrices.
        library: the compiled library.
        n_threads: size of the thread team.
    """

    def __init__(self, model: GPT, cache: KVCache, weights: Weights, library: Library, n_threads: int) -> None:
        self.cache, self.block_size = cache, model.block_size
        self._library, self._weights = library, weights
        self._tensors: list[Tensor] = []  # owners of the memory that the structures point to
        self._arena = _WeightArena()
        self._panels_per_group = library.panels_per_group(abi.PRECISIONS.index(weights))
        self._layers = (abi.Layer * len(model.h))(*(self._layer(block) for block in model.h))  # type: ignore[arg-type]
        self._model = self._describe(model)
        self._cache_pointers = _CachePointers(cache)
        self._n_threads = n_threads
        self._team, self._process = self._new_team(), os.getpid()

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """See `ModelRunner`. Not thread-safe.

        Raises:
            MemoryError: memory is short; nothing was read.
        """
        if self._process != os.getpid():  # a forked process has none of the team's threads
            self._team, self._process = self._new_team(), os.getpid()
        self._library.team_wake(self._team)
        ids, slots, positions, scored = list[int](), list[int](), list[int](), list[int]()
        for slot, position, new, n_scored in spans:
            # The library does not check bounds.
            assert 0 <= slot < self.cache.n_slots
            assert 0 <= position < position + len(new) <= self.block_size
            assert 1 <= n_scored <= len(new)
            self.cache.reserve(slot, position + len(new))
            ids += new
            slots += [slot] * len(new)
            positions += range(position, position + len(new))
            scored += range(len(ids) - n_scored, len(ids))
        assert 0 <= min(ids) <= max(ids) < self._model.vocab_size
        logits_RV = torch.empty(len(scored), self._model.vocab_size)
        columns = array("q", ids + slots + positions + scored)
        first, n_bytes = columns.buffer_info()[0], columns.itemsize * len(ids)
        batch = abi.Batch(len(ids), len(scored), first, first + n_bytes, first + 2 * n_bytes, first + 3 * n_bytes)
        address = ctypes.addressof
        failed = self._library.forward(
            self._team, address(self._model), self._cache_pointers.address(), address(batch), logits_RV.data_ptr()
        )
        if failed:
            raise MemoryError(f"not enough memory to read {len(ids)} positions at once")
        return logits_RV

    def exponential_race(self, logits_RV: Tensor, t: float, noises: Sequence[Tensor]) -> list[int]:
        """Sample one id per row, as `filters.exponential_race_of_few` does.

        Args:
            logits_RV: logits from `read`, or their first columns.
            t: the temperature, above 0.
            noises: per row, draws (V) from the exponential distribution, above 0.

        Raises:
            CheckpointError: a row's largest logit is not finite.
        """
        sampled, noise = array("q", [0]) * len(noises), array("Q", [row_V.data_ptr() for row_V in noises])
        self._library.race(
            *(logits_RV.data_ptr(), len(noises), logits_RV.stride(0), logits_RV.size(-1), t),
            *(noise.buffer_info()[0], sampled.buffer_info()[0]),
        )
        ids = sampled.tolist()
        if min(ids) < 0:
            require_scores(logits_RV.amax(-1).tolist())  # amax propagates NaN
        return ids

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """See `ModelRunner`."""
        self.cache.copy(source, target, n_positions)

    def _new_team(self) -> int:
        team = self._library.team_create(self._n_threads)
        if not team:
            raise MemoryError("not enough memory for the threads of the native decoder")
        weakref.finalize(self, _destroy_team, os.getpid(), self._library, team)
        return team

    def _describe(self, model: GPT) -> abi.Model:
        c = model.config
        rotate, positions = cast(Block, model.h[0]).attn.rotate, model.positions
        wpe = positions.wpe.weight if isinstance(positions, LearnedPositions) else None
        cos_TP, sin_TP = (rotate.cos_TP, rotate.sin_TP) if isinstance(rotate, Rotary) else (None, None)
        return abi.Model(
            *(c.n_layer, c.n_head, c.kv_heads(), c.head_width(), c.n_embd, c.hidden_width()),
            *(c.block_size, c.vocab_size, abi.PRECISIONS.index(self._weights), abi.NORMS.index(c.norm)),
            abi.ACTIVATIONS.index(c.mlp),
            c.norm_eps,
            *(self._pointer(tensor) for tensor in (model.wte.weight, wpe, cos_TP, sin_TP)),
            self._norm(model.ln_f),
            self._linear(model.lm_head),
            ctypes.addressof(self._layers),
        )

    def _layer(self, block: Block) -> abi.Layer:
        attn, mlp = block.attn, block.mlp
        norms = (block.ln_1, attn.q_norm, attn.k_norm, block.ln_2)
        gate = self._linear(mlp.c_gate) if isinstance(mlp, SwiGLU) else abi.Linear()
        others = [cast(nn.Linear, layer) for layer in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)]
        c_attn, attn_proj, c_fc, mlp_proj = map(self._linear, others)
        return abi.Layer(*map(self._norm, norms), c_attn, attn_proj, gate, c_fc, mlp_proj)

    def _norm(self, norm: nn.Module) -> abi.NormWeights:
        return abi.NormWeights(self._pointer(getattr(norm, "weight", None)), self._pointer(getattr(norm, "bias", None)))

    def _linear(self, linear: nn.Linear) -> abi.Linear:
        weight_NK = linear.weight.detach()
        n_out, n_in = weight_NK.shape
        n_padded = _round_up(n_out, self._library.lanes)
        scales, bias = torch.ones(n_padded), torch.zeros(n_padded)
        if self._weights == "int8":
            weight_NK, scales[:n_out] = to_int8(weight_NK)
        elif self._weights == "bfloat16":
            weight_NK = weight_NK.to(torch.bfloat16)
        if linear.bias is not None:
            bias[:n_out] = linear.bias.detach()
        packed = self._arena.store(pack(weight_NK, self._library.lanes, self._panels_per_group))
        return abi.Linear(*map(self._pointer, (packed, scales, bias)), n_in, n_out)

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        owned = tensor.detach().contiguous()
        self._tensors.append(owned)
        return owned.data_ptr()


class _WeightArena:
    """Places matrices side by side in few large blocks.

    NumPy requests huge pages for large arrays, which saves TLB misses: each step reads all weights.
    """

    BLOCK_BYTES = 1 << 25

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._n_used = 0

    def store(self, tensor: Tensor) -> Tensor:
        """Copy a flat tensor into the arena; return the copy."""
        n_bytes = tensor.numel() * tensor.element_size()
        if self._n_used + n_bytes > len(self._block):
            self._block = aligned(np.empty(max(n_bytes, self.BLOCK_BYTES) + LINE_BYTES, dtype=np.uint8))
            self._n_used = 0
        copy = self._block[self._n_used : self._n_used + n_bytes].view(tensor.dtype).copy_(tensor)
        self._n_used += _round_up(n_bytes, LINE_BYTES)
        return copy


def _destroy_team(process: int, library: Library, team: int) -> None:
    """Destroy a team, unless this is a forked process, which has none of its threads to join."""
    if process == os.getpid():
        library.team_destroy(team)


def pack(weight_NK: Tensor, lanes: int, panels_per_group: int) -> Tensor:
    """Pack a matrix into panels, as csrc/panels.h describes; returns a flat tensor.

    Args:
        weight_NK: float32, bfloat16 or int8.
        lanes: outputs per panel.
        panels_per_group: panels that are interleaved.
    """
    n_out, n_in = weight_NK.shape
    inputs_per_step = 2 if weight_NK.dtype == torch.bfloat16 else 1
    if n_out % lanes or n_in % inputs_per_step:
        padded = weight_NK.new_zeros(_round_up(n_out, lanes), n_in + n_in % inputs_per_step)
        padded[:n_out, :n_in] = weight_NK
        weight_NK = padded
    n_panels = weight_NK.size(0) // lanes
    panels = weight_NK.view(n_panels, lanes, -1, inputs_per_step).transpose(1, 2)  # panel, step, output, input of step
    n_grouped = n_panels // panels_per_group * panels_per_group
    grouped = panels[:n_grouped].reshape(-1, panels_per_group, *panels.shape[1:]).transpose(1, 2)
    return torch.cat([grouped.flatten(), panels[n_grouped:].flatten()])


def _round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple
