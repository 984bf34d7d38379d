"""Teachers: soft targets for distillation (arXiv:1503.02531).

A teacher gives a distribution over the vocabulary for each position of the training text. All are computed once, before
training, and kept as a table, which needs a small vocabulary.

N-gram counts (`ngrams.py`) leave each position out of its own count. Models were trained on the very text they teach
and are overconfident on it, which a temperature compensates.

Shapes: N tokens of the text, V vocabulary, B sequences, T positions.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundling.bundle import load_bundle
from groundling.data.batches import Tokens
from groundling.errors import ConfigError, require
from groundling.text.serialize import fingerprint
from groundling.text.tokenizer import Tokenizer
from groundling.train.distill.ngrams import leave_one_out

MAX_BYTES = 4 << 30
BYTES_TO_COUNT, BYTES_TO_ASK = 14, 6
"""Peak bytes per token and vocabulary entry while a table is made of counts or of models."""
TOKENS_AT_ONCE, MAX_SCORES = 8192, 1 << 22
"""Upper bounds of one forward pass of a teacher: tokens, and logits."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Distillation from a teacher: n-gram counts or other models."""

    weight: float = 0.0
    """Weight of the distillation loss (at the peak learning rate, if it fades). 0: no teacher."""
    fades: bool = True
    """Decay the weight with the learning rate."""
    models: tuple[str, ...] = ()
    """Teacher bundles or runs, averaged; none: n-gram counts of the training text."""
    recipes: tuple[str, ...] = ()
    """Presets of teachers that `groundling speedrun` trains first and passes as `models`."""
    temperature: float = 1.0
    """Temperature of the teacher's logits; above 1: softer targets."""
    order: int = 6
    """Order n of the n-grams: the context is n - 1 tokens."""
    smoothing: float = 2.0
    """Backoff strength toward the shorter context, per distinct continuation."""

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1, f"teacher.weight is {self.weight}; it must be in [0, 1]")
        named = "models" if self.models else "recipes" if self.recipes else None
        require(named is None or self.weight > 0, f"teacher.{named} is given and teacher.weight is 0; set the weight")
        require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"teacher.temperature is {self.temperature}; it must be a number above 0",
        )
        # With less, float32 loses the shorter contexts where a longer one was seen only once.
        require(
            math.isfinite(self.smoothing) and self.smoothing >= 1e-3,
            f"teacher.smoothing is {self.smoothing}; it must be a number of at least 0.001",
        )
        require(1 <= self.order <= 16, f"teacher.order is {self.order}; it must be 1 to 16")


class TableTeacher:
    """A teacher that looks up precomputed distributions.

    Args:
        table_NV: the distribution of each token of the training text.
    """

    def __init__(self, table_NV: Tensor) -> None:
        self._table_NV = table_NV.half()

    def __call__(self, offsets: list[int], block_size: int) -> Tensor:
        """The distributions of the targets of the windows that start at `offsets`: probs_BTV."""
        return torch.stack([self._table_NV[offset + 1 : offset + 1 + block_size] for offset in offsets])


def learn(
    tokens: Tokens,
    tokenizer: Tokenizer,
    how: TeacherConfig,
    models: Sequence[Path | str],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> TableTeacher:
    """Make the teacher of a run: the mean prediction of models, or n-gram counts.

    Args:
        tokens: the training text.
        tokenizer: its tokenizer, which the models must share.
        how: temperature, or order and smoothing of the n-grams.
        models: bundles or runs; none: n-gram counts.
        device: where the models compute.
        autocast: makes the context of their forward passes.

    Raises:
        CheckpointError: one of the models cannot be loaded.
        ConfigError: it has another tokenizer, or the table would be too large.
    """
    require_teachable(len(tokens), tokenizer, models)
    ids_N = torch.from_numpy(np.asarray(tokens).astype(np.int64))
    if not models:
        return TableTeacher(leave_one_out(ids_N, tokenizer.vocab_size, how.order, how.smoothing))
    return TableTeacher(mean_prediction(ids_N, tokenizer.vocab_size, models, how.temperature, device, autocast))


def require_teachable(n_tokens: int, tokenizer: Tokenizer, models: Sequence[Path | str]) -> None:
    """Check in advance what `learn` requires.

    Raises:
        CheckpointError: one of the models cannot be loaded.
        ConfigError: it has another tokenizer, or the table would be too large.
    """
    n_bytes = (BYTES_TO_ASK if models else BYTES_TO_COUNT) * n_tokens * tokenizer.vocab_size
    require(
        n_bytes <= MAX_BYTES,
        f"the teacher's table for {n_tokens:,} tokens and a vocabulary of {tokenizer.vocab_size:,} would take "
        f"{n_bytes / 1e9:,.1f} GB to make, at most {MAX_BYTES / 1e9:.1f} are allowed; set teacher.weight to 0",
    )
    for path in models:
        if fingerprint(load_bundle(path).tokenizer) != fingerprint(tokenizer):
            raise ConfigError(
                f"the teacher {path} has another tokenizer than this run's text; it can teach nothing here"
            )


def mean_prediction(
    ids_N: Tensor,
    vocab_size: int,
    models: Sequence[Path | str],
    temperature: float,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """The mean of the models' distributions for each token, at a temperature: probs_NV.

    Each model reads the text in windows of its own block_size that overlap by a quarter, so that all predictions but
    the text's first ones have at least a quarter of the context.

    Raises:
        CheckpointError: one of the models cannot be loaded.
    """
    mean_NV = torch.zeros(len(ids_N), vocab_size)
    for path in models:
        bundle = load_bundle(path, device)
        with torch.inference_mode(), autocast():
            _add_predictions(mean_NV, ids_N.to(device), bundle.model, bundle.config.block_size, temperature)
    mean_NV[0] = 1.0  # the first token has no prediction, and is never a target
    return mean_NV.div_(mean_NV.sum(1, keepdim=True))


def _add_predictions(
    sum_NV: Tensor, ids_N: Tensor, model: torch.nn.Module, block_size: int, temperature: float
) -> None:
    """Add the model's distribution of each token except the first."""
    T, V = min(block_size, len(ids_N) - 1), sum_NV.shape[1]
    again = T // 4
    starts = [*range(0, len(ids_N) - 1 - T, T - again), len(ids_N) - 1 - T]
    n_done = 0  # the last token predicted so far
    at_once = max(1, min(TOKENS_AT_ONCE, MAX_SCORES // V) // T)
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        logits_BTV = model(torch.stack([ids_N[start : start + T] for start in some]))
        probs_BTV = logits_BTV[..., :V].float().div(temperature).softmax(-1).cpu()
        for start, probs_TV in zip(some, probs_BTV, strict=True):
            sum_NV[n_done + 1 : start + T + 1] += probs_TV[n_done - start :]
            n_done = start + T
