"""Shorten a model's context when loading it, to save memory."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from groundling.bundle.layout import read_config
from groundling.errors import require
from groundling.model.config import GPTConfig

POSITIONS = "positions.wpe.weight"
"""The only tensor with one row per position."""


def limit_context(config: GPTConfig, context: int | None, where: Path | str) -> GPTConfig:
    """Return the config with a context of `context` tokens; None: unchanged.

    Args:
        config: the saved model's config.
        context: between 1 and the model's own.
        where: path of the model, for the error.

    Raises:
        ConfigError: the context is out of range.
    """
    if context is None:
        return config
    most = config.block_size
    require(1 <= context <= most, f"context is {context}; that of {where} is {most:,} tokens: give 1 to {most}")
    return dataclasses.replace(config, block_size=context)


def contexts(paths: Sequence[Path | str], context: int | None) -> list[int | None]:
    """Return the context for each of several models: the given one, or a model's own if it is shorter.

    Args:
        paths: as for `load_bundle`.
        context: in tokens; None: each model's own.

    Raises:
        CheckpointError: there is no bundle.
        ConfigError: the context is longer than that of every model.
    """
    if context is None:
        return [None] * len(paths)
    own = [read_config(path).block_size for path in paths]
    longest = max(range(len(own)), key=own.__getitem__)
    limit_context(read_config(paths[longest]), context, paths[longest])
    return [min(context, each) for each in own]


def cut_positions(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Cut learned position embeddings to the first `block_size`; rotary ones have no weights."""
    cut = dict(weights)
    if POSITIONS in cut:
        cut[POSITIONS] = cut[POSITIONS][: config.block_size].clone()
    return cut
