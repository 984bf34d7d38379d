"""Export a bundle as a folder for `transformers`, without custom code: GPT-2, Llama or Qwen3.

config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json
[tokenizer.model of SentencePiece]  [chat_template.jinja of a chat model]
"""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from groundling.bundle import Bundle
from groundling.bundle.weights import plain_state_dict
from groundling.errors import CheckpointError, StorageError
from groundling.export.additions import Additions, additions_of, rarest_token, special_names, with_copies
from groundling.export.export_note import EXPORT_NOTE, ExportNote, chat_template
from groundling.export.families import NOTE, Family, family_of, write_config
from groundling.export.hf_tokenizer import names_of, tokenizer_settings, tokenizer_spec, with_additions
from groundling.export.weights import to_theirs
from groundling.storage import atomic
from groundling.storage.manifest import read_json_object
from groundling.storage.tensors import opened

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
TEMPLATE = "chat_template.jinja"
METADATA = {"format": "pt", "written_by": "groundling"}
"""Metadata of the weights: "format" is required by transformers 4; the other marks our exports."""
FILES = {CONFIG, GENERATION, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE, TEMPLATE}


def export_hf(bundle: Bundle, folder: Path) -> Family:
    """Write a bundle as a folder for `transformers`, atomically.

    Args:
        bundle: the model to export.
        folder: output folder; replaced if `is_export` accepts it.

    Returns:
        the family of the model.

    Raises:
        ConfigError: no family matches the model exactly, or its tokenizer has no equivalent in the library.
        MissingExtraError: a library for the tokenizer is not installed.
        StorageError: it cannot be written, or something else is there.
    """
    if (folder.exists() or folder.is_symlink()) and not is_export(folder):
        raise StorageError(f"{folder} is not an earlier export, and was left alone; choose another name")
    family, spec = family_of(bundle.config), tokenizer_spec(bundle.tokenizer)
    additions = additions_of(bundle.tokenizer, bundle.chat, n_rows=bundle.config.vocab_size, taken=names_of(spec))
    config, weights = _model(bundle, family, additions)
    template = chat_template(bundle.tokenizer, bundle.chat, additions.texts)
    with atomic.new_folder(folder) as temporary:
        atomic.write_json(temporary / CONFIG, config)
        atomic.write_json(temporary / GENERATION, _generation(bundle, additions))
        atomic.write_bytes(temporary / WEIGHTS, safetensors.torch.save(weights, metadata=METADATA))
        atomic.write_json(temporary / TOKENIZER, with_additions(spec, additions, chats=template is not None))
        atomic.write_json(temporary / TOKENIZER_CONFIG, _tokenizer_settings(bundle, additions))
        if template is not None:
            atomic.write_text(temporary / TEMPLATE, template)
        if "model" in (values := bundle.tokenizer.to_json()):
            atomic.write_bytes(temporary / SENTENCEPIECE, base64.b64decode(values["model"]))
        if folder.exists():
            atomic.remove_tree(folder)
    return family


def is_export(folder: Path) -> bool:
    """Whether a folder holds only an earlier export of ours, which may be replaced.

    A model trained and saved there by other libraries lacks our mark in the weights.
    """
    if folder.is_symlink() or not folder.is_dir() or not {path.name for path in folder.iterdir()} <= FILES:
        return False
    try:
        with opened(folder / WEIGHTS) as file:
            return bool(file.metadata() == METADATA) and NOTE in read_json_object(folder / CONFIG)
    except CheckpointError:
        return not any(folder.iterdir())


def _model(bundle: Bundle, family: Family, additions: Additions) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors, with rows for all ids of the tokenizer."""
    weights, n_added = plain_state_dict(bundle.model), additions.n_ids - bundle.config.vocab_size
    like_row = None
    if n_added:
        like_row = rarest_token(bundle)
        weights = with_copies(weights, like_row, n_added)
    wide = dataclasses.replace(bundle.config, vocab_size=additions.n_ids)
    note = ExportNote(texts=additions.texts, added_rows=n_added, like_row=like_row, chat=bundle.chat)
    config = {
        **write_config(wide),
        **_ends(bundle, additions),
        NOTE: dataclasses.asdict(bundle.config),
        EXPORT_NOTE: note.to_json(),
    }
    return config, to_theirs(weights, wide, family)


def _ends(bundle: Bundle, additions: Additions) -> dict[str, Any]:
    """Return the ids that begin and end a text; a conversation starts with its own."""
    return {
        "bos_token_id": None if bundle.chat else additions.end,
        "eos_token_id": list(additions.ends) if len(additions.ends) > 1 else additions.end,
    }


def _generation(bundle: Bundle, additions: Additions) -> dict[str, Any]:
    """Return the settings of `generate` of transformers."""
    # Pads shorter texts with the last token; used for generation only.
    settings = {**_ends(bundle, additions), "pad_token_id": additions.end}
    if additions.never_drawn:
        settings["suppress_tokens"] = additions.never_drawn
    return settings


def _tokenizer_settings(bundle: Bundle, additions: Additions) -> dict[str, Any]:
    names = special_names(bundle.tokenizer, additions.texts)
    unknown = None if additions.unknown is None else names[additions.unknown]
    return tokenizer_settings(names[additions.end], unknown, bundle.config.block_size, chats=bundle.chat is not None)
