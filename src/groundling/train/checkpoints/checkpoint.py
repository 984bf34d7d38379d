"""Checkpoints of pretraining: atomic, hashed, and sufficient for an exact resume.

    RUN/checkpoints/step-00000250/
        bundle/                model and tokenizer, for sampling (groundling.bundle)
        training.safetensors   optimizer, random generators of all ranks, the trained weights where the bundle's differ
        state.json             step, data position, config, run_id
        manifest.json          size and SHA-256 of each file, written last

Order of writing: a temporary folder, its files, the manifest, fsync, a rename; then old checkpoints are removed.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from groundling.bundle.layout import CHAT
from groundling.bundle.weights import plain_state_dict, read_weights, require_fit
from groundling.bundle.writing import write_bundle_files
from groundling.errors import CheckpointError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.storage import atomic
from groundling.storage.manifest import change_facts, read_json_object
from groundling.storage.tensors import read_tensors
from groundling.system import distributed
from groundling.text.chat.template import ChatTemplate
from groundling.text.serialize import fingerprint
from groundling.text.tokenizer import Tokenizer
from groundling.train.checkpoints.folder import CheckpointFolder, Count, Seconds, fitting
from groundling.train.checkpoints.tensors import (
    generator_tensors,
    optimizer_tensors,
    restore_generators,
    weight_tensors,
    with_prefix,
)
from groundling.train.state import Progress, TrainState

FORMAT = 1
"""Format of state.json and training.safetensors; other formats are refused."""


@dataclass(frozen=True)
class RunFacts:
    """The run a checkpoint belongs to."""

    run_id: str
    config: dict[str, Any]
    """The resolved config, as plain data."""
    data_fingerprint: str
    compiled: bool
    """Whether the model was compiled. A resumed run does the same, because compiled code rounds differently."""


class _ProgressRecord(msgspec.Struct, forbid_unknown_fields=True):
    """`Progress` in `state.json`, with None for an infinite loss."""

    step: Count
    n_tokens: Count
    train_s: Seconds
    n_evals_since_best: Count
    wall_s: Seconds = 0.0
    val_loss: float | None = None
    train_loss: float | None = None
    evaluated_step: Count | None = None
    best_val_loss: float | None = None
    best_step: Count | None = None


class _StateRecord(msgspec.Struct):
    """`state.json`, to validate it: the file is untrusted input."""

    progress: _ProgressRecord
    batches: dict[str, Count]
    config: dict[str, Any]
    run_id: str
    data_fingerprint: str
    compiled: bool
    world_size: Annotated[int, msgspec.Meta(ge=1)]


class Checkpoints(CheckpointFolder):
    """The checkpoints of a run of pretraining.

    Args:
        folder: `RUN/checkpoints`.
        keep: newest checkpoints to keep; the one with the lowest validation loss is kept too.
        as_gpt: for a model that is not a GPT, returns the GPT that computes the same, for the bundle. The model's own
            weights are then saved beside the bundle.
    """

    def __init__(self, folder: Path, keep: int = 2, as_gpt: Callable[[nn.Module], GPT] | None = None) -> None:
        super().__init__(folder, keep)
        self.as_gpt = as_gpt

    def save(
        self,
        state: TrainState,
        model_config: GPTConfig,
        tokenizer: Tokenizer,
        facts: RunFacts,
        chat: ChatTemplate | None = None,
    ) -> Path:
        """Save a state. All ranks call this together; the first one writes.

        Raises:
            StorageError: it could not be written; all older checkpoints are kept.
        """
        tensors = _training_tensors(state, with_weights=self.as_gpt is not None)

        def write() -> None:
            if not self._update(state.progress, facts.run_id):
                self._write(state, tensors, model_config, tokenizer, facts, chat)

        self.save_together(state.progress.step, facts.run_id, write)
        return self.path_of(state.progress.step)

    def _update(self, progress: Progress, run_id: str) -> bool:
        """If this step is saved already, add the validation loss measured since; return whether it is saved.

        A run interrupted during an evaluation resumes with that evaluation. The folder is not rewritten, because that
        would leave the step without a checkpoint for a moment.
        """
        manifest = self.has(progress.step, run_id)
        if manifest is None:
            return False
        if progress.evaluated_step == progress.step and manifest.get("val_loss") is None:
            change_facts(self.path_of(progress.step), {"val_loss": progress.val_loss})
        return True

    def _write(
        self,
        state: TrainState,
        tensors: dict[str, Tensor],
        model_config: GPTConfig,
        tokenizer: Tokenizer,
        facts: RunFacts,
        chat: ChatTemplate | None,
    ) -> None:
        progress, facts_of_run = dataclasses.asdict(state.progress), dataclasses.asdict(facts)

        def fill(new: Path) -> None:
            (new / "bundle").mkdir()
            with state.eval_mode():
                weights = plain_state_dict(self.as_gpt(state.model) if self.as_gpt else state.model)
                write_bundle_files(new / "bundle", weights, model_config, tokenizer)
            if chat is not None:
                atomic.write_json(new / "bundle" / CHAT, chat.to_json())
            atomic.write_bytes(new / "training.safetensors", safetensors.torch.save(tensors))
            record = {
                "format": FORMAT,
                "progress": {**progress, "best_val_loss": _finite(progress["best_val_loss"])},
                "batches": state.batches.state_dict(),
                "tokenizer": fingerprint(tokenizer),
                "torch": torch.__version__,
                "world_size": distributed.world_size(),
                **facts_of_run,
            }
            atomic.write_json(new / "state.json", record)

        measured = state.progress.evaluated_step == state.progress.step
        about = {"run_id": facts.run_id, "val_loss": state.progress.val_loss if measured else None}
        self.write(state.progress.step, about, _expected_bytes(state, tensors), fill)


def read_state(path: Path) -> dict[str, Any]:
    """Read the `state.json` of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    record = read_json_object(path / "state.json")
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {record.get('format')}, and this version reads format {FORMAT}")
    try:
        msgspec.convert(record, _StateRecord)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path / 'state.json'} is damaged: {error}") from error
    return record


