"""`groundling import hf|nanogpt`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from torch import Tensor

from groundling import config
from groundling.bundle import save_bundle
from groundling.bundle.context import cut_positions, limit_context
from groundling.errors import CheckpointError, StorageError, require
from groundling.export.families import GPT2
from groundling.model.config import GPTConfig
from groundling.model.uninitialized import blank_gpt
from groundling.storage import atomic
from groundling.storage.manifest import MANIFEST, read_manifest
from groundling.system.progress import Progress
from groundling.text.chat.template import ChatTemplate
from groundling.text.serialize import FILE_NAME, load_tokenizer
from groundling.text.tokenizer import Tokenizer

FACT = "imported_from"
"""Manifest key that marks an imported bundle."""


@dataclass(frozen=True, kw_only=True)
class HFConfig:
    """Import GPT-2, Llama or Qwen3 from a transformers folder or the Hugging Face hub, safetensors only."""

    source: tyro.conf.Positional[str]
    """Folder with config.json and weights, or a model name on the Hugging Face hub."""
    out: tyro.conf.Positional[Path]
    """Output folder for the bundle."""
    tokenizer: str | None = None
    """Replace the model's tokenizer: gpt2, or a folder with a Groundling tokenizer.json."""
    context: int | None = None
    """Context length of the bundle in tokens; a shorter one uses less memory. None: the model's."""
    overwrite: bool = False
    """Replace an earlier import at `out`; other files there are kept."""


@dataclass(frozen=True, kw_only=True)
class NanoGPTConfig:
    """Import a nanoGPT checkpoint. Its meta.pkl can run code and is never opened: name the training text instead."""

    source: tyro.conf.Positional[Path]
    """Path of ckpt.pt."""
    out: tyro.conf.Positional[Path]
    """Output folder for the bundle."""
    text: Path | None = None
    """Training text; its characters are the vocabulary."""
    tokenizer: str | None = None
    """Instead of text: gpt2, or a folder with a Groundling tokenizer.json."""
    context: int | None = None
    """Context length of the bundle in tokens; a shorter one uses less memory. None: the model's."""
    overwrite: bool = False
    """Replace an earlier import at `out`; other files there are kept."""

    def __post_init__(self) -> None:
        """Check that exactly one tokenizer is given."""
        require(
            (self.text is None) != (self.tokenizer is None),
            "a nanoGPT checkpoint does not say its tokenizer in a way that is safe to read; give either --text "
            "(the file whose characters it was trained on) or --tokenizer (gpt2, or a folder with a tokenizer.json)",
        )


def main(argv: Sequence[str]) -> int:
    """Run `groundling import hf|nanogpt`."""
    commands = {
        "hf": (_hf, "GPT-2, Llama or Qwen3 from a transformers folder or the Hugging Face hub"),
        "nanogpt": (_nanogpt, "a nanoGPT ckpt.pt, loaded without running its code"),
    }
    with Progress("importing"):
        return config.run_subcommand(argv, commands, "groundling import")


def _hf(argv: list[str]) -> int:
    from groundling.export.hf_folder import find_folder, read_model
    from groundling.export.hf_speech import has_template, read_tokenizer_and_chat

    chosen = config.parse(HFConfig, argv, "groundling import hf")
    _require_room_for(chosen.out, chosen.overwrite)
    folder = find_folder(chosen.source)
    atomic.require_apart(folder, chosen.out)
    family, gpt_config, weights = read_model(folder)
    if chosen.tokenizer:
        tokenizer, chat = _named_tokenizer(chosen.tokenizer), None
        why = "its chat template belongs to its own tokenizer" if has_template(folder) else ""
    else:
        tokenizer, chat, why = read_tokenizer_and_chat(folder, family is GPT2)
    gpt_config = limit_context(gpt_config, chosen.context, chosen.source)
    facts = {FACT: chosen.source, "architecture": family.architecture}
    _save(chosen.out, gpt_config, weights, tokenizer, facts, chat)
    print(f"{chosen.out}: {family.architecture}, {_summary(gpt_config, weights, tokenizer, chat)}")
    if chat is None:
        if why:
            print(f"imported as a base model, without chat: {why}")
        print(f"sample from it: groundling sample {shlex.quote(str(chosen.out))}")
    else:
        print(f"chat with it: groundling chat {shlex.quote(str(chosen.out))}")
    return 0


