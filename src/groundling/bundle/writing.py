"""Write a bundle's folder atomically, and its files."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from torch import Tensor

from groundling.bundle.layout import CONFIG, WEIGHTS, looks_like_bundle, previous_path
from groundling.errors import CheckpointError
from groundling.model.config import GPTConfig
from groundling.storage import atomic
from groundling.text.serialize import save_tokenizer
from groundling.text.tokenizer import Tokenizer


@contextmanager
def new_bundle(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces the bundle at `folder` if the block succeeds.

    Raises:
        CheckpointError: `folder` holds something other than a bundle.
        StorageError: it cannot be written; an existing bundle is unchanged.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not looks_like_bundle(folder)):
        raise CheckpointError(f"{folder} exists and is not a bundle; it was left alone, choose another name")
    previous = previous_path(folder)
    with atomic.new_folder(folder) as temporary:
        yield temporary
        if folder.exists():
            if previous.exists():
                atomic.remove_tree(previous)
            # A folder cannot be replaced in one step; `find_bundle` looks under this name in the meantime.
            atomic.replace(folder, previous)
    if previous.exists():
        atomic.remove_tree(previous)


def write_bundle_files(
    folder: Path, weights: Mapping[str, Tensor], config: GPTConfig, tokenizer: Tokenizer, name: str = WEIGHTS
) -> None:
    """Write a bundle's three files into a folder; the caller makes it atomic and writes the manifest.

    Args:
        folder: an existing folder.
        weights: from `plain_state_dict`.
        config: config of the model.
        tokenizer: the tokenizer it was trained with.
        name: file name of the weights.

    Raises:
        StorageError: a file cannot be written.
    """
    atomic.write_json(folder / CONFIG, dataclasses.asdict(config))
    atomic.write_bytes(folder / name, safetensors.torch.save(dict(weights)))
    save_tokenizer(tokenizer, folder)
