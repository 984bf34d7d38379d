"""Read nanoGPT's `ckpt.pt`: a pickle, of which only tensors and plain data are loaded; no code runs.

This is the only module that reads a pickle, and only for an explicit import; `meta.pkl` beside it is never opened.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.export.config_json import MAX_SIZE
from groundling.export.families import GPT2
from groundling.export.weights import to_ours
from groundling.model.config import MAX_LAYERS, GPTConfig
from groundling.storage import files
from groundling.text.char import CharTokenizer

TIED = "lm_head.weight"
"""The output matrix, which may share storage with the embedding."""
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
GELU_NOTE = "its exact GELU becomes the tanh approximation, which moves its logits by thousandths (see docs: export)"


def read_checkpoint(file: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return our config and our weights in float32.

    Raises:
        CheckpointError: there is no file, it contains code, or it is not nanoGPT's.
    """
    stored = _read(file)
    sizes, tensors = stored.get("model_args"), stored.get("model")
    if not isinstance(sizes, dict) or not isinstance(tensors, dict):
        raise CheckpointError(f"{file} is not a checkpoint of nanoGPT: it has no 'model' with its 'model_args'")
    if absent := [name for name in SIZES if type(sizes.get(name)) is not int or sizes[name] > MAX_SIZE]:
        raise CheckpointError(f"{file} is not a checkpoint of nanoGPT: its model_args have no {absent[0]}")
    if sizes["n_layer"] > MAX_LAYERS:
        raise CheckpointError(f"{file}: {sizes['n_layer']:,} layers are more than the {MAX_LAYERS:,} that are built")
    # torch.compile's wrapper adds this prefix.
    tensors = {str(name).removeprefix("_orig_mod."): value for name, value in tensors.items() if _is_plain(value)}
    _require_held(tensors, file)
    table, output = tensors.get("transformer.wte.weight"), tensors.get(TIED)
    try:
        config = GPTConfig(
            **{name: sizes[name] for name in SIZES},
            dropout=float(sizes.get("dropout", 0.0)),
            attention_dropout=float(sizes.get("dropout", 0.0)),
            bias=bool(sizes.get("bias", True)),
            tie_weights=output is None or table is None or torch.equal(table, output),
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return config, to_ours(tensors, config, GPT2, str(file), transposed=False)


def _require_held(tensors: dict[str, Tensor], file: Path) -> None:
    """Check for expanded or shared storage, which lets a small file claim any number of weights."""
    n_bytes, most = sum(tensor.nbytes for name, tensor in tensors.items() if name != TIED), file.stat().st_size
    if n_bytes > most:
        raise CheckpointError(f"{file} has {most:,} bytes, and says that its weights have {n_bytes:,}")


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}; give the ckpt.pt of nanoGPT")
    try:
        with files.held(file, links=True) as (name, _):
            stored = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # errors differ with the kind of file
        raise CheckpointError(
            f"{file} cannot be read as tensors and plain data alone: it is damaged, or holds code, which is never run "
            f"here ({' '.join(str(error).split())[:160]})"
        ) from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file} is not a checkpoint of nanoGPT: it holds a {type(stored).__name__}")
    return stored


def tokenizer_of_text(file: Path, vocab_size: int) -> CharTokenizer:
    """Return the characters of nanoGPT's training text; ids are indices into `sorted(set(text))`, as in ours.

    Raises:
        DataError: the file cannot be read, or its number of characters differs from the model's vocabulary.
    """
    try:
        # Newlines are translated, as when nanoGPT reads the text.
        tokenizer = CharTokenizer.from_text(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the text {file} cannot be read: {error}; give the UTF-8 file nanoGPT was trained on"
        ) from error
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"{file} has {tokenizer.vocab_size} different characters and the model {vocab_size} tokens; "
            "give the whole text that it was trained on, or its tokenizer"
        )
    return tokenizer
