"""A model that is read with a shorter window than it was trained with: less memory, and nothing else changes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from groundling.bundle.layout import read_config
from groundling.errors import require
from groundling.model.config import GPTConfig

POSITIONS = "positions.wpe.weight"
"""The one tensor that has a row for each place in the window."""


def narrowed(config: GPTConfig, context: int | None, where: Path | str) -> GPTConfig:
    """The config of a model whose window is `context` tokens long; None: as long as it is.

    Args:
        config: of the model as it was saved.
        context: at least 1, and not more than the model has.
        where: the model's place, for the error.

    Raises:
        ConfigError: the model has no such context.
    """
    if context is None:
        return config
    most = config.block_size
    require(1 <= context <= most, f"context is {context}; that of {where} is {most:,} tokens: give 1 to {most}")
    return dataclasses.replace(config, block_size=context)


def contexts(paths: Sequence[Path | str], context: int | None) -> list[int | None]:
    """The context to load each of several models with: the one that is given, or the model's own if that is shorter.

    Args:
        paths: as `load_bundle` takes them.
        context: in tokens; None: each model's own.

    Raises:
        CheckpointError: there is no bundle.
        ConfigError: no model has such a context.
    """
    if context is None:
        return [None] * len(paths)
    own = [read_config(path).block_size for path in paths]
    longest = max(range(len(own)), key=own.__getitem__)
    narrowed(read_config(paths[longest]), context, paths[longest])
    return [min(context, each) for each in own]


def cut_positions(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Weights for a narrowed model: of learned positions the first `block_size`; rotary ones have no weights."""
    cut = dict(weights)
    if POSITIONS in cut:
        cut[POSITIONS] = cut[POSITIONS][: config.block_size].clone()
    return cut
