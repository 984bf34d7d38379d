"""Load a model from a folder in the layout of `transformers`: its config, and its safetensors weights."""

import dataclasses
from pathlib import Path, PurePosixPath

from torch import Tensor

from groundling.errors import CheckpointError, DataError
from groundling.export.additions import without_copies
from groundling.export.export_note import ExportNote, read_note
from groundling.export.families import GPT2, Family, read_config
from groundling.export.weights import to_ours, with_biases, without_absent_biases
from groundling.model.config import GPTConfig
from groundling.storage import files
from groundling.storage.manifest import read_json_object
from groundling.storage.tensors import read_foreign
from groundling.system.optional import optional_import

CONFIG, WEIGHTS, INDEX, PICKLED = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model"
GENERATION = "generation_config.json"
WANTED = ("*.json", "*.safetensors", "merges.txt", "tokenizer.model", "chat_template.jinja")
"""Files downloaded from the hub: no pickles, no code."""


def find_folder(source: str) -> Path:
    """Return the folder; download a model on the hub to the hub library's cache.

    Raises:
        CheckpointError: there is no such folder, and the name is not valid on the hub.
        DataError: the hub cannot be reached, or has no such model.
        MissingExtraError: the name is one on the hub, and huggingface_hub is not installed.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    parts = source.split("/")
    if folder.exists() or len(parts) > 2 or not all(part and part[0] not in "." for part in parts):
        raise CheckpointError(f"{source} is not a folder; give one with {CONFIG} and {WEIGHTS}")
    hub = optional_import("huggingface_hub", "export")
    try:
        return Path(hub.snapshot_download(source, allow_patterns=list(WANTED), token=False, etag_timeout=10))
    except Exception as error:  # errors of the library, its HTTP client and the system
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"there is no folder {source!r}, and it cannot be had from the Hugging Face hub ({reason[:200]}); "
            "download it where the hub can be reached, and give its folder"
        ) from error


def read_model(folder: Path) -> tuple[Family, GPTConfig, dict[str, Tensor]]:
    """Return the family, our config, and our weights in float32.

    Raises:
        CheckpointError: the model is unsupported, or a file is missing, damaged or a pickle.
    """
    if not files.is_regular(folder / CONFIG, links=True):
        raise CheckpointError(f"{folder} has no {CONFIG}; give a folder that transformers could load a model from")
    values = read_json_object(folder / CONFIG, links=True)
    family, config = read_config(values, str(folder / CONFIG))
    full = with_biases(config, family)
    weights = to_ours(_read_all(folder), full, family, str(folder))
    config, weights = _without_added_rows(config, weights, read_note(values))
    if family is not GPT2 or config.bias:
        return family, config, weights
    # Our note says there are no biases: drop them, unless they were trained since.
    without_biases = without_absent_biases(weights)
    if without_biases is None:
        return family, with_biases(config, family), weights
    return family, config, without_biases


def _without_added_rows(
    config: GPTConfig, weights: dict[str, Tensor], note: ExportNote | None
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Remove rows added by our export; rows trained since stay as spare ones."""
    if note is None or note.like_row is None or note.like_row >= config.vocab_size - note.added_rows:
        return config, weights
    fewer = without_copies(weights, note.like_row, note.added_rows)
    if fewer is None:
        return config, weights
    return dataclasses.replace(config, vocab_size=config.vocab_size - note.added_rows), fewer


def read_own_note(folder: Path) -> ExportNote | None:
    """Return the note of our export; None for other folders.

    Raises:
        CheckpointError: the config cannot be read.
    """
    return read_note(read_json_object(folder / CONFIG, links=True))


def read_end_ids(folder: Path) -> list[int]:
    """Return the ids that end a text, from config.json and generation_config.json.

    Raises:
        CheckpointError: a file has something else than one or more ids.
    """
    found: list[int] = []
    for name in (GENERATION, CONFIG):
        values = read_json_object(folder / name, links=True) if (folder / name).exists() else {}
        given = values.get("eos_token_id")
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if not all(type(id) is int and id >= 0 for id in ids):
            raise CheckpointError(f"{folder / name}: eos_token_id is {given!r}; it must be an id, or a list of ids")
        found += ids
    return list(dict.fromkeys(found))


def _read_all(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of the folder's safetensors, one file or many."""
    if (folder / WEIGHTS).exists():
        return read_foreign(folder / WEIGHTS)
    if (folder / INDEX).exists():
        return _read_shards(folder)
    if pickles := sorted(path.name for path in folder.glob(f"{PICKLED}*")):
        raise CheckpointError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which is never opened here, because it can run "
            "code; where you trust it, let transformers save it again as safetensors: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT)"
        )
    raise CheckpointError(f"{folder} has no {WEIGHTS} and no {INDEX}; download the weights too")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all files in the index, each from its own file."""
    places = read_json_object(folder / INDEX, links=True).get("weight_map")
    if not isinstance(places, dict) or not all(_is_plain_name(name) for name in places.values()):
        raise CheckpointError(f"{folder / INDEX} is damaged: it does not say which file holds which tensor")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if not (folder / file).exists():
            raise CheckpointError(f"{folder / file} is missing, and {INDEX} names it; download the whole model")
        tensors.update(read_foreign(folder / file))
    if absent := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(f"{folder}: no file holds {absent[0]}, and {INDEX} names it; download the model again")
    return tensors


def _is_plain_name(name: object) -> bool:
    """Whether a name is a file in the same folder."""
    return isinstance(name, str) and bool(name) and PurePosixPath(name).name == name and "\\" not in name
