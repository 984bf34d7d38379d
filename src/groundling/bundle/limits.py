"""Check a bundle's size before its model is built."""

import os
from pathlib import Path

from groundling.bundle.adapter import read_base_reference
from groundling.bundle.layout import ADAPTER, CONFIG, WEIGHTS, find_bundle
from groundling.errors import CheckpointError, ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.storage.tensors import tensor_names
from groundling.system.memory import memory_of

MAX_ADAPTERS = 20
"""Maximum length of a chain of adapters on adapters."""
MAX_TABLE_BYTES = 1 << 27
"""Limit of the rotary tables beyond the size of the weights; no file bounds them."""


def require_layers(folder: Path, config: GPTConfig) -> None:
    """Compare a config's number of layers with the weights file, because building layers takes time.

    Raises:
        CheckpointError: the numbers differ, or an adapter is its own base.
    """
    seen = [folder.resolve()]
    while os.path.lexists(seen[-1] / ADAPTER):
        base = find_bundle(read_base_reference(seen[-1])[0]).resolve()
        if base in seen:
            raise CheckpointError(
                f"{folder} is an adapter of {base}, which is itself an adapter of it; there is no base model"
            )
        seen.append(base)
        if len(seen) > MAX_ADAPTERS + 1:
            raise CheckpointError(f"{folder} is an adapter of an adapter, and so on for more than {MAX_ADAPTERS}")
    file = seen[-1] / WEIGHTS
    layers = {name.split(".")[1] for name in tensor_names(file) if name.startswith("h.")}
    if len(layers) != config.n_layer:
        raise CheckpointError(
            f"{file} has the weights of {len(layers)} layers, and {folder / CONFIG} says {config.n_layer}"
        )


def require_memory(folder: Path, config: GPTConfig, outline: GPT) -> None:
    """Refuse a model that does not fit into free memory.

    Raises:
        ConfigError: it does not fit.
    """
    tables = 0 if config.position == "learned" else 4 * config.block_size * config.head_width()
    weights, known = 4 * outline.n_parameters(), memory_of()
    if tables > MAX_TABLE_BYTES + 4 * weights:
        raise ConfigError(
            f"{folder} has {weights / 1e6:,.1f} MB of weights, and a context of {config.block_size:,} tokens takes "
            f"tables of {tables / 1e6:,.1f} MB; give a shorter one with --context"
        )
    needed = weights + tables
    if known is not None and needed > known.free:
        raise ConfigError(
            f"the weights of {folder} take {needed / 1e9:,.1f} GB, and {known.free / 1e9:,.1f} GB of memory are free; "
            "close other programs, or use a smaller model"
        )
