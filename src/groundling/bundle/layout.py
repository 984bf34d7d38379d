"""Layout of a bundle on disk: file names, selection of a checkpoint, checks against the manifest."""

import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundling.config import from_dict
from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.model.config import GPTConfig
from groundling.storage.manifest import MANIFEST, check_manifest, read_json_object, read_manifest
from groundling.text.chat.serialize import template_from_json
from groundling.text.chat.template import ChatTemplate

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER)
CHAT = "chat.json"
"""Chat template; only in bundles of chat models."""
HEAD = "head.safetensors"
"""Reward head; only in bundles of reward models."""
ADAPTER = "adapter.safetensors"
"""LoRA weights, in place of WEIGHTS; only in adapters."""
CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in a run folder."""
MAX_LOSS = 1e300
"""Limit of losses in manifests; a JSON integer may exceed any float."""
PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def read_config(path: Path | str) -> GPTConfig:
    """The model config of a bundle, a checkpoint or a run.

    Raises:
        CheckpointError: there is no bundle, or it is damaged.
    """
    file = find_bundle(path) / CONFIG
    try:
        return from_dict(GPTConfig, read_json_object(file))
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


def find_bundle(path: Path | str, checkpoint: str | int = "best") -> Path:
    """Find the folder of a bundle.

    The best checkpoint of a finished run is `RUN/bundle`; of an unfinished one, the checkpoint with the lowest
    validation loss, or the newest if none was measured.

    Args:
        path: a bundle, a checkpoint, or the folder of a training run.
        checkpoint: of a run: "best", "last", or a step.

    Raises:
        CheckpointError: there is none.
    """
    if path == "":  # Path("") is the current folder
        raise CheckpointError("the path of the model is empty; give the folder of a bundle, a checkpoint or a run")
    path = _existing(Path(path))
    if path.is_file():
        hint = "; pickles are never opened, because they can run code" if path.suffix in PICKLE_SUFFIXES else ""
        raise CheckpointError(f"{path} is a file; give the folder of a bundle, a checkpoint or a run{hint}")
    if not path.is_dir():
        raise CheckpointError(f"there is no {path}; give the folder of a bundle, a checkpoint or a run")
    inner, steps = _existing(path / "bundle"), model_checkpoints(path / CHECKPOINTS)
    if steps and not looks_like_bundle(path) and not (checkpoint == "best" and inner.is_dir()):
        return _select(steps, str(checkpoint), path) / "bundle"
    if checkpoint != "best":
        raise CheckpointError(f"{path} has no checkpoints to choose {checkpoint!r} from; leave the choice out")
    if _is_transformers_folder(path):
        command = f"groundling import hf {shlex.quote(str(path))} OUT"
        raise CheckpointError(f"{path} is a model in the layout of transformers; import it: {command}")
    if looks_like_bundle(path):
        return path
    if inner.is_dir():
        return inner
    if finished_checkpoints(path / CHECKPOINTS):
        raise CheckpointError(
            f"{path} is a stage that was interrupted before it saved a model; continue it: the same command with "
            "--resume"
        )
    raise CheckpointError(
        f"{path} is not a bundle (a folder with {', '.join(FILES)} and {MANIFEST}), "
        "nor a checkpoint or a run that has saved one"
    )


def require_language_model(path: Path | str) -> None:
    """Check that the model at a path is a base model or a chat model, which generates text.

    Raises:
        ConfigError: it is a reward model.
        CheckpointError: there is no bundle.
    """
    if os.path.lexists(find_bundle(path) / HEAD):
        raise ConfigError(
            f"{path} is a reward model: it scores replies and does not generate any; "
            "give the model whose replies it scores"
        )


def finished_checkpoints(folder: Path) -> dict[int, Path]:
    """Finished checkpoints as step -> folder, in ascending order."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))}
    return {step: found[step] for step in sorted(found) if os.path.lexists(found[step] / MANIFEST)}


def model_checkpoints(folder: Path) -> dict[int, Path]:
    """Finished checkpoints with a bundle; alignment stages save none in theirs."""
    return {step: path for step, path in finished_checkpoints(folder).items() if (path / "bundle").is_dir()}


def read_chat(folder: Path, config: GPTConfig) -> ChatTemplate | None:
    """The chat template of a bundle; None: a base model.

    Raises:
        CheckpointError: the file is damaged, or does not fit the model.
    """
    if not os.path.lexists(folder / CHAT):
        return None
    try:
        chat = template_from_json(read_json_object(folder / CHAT))
    except DataError as error:
        raise CheckpointError(f"{folder / CHAT}: {error}") from error
    if max(chat.special_ids()) >= config.vocab_size:
        raise CheckpointError(
            f"{folder / CHAT} has ids beyond the model's {config.vocab_size}; they do not belong together"
        )
    return chat


def check_files(folder: Path) -> dict[str, str]:
    """Check a bundle's files against its own or its checkpoint's manifest; return name -> SHA-256.

    Raises:
        CheckpointError: the manifest or a file is missing or damaged.
    """
    own = os.path.lexists(folder / MANIFEST) or not os.path.lexists(folder.parent / MANIFEST)
    root, under = (folder, "") if own else (folder.parent, f"{folder.name}/")
    listed = check_manifest(root, under)["files"]
    for name in (CONFIG, ADAPTER if under + ADAPTER in listed else WEIGHTS, TOKENIZER):
        if under + name not in listed:
            raise CheckpointError(f"{root / MANIFEST} does not list {under + name}; {folder} is not a complete bundle")
    return {name.removeprefix(under): entry["sha256"] for name, entry in listed.items()}


def looks_like_bundle(folder: Path) -> bool:
    """Whether a folder has any of a bundle's files."""
    return any((folder / name).exists() for name in FILES)


def _is_transformers_folder(folder: Path) -> bool:
    """Whether a folder's `config.json` is one of `transformers`."""
    if os.path.lexists(folder / MANIFEST):
        return False
    try:
        return "model_type" in read_json_object(folder / CONFIG, links=True)
    except CheckpointError:
        return False


def previous_path(folder: Path) -> Path:
    """Temporary path of a bundle while it is being replaced."""
    return folder.with_name(folder.name + ".previous")


def _existing(folder: Path) -> Path:
    """The folder, or the old bundle if a crash interrupted its replacement."""
    return previous_path(folder) if not folder.exists() and previous_path(folder).is_dir() else folder


def _select(steps: dict[int, Path], checkpoint: str, run: Path) -> Path:
    """Select the best checkpoint, the last one, or that of a step."""
    if checkpoint == "last":
        return list(steps.values())[-1]
    if checkpoint == "best":
        return min(reversed(steps.values()), key=_rank)
    if checkpoint.isdecimal() and int(checkpoint) in steps:
        return steps[int(checkpoint)]
    raise CheckpointError(
        f"{run} has no checkpoint {checkpoint!r}; it has: best, last, {', '.join(str(step) for step in steps)}"
    )


def val_loss_of(manifest: Mapping[str, Any]) -> float | None:
    """Validation loss in a checkpoint's manifest; None if none was measured."""
    value = manifest.get("val_loss")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < MAX_LOSS else None


def _rank(checkpoint: Path) -> float:
    loss = val_loss_of(read_manifest(checkpoint))
    return math.inf if loss is None else loss
