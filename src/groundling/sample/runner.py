"""Run a model on the next tokens of several sequences at once, each in its own slot.

`TorchRunner` runs a GPT with a KV cache, on any device. `NativeRunner` (native/runner.py) does the same by compiled
code, on a CPU. `WindowRunner` runs any module that maps `idx_BT` to `logits_BTV`, a rung of the ladder for example, on
the whole window each time. All return the same logits. Models run in evaluation mode; their own mode is restored.

Shapes: B batch, T positions, R scored positions, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from groundling.model.cache import KVCache
from groundling.model.context import AttentionContext
from groundling.model.gpt import GPT
from groundling.model.numerics import at_least_float32


class TokenSpan(NamedTuple):
    """The next ids of the sequence in a slot."""

    slot: int
    position: int
    """Position of the first id in the window. Replaces what the slot holds from here on."""
    ids: Sequence[int]
    n_scored: int
    """Return the logits of this many last positions; at least 1."""


class ModelRunner(Protocol):
    """Runs a model on token spans, and keeps the keys and values of each slot."""

    @property
    def block_size(self) -> int:
        """The longest window of a slot."""
        ...

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """Read the spans, and return the logits (RV) of the last positions of each, on the CPU."""
        ...

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """Copy the first positions of a slot to another."""
        ...


def in_parts(spans: Sequence[TokenSpan], n_at_once: int) -> Iterator[tuple[list[TokenSpan], bool]]:
    """Split spans so that at most `n_at_once` positions are read at once; yield each part, and whether it is scored.

    The logits of the scored parts, concatenated, are the logits of the spans.
    """
    together: list[TokenSpan] = []
    n_together = 0
    for slot, position, ids, n_scored in spans:
        n_before = max(0, len(ids) - max(n_at_once, n_scored))
        for first in range(0, n_before, n_at_once):
            some = ids[first : min(first + n_at_once, n_before)]
            yield [TokenSpan(slot, position + first, some, 1)], False
        last = TokenSpan(slot, position + n_before, ids[n_before:], n_scored)
        if together and n_together + len(last.ids) > n_at_once:
            yield together, True
            together, n_together = [], 0
        together.append(last)
        n_together += len(last.ids)
    yield together, True


class TorchRunner:
    """Runs a GPT in PyTorch. Spans of equal length and position are batched, and all spans of one id."""

    ALIKE_POSITIONS = 1024
    """A batch of single ids is as wide as its longest sequence, so longer sequences are batched apart."""

    FEW_SCORES = 1 << 24
    """Beyond this many logits, compute the requested ones only: those of a long prompt would fill the memory."""

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.model, self.cache, self.block_size = model, cache, model.block_size
        self._device = model.wte.weight.device

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """See `ModelRunner`."""
        together = defaultdict(list)
        for number, span in enumerate(spans):
            self.cache.reserve(span.slot, span.position + len(span.ids))
            width = max(self.ALIKE_POSITIONS, self.cache.capacity(span.slot))
            together[len(span.ids), span.position if len(span.ids) > 1 else width].append(number)
        scores: list[Tensor] = [torch.empty(0)] * len(spans)
        for numbers in together.values():
            some = [spans[number] for number in numbers]
            n_scored = max(span.n_scored for span in some)
            rows = self.cache.rows([span.slot for span in some], [span.position for span in some])
            idx_BT = torch.tensor([list(span.ids) for span in some], device=self._device)
            with evaluation_mode(self.model):
                logits_BTV = at_least_float32(self._logits(idx_BT, rows, n_scored).cpu())
            for number, span, logits_TV in zip(numbers, some, logits_BTV, strict=True):
                scores[number] = logits_TV[-span.n_scored :]
        return torch.cat(scores)

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """See `ModelRunner`."""
        self.cache.copy(source, target, n_positions)

    def _logits(self, idx_BT: Tensor, rows: AttentionContext, n_scored: int) -> Tensor:
        """Logits of the last positions at least."""
        if idx_BT.numel() * self.model.config.vocab_size <= self.FEW_SCORES:
            return self.model(idx_BT, rows)  # type: ignore[no-any-return]
        return self.model.lm_head(self.model.features(idx_BT, rows)[:, -n_scored:])  # type: ignore[no-any-return]


class WindowRunner:
    """Runs any causal module on its whole window each time: slow; the reference for the other runners."""

    def __init__(self, model: nn.Module, n_slots: int) -> None:
        self.model = model
        self.block_size = cast(int, model.block_size)
        self._device = next(model.parameters()).device
        self._windows: list[list[int]] = [[] for _ in range(n_slots)]

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """See `ModelRunner`."""
        together = defaultdict(list)
        for number, span in enumerate(spans):
            self._windows[span.slot][span.position :] = span.ids
            together[len(self._windows[span.slot])].append(number)
        scores: list[Tensor] = [torch.empty(0)] * len(spans)
        for numbers in together.values():
            idx_BT = torch.tensor([self._windows[spans[number].slot] for number in numbers], device=self._device)
            with evaluation_mode(self.model):
                logits_BTV = at_least_float32(self.model(idx_BT).cpu())
            for number, logits_TV in zip(numbers, logits_BTV, strict=True):
                scores[number] = logits_TV[-spans[number].n_scored :]
        return torch.cat(scores)

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """See `ModelRunner`."""
        self._windows[target][:] = self._windows[source][:n_positions]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores the mode of each module."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
