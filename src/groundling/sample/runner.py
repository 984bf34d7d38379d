"""How a model reads the next pieces of several sequences at once, each in a slot of its own.

`TorchRunner` asks a GPT with a cache, on any device. `NativeRunner` (native/runner.py) does the same by compiled code,
on a CPU. `WindowRunner` asks any module that maps `idx_BT` to `logits_BTV`, a rung of the ladder for example, and gives
it the whole window each time. All give the same scores; a model computes in evaluation mode, and is left as it was.

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
    place: int
    """Of the first id in the window. What the slot holds before it stays, what it holds from there on is forgotten."""
    ids: Sequence[int]
    n_scored: int
    """How many of the last positions' scores are asked for, at least 1."""


class ModelRunner(Protocol):
    """Reads pieces, and remembers what each slot has read."""

    @property
    def block_size(self) -> int:
        """The longest window of a slot."""
        ...

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """Read the pieces, and return the scores of the last positions of each (RV), on the CPU."""
        ...

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """Let a slot begin with the first positions of another."""
        ...


def in_parts(spans: Sequence[TokenSpan], n_at_once: int) -> Iterator[tuple[list[TokenSpan], bool]]:
    """Pieces cut up so that at most so many positions are read at once, and whether a part's scores are wanted.

    Of those parts whose scores are wanted they are, in the order of the parts, the scores of the pieces.
    """
    together: list[TokenSpan] = []
    n_together = 0
    for slot, place, ids, n_scored in spans:
        n_before = max(0, len(ids) - max(n_at_once, n_scored))
        for first in range(0, n_before, n_at_once):
            some = ids[first : min(first + n_at_once, n_before)]
            yield [TokenSpan(slot, place + first, some, 1)], False
        last = TokenSpan(slot, place + n_before, ids[n_before:], n_scored)
        if together and n_together + len(last.ids) > n_at_once:
            yield together, True
            together, n_together = [], 0
        together.append(last)
        n_together += len(last.ids)
    yield together, True


class TorchRunner:
    """Reads by PyTorch. Sequences that are equally long, or get one id each, are read together."""

    ALIKE_POSITIONS = 1024
    """Sequences that get one id each are read in a batch as wide as the longest: long ones not with short ones."""

    FEW_SCORES = 1 << 24
    """All scores of a long prompt over a large vocabulary would fill the memory; compute only the requested ones."""

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.model, self.cache, self.block_size = model, cache, model.block_size
        self._device = model.wte.weight.device

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """See `ModelRunner`."""
        together = defaultdict(list)
        for number, span in enumerate(spans):
            self.cache.reserve(span.slot, span.place + len(span.ids))
            width = max(self.ALIKE_POSITIONS, self.cache.capacity(span.slot))
            together[len(span.ids), span.place if len(span.ids) > 1 else width].append(number)
        scores: list[Tensor] = [torch.empty(0)] * len(spans)
        for numbers in together.values():
            some = [spans[number] for number in numbers]
            n_scored = max(span.n_scored for span in some)
            rows = self.cache.rows([span.slot for span in some], [span.place for span in some])
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
        """The scores of the last positions at least; of all, where these are few."""
        if idx_BT.numel() * self.model.config.vocab_size <= self.FEW_SCORES:
            return self.model(idx_BT, rows)  # type: ignore[no-any-return]
        return self.model.lm_head(self.model.features(idx_BT, rows)[:, -n_scored:])  # type: ignore[no-any-return]


class WindowRunner:
    """Reads each window as a whole, every time: slow, and right for any causal module. The oracle of the others."""

    def __init__(self, model: nn.Module, n_slots: int) -> None:
        self.model = model
        self.block_size = cast(int, model.block_size)
        self._device = next(model.parameters()).device
        self._windows: list[list[int]] = [[] for _ in range(n_slots)]

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """See `ModelRunner`."""
        together = defaultdict(list)
        for number, span in enumerate(spans):
            self._windows[span.slot][span.place :] = span.ids
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
    """Evaluation mode without gradients; afterwards each module is in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
