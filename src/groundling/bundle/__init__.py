"""A bundle: one folder with everything needed for sampling, and nothing that runs code when loaded.

    config.json  model.safetensors  tokenizer.json  manifest.json  and, for a chat model, chat.json

An adapter is a bundle with `adapter.safetensors` instead of the weights, and a manifest that names the base bundle.

A checkpoint holds everything but the manifest in its folder `bundle`; its own manifest covers these files. A run:

    RUN/checkpoints/step-00000250/{bundle/, training.safetensors, state.json, manifest.json}
    RUN/bundle/     the best checkpoint, after training

In reading order:

    layout.py   file names, selection of a checkpoint, checks
    weights.py  weights under plain names
    adapter.py  LoRA weights, and their base
    context.py  a model with a shorter context
    limits.py   layers and memory, checked before a model is built
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from groundling.bundle.adapter import Adapter, Base, base_at, place_of_base
from groundling.bundle.context import cut_positions, narrowed
from groundling.bundle.layout import (
    ADAPTER,
    CHAT,
    CONFIG,
    HEAD,
    TOKENIZER,
    WEIGHTS,
    check_files,
    find_bundle,
    looks_like_bundle,
    previous_place,
    read_chat,
    read_config,
)
from groundling.bundle.limits import require_layers, require_memory
from groundling.bundle.weights import plain_state_dict, read_weights, require_fit
from groundling.errors import CheckpointError, DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.uninitialized import blank_gpt
from groundling.storage import atomic
from groundling.storage.manifest import write_manifest
from groundling.storage.tensors import read_tensors
from groundling.system.runtime import unwrap
from groundling.text.chat.template import ChatTemplate
from groundling.text.serialize import load_tokenizer, save_tokenizer
from groundling.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Bundle:
    """A model for sampling, its config, and the tokenizer it was trained with."""

    config: GPTConfig
    model: GPT
    tokenizer: Tokenizer
    chat: ChatTemplate | None = None
    """Chat template of a chat model."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end generation: of a reply, or of a text."""
        return self.tokenizer.end_ids if self.chat is None else self.chat.end_ids(self.tokenizer)

    @property
    def n_ids(self) -> int:
        """Bound below which ids can be sampled; those above are padding or role tokens."""
        return self.tokenizer.vocab_size if self.chat is None else self.chat.n_reply_ids(self.tokenizer)


