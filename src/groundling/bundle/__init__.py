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
    writing.py  atomic writing of a bundle's folder and files
    context.py  a model with a shorter context
    limits.py   layers and memory, checked before a model is built
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from groundling.bundle.adapter import Adapter, Base, base_at, read_base_reference
from groundling.bundle.context import cut_positions, limit_context
from groundling.bundle.layout import (
    ADAPTER,
    CHAT,
    CONFIG,
    HEAD,
    TOKENIZER,
    WEIGHTS,
    check_files,
    find_bundle,
    read_chat,
    read_config,
    require_language_model,
)
from groundling.bundle.limits import require_layers, require_memory
from groundling.bundle.weights import plain_state_dict, read_weights, require_fit
from groundling.bundle.writing import new_bundle, write_bundle_files
from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.uninitialized import blank_gpt
from groundling.storage import atomic
from groundling.storage.manifest import write_manifest
from groundling.storage.tensors import read_tensors
from groundling.system.runtime import unwrap
from groundling.text.chat.messages import Message
from groundling.text.chat.reading import messages_in
from groundling.text.chat.template import ChatTemplate
from groundling.text.chat.thoughts import reply_text
from groundling.text.serialize import load_tokenizer
from groundling.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Bundle:
    """A model with its config and its tokenizer: all that sampling needs."""

    config: GPTConfig
    model: GPT
    tokenizer: Tokenizer
    chat: ChatTemplate | None = None
    """Chat template; None: a base model."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end generation: of a text, and of a reply."""
        return self.tokenizer.end_ids if self.chat is None else self.chat.end_ids(self.tokenizer)

    @property
    def n_ids(self) -> int:
        """Only ids below this are sampled; the rest are padding or role tokens."""
        return self.tokenizer.vocab_size if self.chat is None else self.chat.n_reply_ids(self.tokenizer)


@dataclass(frozen=True)
class ChatBundle(Bundle):
    """A bundle with a chat template: a chat model, or a base model at the start of fine-tuning."""

    chat: ChatTemplate = field()

    def encode_chat(self, messages: Sequence[Message], *, thinking: bool = True) -> list[int]:
        """Encode a conversation as a prompt, which ends with the assistant's opening.

        Args:
            messages: the conversation.
            thinking: whether a reasoning model may reason.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        return self.chat.prompt(messages, self.tokenizer, thinking=thinking)

    def encode_reply(self, text: str) -> list[int]:
        """Encode a reply that follows a prompt, with its end token.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        return self.chat.reply(text, self.tokenizer)

    def decode_chat(self, ids: Sequence[int]) -> list[Message]:
        """The messages of a prompt; the reply it opens is an empty message."""
        return messages_in(ids, self.chat, self.tokenizer)

    def decode_reply(self, ids: Sequence[int]) -> str:
        """The text of a reply, without its reasoning."""
        return reply_text(ids, self.chat, self.tokenizer)


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
        CheckpointError: the folder holds something other than a bundle.
        StorageError: it cannot be written; an existing bundle is unchanged.
    """
    gpt = unwrap(model)
    if not isinstance(gpt, GPT):
        raise TypeError(f"a bundle holds a GPT, not a {type(gpt).__name__}")
    with new_bundle(folder) as temporary:
        write_bundle_files(temporary, plain_state_dict(gpt), gpt.config, tokenizer)
        if chat is not None:
            atomic.write_json(temporary / CHAT, chat.to_json())
        if head is not None:
            atomic.write_bytes(temporary / HEAD, safetensors.torch.save(dict(head)))
        write_manifest(temporary, extra or {})


def save_adapter(
    folder: Path, adapter: Adapter, base: Base, bundle: Bundle, extra: dict[str, Any] | None = None
) -> None:
    """Write LoRA weights; `load_bundle` merges them into their base, bit-equal to training.

    The path of the base is relative to the adapter, so both may be moved together.

    Args:
        folder: output folder; an existing bundle is replaced.
        adapter: the trained weights.
        base: the bundle they were trained on.
        bundle: provides the fine-tuned model's config, tokenizer and chat template.
        extra: additional manifest entries.

    Raises:
        CheckpointError: the folder holds something other than a bundle.
        StorageError: it cannot be written; an existing bundle is unchanged.
    """
    base_folder = base.folder.resolve()
    try:
        path = Path(os.path.relpath(base_folder, folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        path = base_folder.as_posix()
    note = {"base": path, "base_sha256": base.sha256, "scale": adapter.scale}
    with new_bundle(folder) as temporary:
        write_bundle_files(temporary, adapter.to_tensors(), bundle.config, bundle.tokenizer, ADAPTER)
        if bundle.chat is not None:
            atomic.write_json(temporary / CHAT, bundle.chat.to_json())
        write_manifest(temporary, {**(extra or {}), **note})


def load_bundle(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpoint: str | int = "best",
    context: int | None = None,
) -> Bundle:
    """Load a model for sampling, in evaluation mode; a chat model as a `ChatBundle`.

    Leaves the global random generator alone.

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
        outline = blank_gpt(config, "meta")  # allocates nothing, even if a damaged config has huge sizes
    except RuntimeError as error:
        raise CheckpointError(f"{folder / CONFIG} has sizes that no machine can hold: {error}") from error
    config = limit_context(config, context, path)
    weights = _read_adapted(folder, outline) if ADAPTER in listed else read_weights(folder / WEIGHTS, outline)
    require_memory(folder, config, outline)
    model = blank_gpt(config)
    model.load_state_dict(cut_positions(weights, config), strict=False)
    model = model.to(device, dtype).eval()
    return Bundle(config, model, tokenizer) if chat is None else ChatBundle(config, model, tokenizer, chat)


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
        raise ConfigError(f"{path} is a base model, not a chat model; fine-tune it with `groundling sft {where}`")
    return ChatBundle(bundle.config, bundle.model, bundle.tokenizer, bundle.chat)


def _read_adapted(folder: Path, model: GPT) -> dict[str, Tensor]:
    """Merge an adapter into its base; return the weights of `model`."""
    where, sha256, scale = read_base_reference(folder)
    if (base := base_at(where)).sha256 != sha256:
        raise CheckpointError(
            f"{folder} is an adapter of a different model than {where} holds now; "
            f"the weights of its base have the SHA-256 {sha256}"
        )
    adapter = Adapter.from_tensors(read_tensors(folder / ADAPTER), scale)
    base_model = load_bundle(base.folder).model
    weights = adapter.applied_to(cut_positions(plain_state_dict(base_model), model.config), model.config.vocab_size)
    require_fit(weights, model, folder / ADAPTER)
    return weights
