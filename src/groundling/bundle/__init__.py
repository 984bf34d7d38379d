"""A bundle: one folder with a model and its tokenizer, in formats that cannot run code when loaded.

    config.json  model.safetensors  tokenizer.json  manifest.json; a chat model also has chat.json

An adapter is a bundle with `adapter.safetensors` in place of the weights, whose manifest names the base bundle.

The folder `bundle` of a checkpoint has all but the manifest; the checkpoint's manifest covers it. A run:

    RUN/checkpoints/step-00000250/{bundle/, training.safetensors, state.json, manifest.json}
    RUN/bundle/     the best checkpoint's, once training has ended

In reading order:

    layout.py   file names, choice of a checkpoint, checks
    weights.py  weights under plain names
    adapter.py  LoRA adapters and their base
    context.py  a model with a shorter context
"""

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    require_language_model,
)
from groundling.bundle.weights import plain_state_dict, read_weights, require_fit
from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.uninitialized import blank_gpt
from groundling.storage import atomic
from groundling.storage.manifest import write_manifest
from groundling.storage.tensors import read_tensors, tensor_names
from groundling.system.memory import memory_of
from groundling.system.runtime import unwrap
from groundling.text.chat.messages import Message
from groundling.text.chat.reading import messages_in
from groundling.text.chat.template import ChatTemplate
from groundling.text.chat.thoughts import reply_text
from groundling.text.serialize import load_tokenizer, save_tokenizer
from groundling.text.tokenizer import Tokenizer

MAX_ADAPTERS = 20
"""Adapters stacked on one base."""
MAX_TABLES = 1 << 27
"""Limit in bytes of the rotary tables, beyond four times the weights: they are not in a file that bounds them."""


@dataclass(frozen=True)
class Bundle:
    """A model with its config and its tokenizer: all that sampling needs."""

    config: GPTConfig
    model: GPT
    tokenizer: Tokenizer
    chat: ChatTemplate | None = None
    """The chat template; None: a base model."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end generation: of a text, and of a reply."""
        return self.tokenizer.end_ids if self.chat is None else self.chat.end_ids(self.tokenizer)

    @property
    def n_ids(self) -> int:
        """Only ids below this are sampled; those above are padding, or start a message."""
        return self.tokenizer.vocab_size if self.chat is None else self.chat.n_reply_ids(self.tokenizer)


@dataclass(frozen=True)
class ChatBundle(Bundle):
    """A bundle whose model has a chat template: a chat model, or a base model that is about to become one."""

    chat: ChatTemplate = field()

    def encode_chat(self, messages: Sequence[Message], *, thinking: bool = True) -> list[int]:
        """A conversation as a prompt, which ends where the assistant's reply begins.

        Args:
            messages: the conversation.
            thinking: whether a model that thinks before it replies may do so.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        return self.chat.prompt(messages, self.tokenizer, thinking=thinking)

    def encode_reply(self, text: str) -> list[int]:
        """A reply as ids, with its end, to follow a prompt.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        return self.chat.reply(text, self.tokenizer)

    def decode_chat(self, ids: Sequence[int]) -> list[Message]:
        """The messages of a prompt; the reply that it asks for is an empty one."""
        return messages_in(ids, self.chat, self.tokenizer)

    def decode_reply(self, ids: Sequence[int]) -> str:
        """The text of a reply, without thoughts."""
        return reply_text(ids, self.chat, self.tokenizer)


