"""A GPT in the form that csrc/decode.cpp reads: pointers to its tensors, and its matrices packed.

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
from groundling.sample.native.build import Library
from groundling.sample.quantize import Weights, to_int8
from groundling.sample.runner import TokenSpan

PRECISIONS = ("float32", "bfloat16", "int8")
NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS = ("relu", "gelu", "relu2", "swiglu")
Int, Pointer = ctypes.c_int64, ctypes.c_void_p


class _Linear(ctypes.Structure):
    _fields_ = [("weights", Pointer), ("scales", Pointer), ("bias", Pointer), ("n_in", Int), ("n_out", Int)]


class _Gains(ctypes.Structure):
    _fields_ = [("weight", Pointer), ("bias", Pointer)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Gains) for name in ("ln_1", "q_norm", "k_norm", "ln_2")),
        *((name, _Linear) for name in ("c_attn", "attn_proj", "c_gate", "c_fc", "mlp_proj")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, Int) for name in ("n_layer", "n_head", "n_kv_head", "head_size", "n_embd", "n_hidden")),
        *((name, Int) for name in ("block_size", "vocab_size", "precision", "norm", "activation")),
        ("norm_eps", ctypes.c_float),
        *((name, Pointer) for name in ("wte", "wpe", "cos_TP", "sin_TP")),
        ("ln_f", _Gains),
        ("lm_head", _Linear),
        ("layers", Pointer),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [("kv", Pointer), ("capacities", Pointer), ("n_slots", Int), ("is_half", Int)]


class _Slots:
    """Where a cache's slots are, as the library is told; looked up again when one has moved."""

    def __init__(self, cache: KVCache) -> None:
        self._cache, self._n_moves = cache, -1
        self._kv, self._capacities = array("Q"), array("q")
        self._described = _Cache()

    def address(self) -> int:
        """Of a `_Cache` that holds until a slot moves."""
        cache = self._cache
        if self._n_moves != cache.n_moves:
            slots = range(cache.n_slots)
            layers = [[layer.data_ptr() for layer in cache.layers(slot)] for slot in slots]
            none = [0] * cache.config.n_layer
            self._kv = array(
                "Q", [pointer for row in zip(*(own or none for own in layers), strict=True) for pointer in row]
            )
            self._capacities = array("q", [cache.capacity(slot) for slot in slots])
            positions = (self._kv.buffer_info()[0], self._capacities.buffer_info()[0])
            self._described = _Cache(*positions, cache.n_slots, cache.dtype == torch.bfloat16)
            self._n_moves = cache.n_moves
        return ctypes.addressof(self._described)


class _Rows(ctypes.Structure):
    _fields_ = [
        ("n_rows", Int),
        ("n_scored", Int),
        *((name, Pointer) for name in ("ids", "slots", "places", "scored")),
    ]


def can_read(model: nn.Module) -> bool:
    """Whether this is a model for the library: a GPT in float32, in the main memory."""
    here = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    return isinstance(model, GPT) and here