def _nanogpt(argv: list[str]) -> int:
    from groundling.export.nanogpt import GELU_NOTE, read_checkpoint, tokenizer_of_text

    chosen = config.parse(NanoGPTConfig, argv, "groundling import nanogpt")
    _require_room_for(chosen.out, chosen.overwrite)
    gpt_config, weights = read_checkpoint(chosen.source)
    if chosen.text is not None:
        tokenizer: Tokenizer = tokenizer_of_text(chosen.text, gpt_config.vocab_size)
    else:
        tokenizer = _named_tokenizer(str(chosen.tokenizer))
    gpt_config = limit_context(gpt_config, chosen.context, chosen.source)
    _save(chosen.out, gpt_config, weights, tokenizer, {FACT: str(chosen.source), "architecture": "nanoGPT"})
    print(f"{chosen.out}: nanoGPT, {_summary(gpt_config, weights, tokenizer)}; {GELU_NOTE}")
    print(f"sample from it: groundling sample {shlex.quote(str(chosen.out))}")
    return 0


def _named_tokenizer(name: str) -> Tokenizer:
    """Return GPT-2's tokenizer, or one of ours from its folder.

    Raises:
        DataError: there is none, or it is damaged.
        MissingExtraError: its library is not installed.
    """
    if name == "gpt2" and not (Path(name) / FILE_NAME).is_file():
        from groundling.text.gpt2 import GPT2Tokenizer

        return GPT2Tokenizer()
    return load_tokenizer(Path(name))


def _require_room_for(out: Path, overwrite: bool) -> None:
    """Check the output path before reading anything.

    Raises:
        StorageError: it exists and must not be replaced.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise StorageError(f"{out} exists; choose another name, or --overwrite to replace an earlier import")
    try:
        is_import = out.is_dir() and FACT in read_manifest(out)
    except CheckpointError:
        is_import = False
    if not is_import:
        raise StorageError(
            f"{out} is not an earlier import (its {MANIFEST} says), and was left alone; choose another name"
        )


def _save(
    out: Path,
    gpt_config: GPTConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    facts: dict[str, Any],
    chat: ChatTemplate | None = None,
) -> None:
    """Build the model and write the bundle.

    Raises:
        CheckpointError: the tokenizer does not fit the model.
        StorageError: the bundle cannot be written.
    """
    if tokenizer.vocab_size > gpt_config.vocab_size:
        raise CheckpointError(
            f"the {tokenizer.kind} tokenizer has {tokenizer.vocab_size:,} ids and the model {gpt_config.vocab_size:,}; "
            "they do not belong together, so give the tokenizer it was trained with"
        )
    if chat is not None and max(chat.special_ids()) >= gpt_config.vocab_size:
        raise CheckpointError(
            f"the chat template has the id {max(chat.special_ids()):,} and the model {gpt_config.vocab_size:,} ids; "
            "they do not belong together, so give the folder as it was saved"
        )
    model = blank_gpt(gpt_config)
    # Not strict, because a tied matrix is stored once; all names and shapes have been checked.
    model.load_state_dict(cut_positions(weights, gpt_config), strict=False)
    atomic.make_folder(out.parent)
    save_bundle(out, model, tokenizer, facts, chat)


def _summary(
    gpt_config: GPTConfig, weights: dict[str, Tensor], tokenizer: Tokenizer, chat: ChatTemplate | None = None
) -> str:
    size = sum(tensor.numel() for tensor in weights.values())
    structure = {id for id in (chat.special_ids() if chat else ()) if id >= tokenizer.vocab_size}
    spare = gpt_config.vocab_size - tokenizer.vocab_size - len(structure)
    padded = f", and {spare:,} unused ids in the model" if spare else ""
    return f"{size:,} parameters, the {tokenizer.kind} tokenizer with {tokenizer.vocab_size:,} ids{padded}"