def save_bundle(
    folder: Path,
    model: nn.Module,
    tokenizer: Tokenizer,
    extra: dict[str, Any] | None = None,
    chat: ChatTemplate | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a bundle atomically: the folder holds the old one or the new one at any time.

    Args:
        folder: an existing bundle there is replaced.
        model: a GPT: plain, compiled, or wrapped for data parallelism.
        tokenizer: the one the model was trained with.
        extra: more entries of the manifest, for example {"step": 250, "val_loss": 1.5}.
        chat: the chat template, if any.
        head: weights of a head besides the language model's, if any.

    Raises:
        CheckpointError: the folder holds something other than a bundle.
        StorageError: writing failed; the old bundle is unchanged.
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
    """Write an adapter as a bundle; `load_bundle` adds it to its base, with the very bits of training.

    The base is stored as a relative path, so that both can be moved together.

    Args:
        folder: an existing bundle there is replaced.
        adapter: the trained adapter.
        base: what it was trained on.
        bundle: config, tokenizer and chat template of the fine-tuned model.
        extra: more entries of the manifest.

    Raises:
        CheckpointError: the folder holds something other than a bundle.
        StorageError: writing failed; the old bundle is unchanged.
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
    """A temporary folder that replaces the bundle at the end."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not looks_like_bundle(folder)):
        raise CheckpointError(f"{folder} exists and is not a bundle; it was left alone, choose another name")
    previous = previous_place(folder)
    with atomic.new_folder(folder) as temporary:
        yield temporary
        if folder.exists():
            if previous.exists():
                atomic.remove_tree(previous)
            # A folder cannot be replaced in one step; until the new one is in place, the old one keeps this name.
            atomic.replace(folder, previous)
    if previous.exists():
        atomic.remove_tree(previous)


def write_bundle_files(
    folder: Path, weights: Mapping[str, Tensor], config: GPTConfig, tokenizer: Tokenizer, name: str = WEIGHTS
) -> None:
    """Write a bundle's three files; the caller makes the folder atomic and writes its manifest.

    Args:
        folder: an existing folder.
        weights: from `plain_state_dict`.
        config: of the model.
        tokenizer: the one the model was trained with.
        name: file name of the weights.

    Raises:
        StorageError: writing failed.
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
    """Load a model in evaluation mode. Does not use the global random generator.

    Args:
        path: a bundle, a checkpoint, or the folder of a training run.
        device: of the model.
        dtype: of its weights.
        checkpoint: of a run: "best", "last", or a step.
        context: context length in tokens; None: the model's own.

    Raises:
        CheckpointError: there is no bundle, it is damaged, or its parts do not fit together.
        ConfigError: the model has no such context, or does not fit into free memory.
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
    _require_layers(folder, config)
    try:
        outline = blank_gpt(config, "meta")  # no memory, whatever sizes a damaged config has
    except RuntimeError as error:
        raise CheckpointError(f"{folder / CONFIG} asks for sizes that no machine has: {error}") from error
    config = narrowed(config, context, path)
    weights = _read_adapted(folder, outline) if ADAPTER in listed else read_weights(folder / WEIGHTS, outline)
    _require_memory(folder, config, outline)
    model = blank_gpt(config)
    model.load_state_dict(cut_positions(weights, config), strict=False)
    return Bundle(config, model.to(device, dtype).eval(), tokenizer, chat)


def load_chat_bundle(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpoint: str | int = "best",
    context: int | None = None,
) -> ChatBundle:
    """`load_bundle` for a chat model.

    Raises:
        ConfigError: it is a base model or a reward model; or as `load_bundle`.
        CheckpointError: as `load_bundle`.
    """
    require_language_model(path)
    return require_chat_model(load_bundle(path, device, dtype, checkpoint, context), path)


def require_chat_model(bundle: Bundle, path: Path | str) -> ChatBundle:
    """The bundle as a `ChatBundle`.

    Args:
        bundle: of a chat model.
        path: where it was loaded from, for the error.

    Raises:
        ConfigError: it is a base model.
    """
    if bundle.chat is None:
        where = shlex.quote(str(path))
        raise ConfigError(f"{path} is a base model, not a chat model; `groundling sft {where}` makes one of it")
    return ChatBundle(bundle.config, bundle.model, bundle.tokenizer, bundle.chat)


def contexts(paths: Sequence[Path | str], context: int | None) -> list[int | None]:
    """The context to load each of several models with: `context`, or the model's own if that is shorter.

    Args:
        paths: as for `load_bundle`.
        context: in tokens; None: each model's own.

    Raises:
        CheckpointError: there is no bundle.
        ConfigError: all models have a shorter context.
    """
    if context is None:
        return [None] * len(paths)
    own = [read_config(path).block_size for path in paths]
    longest = max(range(len(own)), key=own.__getitem__)
    narrowed(read_config(paths[longest]), context, paths[longest])
    return [min(context, each) for each in own]


def _require_layers(folder: Path, config: GPTConfig) -> None:
    """Check the number of layers against the weights, since layers take time to build even without memory.

    Raises:
        CheckpointError: they differ, or an adapter is its own base.
    """
    seen = [folder.resolve()]
    while os.path.lexists(seen[-1] / ADAPTER):
        base = find_bundle(place_of_base(seen[-1])[0]).resolve()
        if base in seen:
            raise CheckpointError(
                f"{folder} is an adapter whose base is {base}, which is an adapter of it; no model is"
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


def _require_memory(folder: Path, config: GPTConfig, outline: GPT) -> None:
    """Refuse a model that does not fit into memory, before the kernel kills the process."""
    tables = 0 if config.position == "learned" else 4 * config.block_size * config.head_width()
    weights, known = 4 * outline.n_parameters(), memory_of()
    if tables > MAX_TABLES + 4 * weights:
        raise ConfigError(
            f"{folder} has {weights / 1e6:,.1f} MB of weights, and a context of {config.block_size:,} tokens takes "
            f"tables of {tables / 1e6:,.1f} MB; give a shorter one with --context"
        )
    needed = weights + tables
    if known is not None and needed > known.free:
        raise ConfigError(
            f"the weights of {folder} take {needed / 1e9:,.1f} GB, and {known.free / 1e9:,.1f} GB of memory are free; "
            "end other programs, or take a smaller model"
        )


def _read_adapted(folder: Path, model: GPT) -> dict[str, Tensor]:
    """Weights of `model`: those of the adapter's base plus the adapter."""
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
