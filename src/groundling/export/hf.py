"""A bundle as a folder that `transformers` loads without any code of ours: GPT-2, Llama or Qwen3.

config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  [tokenizer.model]
"""

import base64
from pathlib import Path
from typing import Any

import safetensors.torch

from groundling import atomicio
from groundling.bundle import Bundle, plain_state_dict
from groundling.errors import CheckpointError
from groundling.export.families import NOTE, Family, family_of, write_config
from groundling.export.hf_tokenizer import tokenizer_settings, tokenizer_spec
from groundling.export.weights import to_theirs
from groundling.manifest import read_json_object

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
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
        StorageError: it could not be written.
    """
    family, ends = family_of(bundle.config), _ends(bundle)
    config = {**write_config(bundle.config), **ends}
    spec, settings = tokenizer_spec(bundle.tokenizer), tokenizer_settings(bundle.tokenizer, bundle.config.block_size)
    weights = to_theirs(plain_state_dict(bundle.model), bundle.config, family)
    with atomicio.new_folder(folder) as temporary:
        atomicio.write_json(temporary / CONFIG, config)
        # Shorter texts are filled up with the last token there is; that is for generating only.
        atomicio.write_json(temporary / GENERATION, {**ends, "pad_token_id": ends.get("eos_token_id")})
        # "format" is what transformers 4 asks for before it reads the file
        atomicio.write_bytes(temporary / WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))
        atomicio.write_json(temporary / TOKENIZER, spec)
        atomicio.write_json(temporary / TOKENIZER_CONFIG, settings)
        if "model" in (values := bundle.tokenizer.to_json()):
            atomicio.write_bytes(temporary / SENTENCEPIECE, base64.b64decode(values["model"]))
        if folder.exists():
            atomicio.remove_tree(folder)
    return family


def is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but an earlier export of ours, and so may be replaced."""
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= FILES:
        return False
    try:
        return NOTE in read_json_object(folder / CONFIG)
    except CheckpointError:
        return False


def _ends(bundle: Bundle) -> dict[str, Any]:
    """The ids that begin and end a text: only GPT-2's own vocabulary has one."""
    end_of_text = getattr(bundle.tokenizer, "end_of_text", None)
    return {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
