"""Use a model with a shorter context than it was trained with, to save memory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from groundling.errors import require
from groundling.model.config import GPTConfig

POSITIONS = "positions.wpe.weight"
"""The only tensor with a row per position."""


def narrowed(config: GPTConfig, context: int | None, where: Path | str) -> GPTConfig:
    """The config with a context of `context` tokens.

    Args:
        config: of the saved model.
        context: 1 to the model's block_size; None: unchanged.
        where: path of the model, for the error.

    Raises:
        ConfigError: the model has no such context.
    """
    if context is None:
        return config
    most = config.block_size
    require(1 <= context <= most, f"context is {context}; that of {where} is {most:,} tokens: give 1 to {most}")
    return dataclasses.replace(config, block_size=context)


def cut_positions(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Weights for a narrowed config: the first `block_size` learned positions; rotary ones have no weights."""
    cut = dict(weights)
    if POSITIONS in cut:
        cut[POSITIONS] = cut[POSITIONS][: config.block_size].clone()
    return cut