def restore(path: Path, state: TrainState) -> None:
    """Restore weights, optimizer, random generators and data position into a state built from the same config.

    Raises:
        CheckpointError: the checkpoint does not fit the model.
    """
    with fitting(path):
        _restore(path, state)


def _restore(path: Path, state: TrainState) -> None:
    record = read_state(path)
    tensors = read_tensors(path / "training.safetensors", raw="generator|")
    _restore_weights(path, state, with_prefix(tensors, "weights|"))
    if state.average is not None:
        state.average.n_updates = record["progress"]["step"]
    state.optimizers.load_state_tensors(with_prefix(tensors, "optimizer|"))
    state.batches.load_state_dict(record["batches"])
    best = record["progress"]["best_val_loss"]
    state.progress = Progress(**{**record["progress"], "best_val_loss": float("inf") if best is None else best})
    if record["world_size"] == distributed.world_size():  # else ranks keep the generators of their seeds
        restore_generators(tensors)


def _restore_weights(path: Path, state: TrainState, trained: dict[str, Tensor]) -> None:
    """The bundle holds averaged weights if there is an average, else the model's, unless those are saved beside it."""
    if trained:
        require_fit(trained, state.model, path / "training.safetensors")
    if trained and state.average is None:
        state.model.load_state_dict(trained, strict=False)
        return
    state.model.load_state_dict(read_weights(path / "bundle" / "model.safetensors", state.model), strict=False)
    if state.average is None:
        return
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            state.average.mean[name].copy_(parameter)
            parameter.copy_(trained[name])


def _training_tensors(state: TrainState, *, with_weights: bool) -> dict[str, Tensor]:
    tensors = optimizer_tensors(state.optimizers)
    if with_weights or state.average is not None:
        tensors |= weight_tensors(state.model)
    return tensors | generator_tensors(next(state.model.parameters()).device)


def _expected_bytes(state: TrainState, tensors: dict[str, Tensor]) -> int:
    weights = sum(parameter.nbytes for parameter in state.model.parameters())
    return weights + sum(tensor.nbytes for tensor in tensors.values())


def _finite(value: float) -> float | None:
    """None for infinity, which JSON lacks."""
    return None if value == float("inf") else value