def save_bundle(
    folder: Path,
    model: nn.Module,
    tokenizer: Tokenizer,
    extra: dict[str, Any] | None = None,
    chat: ChatTemplate | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a bundle; `folder` holds the old or the new bundle, complete, at every moment.

    Args:
        folder: output folder; an existing bundle is replaced.
        model: a GPT: plain, compiled, or wrapped for data parallelism.
        tokenizer: the tokenizer it was trained with.
        extra: additional manifest entries, for example {"step": 250, "val_loss": 1.5}.
        chat: chat template of a chat model.
        head: weights of an additional head, such as a reward head.

    Raises:
        CheckpointError: the folder holds something else than a bundle.
        StorageError: it cannot be written; an existing bundle is unchanged.
    """
    gpt = unwrap(model)
    if not isinstance(gpt, GPT):
        raise TypeError(f"a bundle holds a GPT, and this is a {type(gpt).__name__}")
    with _new_bundle(folder) as temporary:
        write_bundle_files(temporary, plain_state_dict(gpt), gpt.config, tokenizer)
        if chat is not None:
            atomic.write_json(temporary / CHAT, chat.to_json())
        if head is not None:
            atomic.write_bytes(temporary / HEAD, safetensors.torch.save(dict(head)))
        write_manifest(temporary, extra or {})


def save_adapter(
    folder: Path, adapter: Adapter, base: Base, bundle: Bundle, extra: dict[str, Any] | None = None
) -> None:
    """Write LoRA weights; `load_bundle` adds them to their base with the bits of training.

    The path of the base is relative to the adapter, so both may be moved together.

    Args:
        folder: output folder; an existing bundle is replaced.
        adapter: the trained weights.
        base: the bundle they were trained on.
        bundle: provides the fine-tuned model's config, tokenizer and chat template.
        extra: additional manifest entries.

    Raises:
        CheckpointError: the folder holds something else than a bundle.
        StorageError: it cannot be written; an existing bundle is unchanged.
    """
    where, here = base.folder.resolve(), folder.resolve()
    try:
        place = Path(os.path.relpath(where, here)).as_posix()
    except ValueError:  # on another drive of Windows
        place = where.as_posix()
    note = {"base": place, "base_sha256": base.sha256, "scale": adapter.scale}
    with _new_bundle(folder) as temporary:
        write_bundle_files(temporary, adapter.to_tensors(), bundle.config, bundle.tokenizer, ADAPTER)
        if bundle.chat is not None:
            atomic.write_json(temporary / CHAT, bundle.chat.to_json())
        write_manifest(temporary, {**(extra or {}), **note})


@contextmanager
def _new_bundle(folder: Path) -> Iterator[Path]:
    """Yield a new folder that then replaces a bundle."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not looks_like_bundle(folder)):
        raise CheckpointError(f"{folder} exists and is not a bundle; it was left alone, choose another name")
    previous = previous_place(folder)
    with atomic.new_folder(folder) as temporary:
        yield temporary
        if folder.exists():
            if previous.exists():
                atomic.remove_tree(previous)
            # A folder cannot be replaced in one step; meanwhile the old one is found under this name.
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


def load_bundle(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpoint: str | int = "best",
    context: int | None = None,
) -> Bundle:
    """Load a model for sampling, in evaluation mode. Leaves the global random generator alone.

    Args:
        path: a bundle, a checkpoint, or the folder of a training run.
        device: device of the model.
        dtype: dtype of its weights.
        checkpoint: checkpoint of a run: "best", "last", or a step.
        context: context in tokens; None: the model's own.

    Raises:
        CheckpointError: there is no bundle, it is damaged, or its files do not fit together.
        ConfigError: the model does not support the context, or does not fit into free memory.
    """
    folder = find_bundle(path, checkpoint)
    listed = check_files(folder)
    config = read_config(folder)
    try:
        tokenizer = load_tokenizer(folder)
    except DataError as error:
        raise CheckpointError(f"{folder / TOKENIZER}: {error}") from error
    chat = read_chat(folder, config) if CHAT in listed else None
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}; "
            "they do not belong together"
        )
    require_layers(folder, config)
    try:
        outline = blank_gpt(config, "meta")  # allocates nothing, whatever sizes a damaged config has
    except RuntimeError as error:
        raise CheckpointError(f"{folder / CONFIG} asks for sizes that no machine has: {error}") from error
    config = narrowed(config, context, path)
    weights = _read_adapted(folder, outline) if ADAPTER in listed else read_weights(folder / WEIGHTS, outline)
    require_memory(folder, config, outline)
    model = blank_gpt(config)
    model.load_state_dict(cut_positions(weights, config), strict=False)
    return Bundle(config, model.to(device, dtype).eval(), tokenizer, chat)


def _read_adapted(folder: Path, model: GPT) -> dict[str, Tensor]:
    """Return an adapter's base with the adapter added: the weights of `model`."""
    where, sha256, scale = place_of_base(folder)
    if (base := base_at(where)).sha256 != sha256:
        raise CheckpointError(
            f"{folder} is an adapter of another model than {where} holds now; "
            f"the file with that one's weights has the SHA-256 {sha256}"
        )
    adapter = Adapter.from_tensors(read_tensors(folder / ADAPTER), scale)
    before = load_bundle(base.folder).model
    weights = adapter.applied_to(cut_positions(plain_state_dict(before), model.config), model.config.vocab_size)
    require_fit(weights, model, folder / ADAPTER)
    return weights
