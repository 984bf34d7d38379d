"""A bundle as a folder that `transformers` loads without any code of ours: GPT-2, Llama or Qwen3.

config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  [tokenizer.model]
"""

import base64
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from groundling import atomicio
from groundling.bundle import Bundle, plain_state_dict
from groundling.errors import CheckpointError, StorageError
from groundling.export.families import NOTE, Family, family_of, write_config
from groundling.export.hf_tokenizer import tokenizer_settings, tokenizer_spec
from groundling.export.weights import to_theirs
from groundling.manifest import read_json_object

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
METADATA = {"format": "pt", "written_by": "groundling"}
"""Of the weights' file: "format" is what transformers 4 asks for before it reads one; the other is our mark."""
FILES = {CONFIG, GENERATION, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE}


def export_hf(bundle: Bundle, folder: Path) -> Family:
    """Write a bundle as a folder for `transformers`; it appears whole or not at all.

    Args:
        bundle: what to export.
        folder: where; what `is_export` accepts there is replaced.

    Returns:
        the family that the model is.

    Raises:
        ConfigError: no family is exactly this model, or its tokenizer cannot be said in another library.
        MissingExtraError: a library that the tokenizer needs is not installed.
        StorageError: it could not be written, or something else stands there.
    """
    if (folder.exists() or folder.is_symlink()) and not is_export(folder):
        raise StorageError(f"{folder} is not an earlier export, and was left alone; choose another name")
    family, ends = family_of(bundle.config), _ends(bundle)
    config = {**write_config(bundle.config), **ends}
    spec, settings = tokenizer_spec(bundle.tokenizer), tokenizer_settings(bundle.tokenizer, bundle.config.block_size)
    weights = to_theirs(plain_state_dict(bundle.model), bundle.config, family)
    with atomicio.new_folder(folder) as temporary:
        atomicio.write_json(temporary / CONFIG, config)
        atomicio.write_json(temporary / GENERATION, _generation(bundle, ends))
        atomicio.write_bytes(temporary / WEIGHTS, safetensors.torch.save(weights, metadata=METADATA))
        atomicio.write_json(temporary / TOKENIZER, spec)
        atomicio.write_json(temporary / TOKENIZER_CONFIG, settings)
        if "model" in (values := bundle.tokenizer.to_json()):
            atomicio.write_bytes(temporary / SENTENCEPIECE, base64.b64decode(values["model"]))
        if folder.exists():
            atomicio.remove_tree(folder)
    return family


def is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but an earlier export of ours, and so may be replaced.

    What others have trained on and saved there is theirs: their libraries write no mark of ours into the weights.
    """
    if folder.is_symlink() or not folder.is_dir() or not {path.name for path in folder.iterdir()} <= FILES:
        return False
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            return bool(file.metadata() == METADATA) and NOTE in read_json_object(folder / CONFIG)
    except (CheckpointError, OSError, safetensors.SafetensorError):
        return not any(folder.iterdir())


def _ends(bundle: Bundle) -> dict[str, Any]:
    """The ids that begin and end a text: only GPT-2's own vocabulary has one."""
    end_of_text = next(iter(bundle.tokenizer.end_ids), None)
    return {"bos_token_id": end_of_text, "eos_token_id": end_of_text}


def _generation(bundle: Bundle, ends: dict[str, Any]) -> dict[str, Any]:
    """What `generate` of transformers is told."""
    # Shorter texts are filled up with the last token there is; that is for generating only.
    settings = {**ends, "pad_token_id": ends.get("eos_token_id")}
    if padding := list(range(bundle.tokenizer.vocab_size, bundle.config.vocab_size)):
        settings["suppress_tokens"] = padding  # they mean nothing, and are never drawn here
    return settings