class NativeRunner:
    """Reads pieces of sequences by the compiled library; see `ModelRunner`. A row's scores never depend on other rows.

    It keeps packed copies of the matrices: what is done to the model later, it does not see.

    Args:
        model: a GPT for which `can_read` holds.
        cache: where keys and values go, float32 or bfloat16.
        weights: the precision of the matrices.
        library: the compiled functions.
        n_threads: that share the work.
    """

    def __init__(self, model: GPT, cache: KVCache, weights: Weights, library: Library, n_threads: int) -> None:
        self.cache, self.block_size = cache, model.block_size
        self._library, self._weights = library, weights
        self._kept: list[Tensor] = []  # what the pointers point to
        self._room = _ConcurrencyLimit()
        self._n_woven = library.woven_panels(PRECISIONS.index(weights))
        self._layers = (_Layer * len(model.h))(*(self._layer(block) for block in model.h))  # type: ignore[arg-type]
        self._model = self._describe(model)
        self._slots = _Slots(cache)
        self._n_threads = n_threads
        self._team, self._process = self._new_team(), os.getpid()

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """Read the pieces, and return the scores of the last positions of each (RV). One thread at a time.

        Raises:
            MemoryError: there was not enough memory; nothing was read.
        """
        if self._process != os.getpid():  # a fork has no threads but its own
            self._team, self._process = self._new_team(), os.getpid()
        self._library.team_wake(self._team)
        ids, slots, positions, scored = list[int](), list[int](), list[int](), list[int]()
        for slot, place, new, n_scored in spans:
            # What is wrong here would be a wild pointer there.
            assert 0 <= slot < self.cache.n_slots
            assert 0 <= place < place + len(new) <= self.block_size
            assert 1 <= n_scored <= len(new)
            self.cache.reserve(slot, place + len(new))
            ids += new
            slots += [slot] * len(new)
            positions += range(place, place + len(new))
            scored += range(len(ids) - n_scored, len(ids))
        assert 0 <= min(ids) <= max(ids) < self._model.vocab_size
        logits_RV = torch.empty(len(scored), self._model.vocab_size)
        columns = array("q", ids + slots + positions + scored)
        first, n_bytes = columns.buffer_info()[0], columns.itemsize * len(ids)
        rows = _Rows(len(ids), len(scored), first, first + n_bytes, first + 2 * n_bytes, first + 3 * n_bytes)
        address = ctypes.addressof
        failed = self._library.read_rows(
            self._team, address(self._model), self._slots.address(), address(rows), logits_RV.data_ptr()
        )
        if failed:
            raise MemoryError(f"not enough memory to read {len(ids)} positions at once")
        return logits_RV

    def race(self, logits_RV: Tensor, t: float, noises: Sequence[Tensor]) -> list[int]:
        """`filters.race_of_few` of scores that `read` gave, or their first columns.

        Args:
            logits_RV: the scores.
            t: the temperature, above 0.
            noises: of each row, draws (V) from the exponential distribution, above 0.

        Raises:
            CheckpointError: the scores are not finite.
        """
        drawn, noise = array("q", [0]) * len(noises), array("Q", [each.data_ptr() for each in noises])
        self._library.race(
            *(logits_RV.data_ptr(), len(noises), logits_RV.stride(0), logits_RV.size(-1), t),
            *(noise.buffer_info()[0], drawn.buffer_info()[0]),
        )
        ids = drawn.tolist()
        if min(ids) < 0:
            require_scores(logits_RV.amax(-1).tolist())  # NaN wins
        return ids

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """Let a slot begin with the first positions of another."""
        self.cache.copy(source, target, n_positions)

    def _new_team(self) -> int:
        team = self._library.team_new(self._n_threads)
        if not team:
            raise MemoryError("not enough memory for the threads of the compiled code")
        weakref.finalize(self, _delete_in, os.getpid(), self._library, team)
        return team

    def _describe(self, model: GPT) -> _Model:
        c = model.config
        rotate, positions = cast(Block, model.h[0]).attn.rotate, model.positions
        wpe = positions.wpe.weight if isinstance(positions, LearnedPositions) else None
        cos_TP, sin_TP = (rotate.cos_TP, rotate.sin_TP) if isinstance(rotate, Rotary) else (None, None)
        return _Model(
            *(c.n_layer, c.n_head, c.kv_heads(), c.head_width(), c.n_embd, c.hidden_width()),
            *(c.block_size, c.vocab_size, PRECISIONS.index(self._weights), NORMS.index(c.norm)),
            ACTIVATIONS.index(c.mlp),
            c.norm_eps,
            *(self._pointer(tensor) for tensor in (model.wte.weight, wpe, cos_TP, sin_TP)),
            self._gains(model.ln_f),
            self._linear(model.lm_head),
            ctypes.addressof(self._layers),
        )

    def _layer(self, block: Block) -> _Layer:
        attn, mlp = block.attn, block.mlp
        norms = (block.ln_1, attn.q_norm, attn.k_norm, block.ln_2)
        gate = self._linear(mlp.c_gate) if isinstance(mlp, SwiGLU) else _Linear()
        others = [cast(nn.Linear, layer) for layer in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)]
        c_attn, attn_proj, c_fc, mlp_proj = map(self._linear, others)
        return _Layer(*map(self._gains, norms), c_attn, attn_proj, gate, c_fc, mlp_proj)

    def _gains(self, norm: nn.Module) -> _Gains:
        return _Gains(self._pointer(getattr(norm, "weight", None)), self._pointer(getattr(norm, "bias", None)))

    def _linear(self, linear: nn.Linear) -> _Linear:
        weight_NK = linear.weight.detach()
        n_out, n_in = weight_NK.shape
        n_padded = _whole(n_out, self._library.lanes)
        scales, bias = torch.ones(n_padded), torch.zeros(n_padded)
        if self._weights == "int8":
            weight_NK, scales[:n_out] = to_int8(weight_NK)
        elif self._weights == "bfloat16":
            weight_NK = weight_NK.to(torch.bfloat16)
        if linear.bias is not None:
            bias[:n_out] = linear.bias.detach()
        packed = self._room.put(pack(weight_NK, self._library.lanes, self._n_woven))
        return _Linear(*map(self._pointer, (packed, scales, bias)), n_in, n_out)

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        whole = tensor.detach().contiguous()
        self._kept.append(whole)
        return whole.data_ptr()


