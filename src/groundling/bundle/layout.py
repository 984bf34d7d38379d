"""The files of a bundle on disk: which there are, which checkpoint of a run is meant, and whether they are whole."""

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
"""Only in the bundle of a model that knows how a conversation is laid out."""
HEAD = "head.safetensors"
"""Only in the bundle of a model that has another head besides the one of words."""
ADAPTER = "adapter.safetensors"
"""In place of the weights, in the bundle of what fine-tuning changed."""
CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, in the run folder."""
LARGEST_LOSS = 1e300
"""A whole number in a file can be larger than any float."""
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def read_config(path: Path | str) -> GPTConfig:
    """What the model of a bundle, a checkpoint or a run was built from.

    Raises:
        CheckpointError: there is no such thing, or it is damaged.
    """
    file = find_bundle(path) / CONFIG
    try:
        return from_dict(GPTConfig, read_json_object(file))
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


def find_bundle(path: Path | str, checkpoint: str | int = "best") -> Path:
    """The folder that holds the three files of the bundle that is meant.

    The best of a run is `RUN/bundle`, or before training has ended the checkpoint with the lowest validation loss,
    or the newest where none was measured.

    Args:
        path: a bundle, a checkpoint, or the folder of a training run.
        checkpoint: of a run: "best", "last", or a step.

    Raises:
        CheckpointError: there is no such thing.
    """
    if path == "":  # Python takes it for the folder in which one stands
        raise CheckpointError("the path of the model is empty; give the folder of a bundle, a checkpoint or a run")
    path = _standing(Path(path))
    if path.is_file():
        hint = "; a pickle is never opened here, because it can run code" if path.suffix in PICKLES else ""
        raise CheckpointError(f"{path} is a file; give the folder of a bundle, a checkpoint or a run{hint}")
    if not path.is_dir():
        raise CheckpointError(f"there is no {path}; give the folder of a bundle, a checkpoint or a run")
    inner, steps = _standing(path / "bundle"), model_checkpoints(path / CHECKPOINTS)
    if steps and not looks_like_bundle(path) and not (checkpoint == "best" and inner.is_dir()):
        return _choose(steps, str(checkpoint), path) / "bundle"
    if checkpoint != "best":
        raise CheckpointError(f"{path} has no checkpoints to choose {checkpoint!r} from; leave the choice out")
    if _is_of_transformers(path):
        command = f"groundling import hf {shlex.quote(str(path))} OUT"
        raise CheckpointError(f"{path} is a model in the layout of transformers; import it: {command}")
    if looks_like_bundle(path):
        return path
    if inner.is_dir():
        return inner
    if finished_checkpoints(path / CHECKPOINTS):
        raise CheckpointError(
            f"{path} is a stage that was interrupted before it left a model; go on with it: the same command, and "
            "--resume"
        )
    raise CheckpointError(
        f"{path} is not a bundle (a folder with {', '.join(FILES)} and {MANIFEST}), "
        "nor a checkpoint or a run that has saved one"
    )


def require_language_model(path: Path | str) -> None:
    """Check that the model at a path generates text: it is a base model or a chat model.

    Raises:
        ConfigError: it is a reward model.
        CheckpointError: there is no bundle.
    """
    if os.path.lexists(find_bundle(path) / HEAD):
        raise ConfigError(
            f"{path} is a reward model: it scores replies and generates none; give the model whose replies it scores"
        )


def finished_checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> folder, oldest first. The order is that of the steps, never that of the clock."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))}
    return {step: found[step] for step in sorted(found) if os.path.lexists(found[step] / MANIFEST)}


def model_checkpoints(folder: Path) -> dict[int, Path]:
    """Those that hold a model which speaks; the checkpoints of alignment's stages hold none."""
    return {step: path for step, path in finished_checkpoints(folder).items() if (path / "bundle").is_dir()}


def read_chat(folder: Path, config: GPTConfig) -> ChatTemplate | None:
    """How a bundle's model lays out a conversation; None: it does not chat.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model.
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
    """A bundle's files against its own manifest, or that of the checkpoint it lies in; return name -> SHA-256."""
    own = os.path.lexists(folder / MANIFEST) or not os.path.lexists(folder.parent / MANIFEST)
    root, under = (folder, "") if own else (folder.parent, f"{folder.name}/")
    listed = check_manifest(root, under)["files"]
    for name in (CONFIG, ADAPTER if under + ADAPTER in listed else WEIGHTS, TOKENIZER):
        if under + name not in listed:
            raise CheckpointError(f"{root / MANIFEST} does not list {under + name}; {folder} is not a whole bundle")
    return {name.removeprefix(under): entry["sha256"] for name, entry in listed.items()}


def looks_like_bundle(folder: Path) -> bool:
    """Whether a folder has a bundle's files, or some of them."""
    return any((folder / name).exists() for name in FILES)


def _is_of_transformers(folder: Path) -> bool:
    """Whether another program's `config.json` is in a folder: `transformers` names a family of models there."""
    if os.path.lexists(folder / MANIFEST):
        return False
    try:
        return "model_type" in read_json_object(folder / CONFIG, links=True)
    except CheckpointError:
        return False


def previous_place(folder: Path) -> Path:
    """Where the bundle that is being replaced stands for a moment."""
    return folder.with_name(folder.name + ".previous")


def _standing(folder: Path) -> Path:
    """The folder, or what a crash in the middle of its replacement left of it: the whole old one."""
    return previous_place(folder) if not folder.exists() and previous_place(folder).is_dir() else folder


def _choose(steps: dict[int, Path], checkpoint: str, run: Path) -> Path:
    """The best, the last, or the one of a step."""
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
    """A checkpoint's validation loss, as its manifest tells it; None where none was measured."""
    value = manifest.get("val_loss")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < LARGEST_LOSS else None


def _rank(checkpoint: Path) -> float:
    loss = val_loss_of(read_manifest(checkpoint))
    return math.inf if loss is None else loss