class _ConcurrencyLimit:
    """Memory for matrices, side by side in few large pieces.

    NumPy asks the system for large pages where an array is large, and what lies in these is found faster: all weights
    are read in each step, and there would be thousands of small pages.
    """

    PIECE_BYTES = 1 << 25

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._n_used = 0

    def put(self, tensor: Tensor) -> Tensor:
        """Copy a flat tensor here; return the copy."""
        n_bytes = tensor.numel() * tensor.element_size()
        if self._n_used + n_bytes > len(self._piece):
            self._piece = aligned(np.empty(max(n_bytes, self.PIECE_BYTES) + LINE_BYTES, dtype=np.uint8))
            self._n_used = 0
        copy = self._piece[self._n_used : self._n_used + n_bytes].view(tensor.dtype).copy_(tensor)
        self._n_used += _whole(n_bytes, LINE_BYTES)
        return copy


def _delete_in(process: int, library: Library, team: int) -> None:
    """End a team in the process that it was made in: a fork has none of its threads to wait for."""
    if process == os.getpid():
        library.team_delete(team)


def pack(weight_NK: Tensor, lanes: int, n_woven: int) -> Tensor:
    """Put a matrix into the order of csrc/vectors.h, flat.

    Args:
        weight_NK: float32, bfloat16 or int8.
        lanes: the outputs of a panel.
        n_woven: how many panels are woven together.
    """
    n_out, n_in = weight_NK.shape
    n_together = 2 if weight_NK.dtype == torch.bfloat16 else 1
    if n_out % lanes or n_in % n_together:
        padded = weight_NK.new_zeros(_whole(n_out, lanes), n_in + n_in % n_together)
        padded[:n_out, :n_in] = weight_NK
        weight_NK = padded
    n_panels = weight_NK.size(0) // lanes
    panels = weight_NK.view(n_panels, lanes, -1, n_together).transpose(1, 2)  # panel, input, output, one of a pair
    n_full = n_panels // n_woven * n_woven
    woven = panels[:n_full].reshape(-1, n_woven, *panels.shape[1:]).transpose(1, 2)
    return torch.cat([woven.flatten(), panels[n_full:].flatten()])


def _whole(n: int, part: int) -> int:
    """So many and as many as are needed to fill the last part."""
    return -(-n // part) * part
