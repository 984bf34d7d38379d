"""Checkpoints: whole or not there, hashed, and enough to go on from as if nothing had happened.

    RUN/checkpoints/step-00000250/
        bundle/                what sampling needs (groundling.bundle)
        training.safetensors   optimizer, random generators of all ranks, the trained weights where the bundle's differ
        state.json             step, data position, the config, whose run this is
        manifest.json          size and SHA-256 of each file, written last

Order of writing: a temporary folder, its files, the manifest, fsync, a rename; only then are old ones removed.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from groundling import atomicio, dist
from groundling.bundle import (
    CHAT,
    finished_checkpoints,
    plain_state_dict,
    read_weights,
    require_fit,
    write_bundle_files,
)
from groundling.errors import CheckpointError, GroundlingError, StorageError
from groundling.manifest import change_facts, check_manifest, read_json_object, read_manifest, write_manifest
from groundling.model.gpt import GPT, GPTConfig
from groundling.tensors import read_tensors
from groundling.text.chat import ChatFormat
from groundling.text.tokenizer import Tokenizer, fingerprint
from groundling.train.state import Progress, TrainState

FORMAT = 1
"""Of state.json and training.safetensors; a checkpoint of another format is refused and not guessed at."""


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint says about the run it belongs to."""

    run_id: str
    config: dict[str, Any]
    """The resolved config, as plain data."""
    data_fingerprint: str
    compiled: bool
    """Whether the model was compiled: compiled and plain code round differently, so a resumed run does the same."""


Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _ProgressRecord(msgspec.Struct, forbid_unknown_fields=True):
    """`Progress` in `state.json`, where no loss is infinite."""

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
    """`state.json`, of which others made by hand may end in no more than one line."""

    progress: _ProgressRecord
    batches: dict[str, Count]
    config: dict[str, Any]
    run_id: str
    data_fingerprint: str
    compiled: bool
    world_size: Annotated[int, msgspec.Meta(ge=1)]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`.
        keep: how many of the newest stay; the one with the lowest validation loss stays besides.
        as_gpt: of a model that is no GPT, the GPT that computes the same: what the bundle holds. The model's own
            weights are then kept beside the bundle.
    """

    def __init__(self, folder: Path, keep: int = 2, as_gpt: Callable[[nn.Module], GPT] | None = None) -> None:
        self.folder, self.keep, self.as_gpt = folder, keep, as_gpt

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    def finished(self) -> list[Path]:
        """All that have a manifest, oldest first: in the order of their steps, never of the clock."""
        return list(finished_checkpoints(self.folder).values())

    def folders(self) -> list[Path]:
        """Finished ones and those that lost their manifest, oldest first; an unfinished one has another name."""
        found = [path for path in self.folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
        return sorted(found, key=_step_of)

    def save(
        self,
        state: TrainState,
        model_config: GPTConfig,
        tokenizer: Tokenizer,
        facts: RunFacts,
        chat: ChatFormat | None = None,
    ) -> Path:
        """Save a state; all ranks call this together, and the first one writes.

        Raises:
            StorageError: it could not be written, and all older checkpoints are still there.
        """
        tensors, failure = _training_tensors(state, with_weights=self.as_gpt is not None), ""
        target = self.path_of(state.progress.step)
        if dist.is_first():
            try:
                if not self._update(target, state.progress, facts.run_id):
                    self._write(target, state, tensors, model_config, tokenizer, facts, chat)
                self.prune(facts.run_id, state.progress.step)
            except StorageError as error:
                failure = str(error)
        if dist.any_rank(bool(failure)):
            raise StorageError(failure or "the first rank could not write the checkpoint")
        return target

    def _update(self, target: Path, progress: Progress, run_id: str) -> bool:
        """If this very step is already saved, only note its validation loss, measured since; return whether it is.

        A run that was interrupted in an evaluation goes on with that evaluation. Writing the folder anew would mean
        a moment without it.
        """
        if not os.path.lexists(target):
            return False
        try:
            manifest = check_manifest(target)
        except CheckpointError:
            atomicio.remove(target)
            return False
        if manifest.get("run_id") != run_id:
            raise StorageError(f"{target} belongs to another run; nothing was written")
        if progress.evaluated_step == progress.step and manifest.get("val_loss") is None:
            change_facts(target, {"val_loss": progress.val_loss})
        return True

    def _write(
        self,
        target: Path,
        state: TrainState,
        tensors: dict[str, Tensor],
        model_config: GPTConfig,
        tokenizer: Tokenizer,
        facts: RunFacts,
        chat: ChatFormat | None,
    ) -> None:
        atomicio.make_folder(self.folder)
        atomicio.require_room(self.folder, int(1.5 * _expected_bytes(state, tensors)))
        progress = dataclasses.asdict(state.progress)
        with atomicio.new_folder(target) as new:
            (new / "bundle").mkdir()
            with state.ready_to_judge():
                weights = plain_state_dict(self.as_gpt(state.model) if self.as_gpt else state.model)
                write_bundle_files(new / "bundle", weights, model_config, tokenizer)
            if chat is not None:
                atomicio.write_json(new / "bundle" / CHAT, chat.to_json())
            atomicio.write_bytes(new / "training.safetensors", safetensors.torch.save(tensors))
            record = {
                "format": FORMAT,
                "progress": {**progress, "best_val_loss": _finite(progress["best_val_loss"])},
                "batches": state.batches.state_dict(),
                "tokenizer": fingerprint(tokenizer),
                "torch": torch.__version__,
                "world_size": dist.world_size(),
                **dataclasses.asdict(facts),
            }
            atomicio.write_json(new / "state.json", record)
            measured = state.progress.evaluated_step == state.progress.step
            val_loss = state.progress.val_loss if measured else None
            write_manifest(new, {"run_id": facts.run_id, "step": state.progress.step, "val_loss": val_loss})
            check_manifest(new)
        atomicio.write_text(self.folder / "LATEST", target.name + "\n")  # a hint for people; nothing reads it

    def prune(self, run_id: str, step: int) -> None:
        """Remove this run's checkpoints before the one of `step`: never the newest, the best, or another run's.

        A later one was passed over when the run was resumed, for it is damaged: it takes nobody's place.
        """
        ranked = [path for path in self.by_loss(run_id) if _step_of(path) <= step]
        kept = {*sorted(ranked, key=_step_of)[-self.keep :], *ranked[:1]}
        for path in ranked:
            if path not in kept:
                atomicio.remove(path)

    def by_loss(self, run_id: str) -> list[Path]:
        """This run's, the lowest validation loss first, the earliest of equals; then those without one, newest first.

        One whose manifest is damaged does not say whose it is; it is left alone.
        """
        measured: dict[Path, float] = {}
        others: list[Path] = []
        for path in self.finished():
            try:
                manifest = read_manifest(path)
            except CheckpointError:
                continue
            loss = manifest.get("val_loss")
            if manifest.get("run_id") != run_id:
                continue
            if isinstance(loss, (int, float)) and math.isfinite(loss):
                measured[path] = loss
            else:
                others.insert(0, path)
        return [*sorted(measured, key=measured.__getitem__), *others]

    def newest_good(self) -> tuple[Path, list[str]]:
        """The newest checkpoint whose files are what its manifest says, and why newer ones were passed over.

        Raises:
            CheckpointError: there is none.
        """
        passed_over: list[str] = []
        for path in reversed(self.folders()):
            try:
                check_manifest(path)
            except CheckpointError as error:
                passed_over.append(str(error))
            else:
                return path, passed_over
        why = f": {'; '.join(passed_over)}" if passed_over else ""
        raise CheckpointError(f"{self.folder} holds no good checkpoint to resume from{why}")


def read_state(path: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint says, but for the tensors.

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
    """Put a checkpoint's weights, optimizer, random generators and data position into a state built from its config.

    Raises:
        CheckpointError: it does not fit the model.
    """
    try:
        _restore(path, state)
    except GroundlingError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit its run: {type(error).__name__}: {error}") from error


def _restore(path: Path, state: TrainState) -> None:
    record = read_state(path)
    tensors = read_tensors(path / "training.safetensors", raw="generator|")
    _restore_weights(path, state, _with_prefix(tensors, "weights|"))
    if state.average is not None:
        state.average.n_updates = record["progress"]["step"]
    state.optimizers.load_state_tensors(_with_prefix(tensors, "optimizer|"))
    state.batches.load_state_dict(record["batches"])
    best = record["progress"]["best_val_loss"]
    state.progress = Progress(**{**record["progress"], "best_val_loss": float("inf") if best is None else best})
    if record["world_size"] == dist.world_size():  # other ranks than before draw anew from their seeds
        _set_generators(_with_prefix(tensors, f"generator|{dist.rank()}|"))


def _restore_weights(path: Path, state: TrainState, trained: dict[str, Tensor]) -> None:
    """The bundle's weights are the average's, if there is one, else the model's, unless it keeps its own beside."""
    if trained and state.average is None:
        require_fit(trained, state.model, path / "training.safetensors")
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
    tensors = {f"optimizer|{key}": value for key, value in state.optimizers.state_tensors().items()}
    if with_weights or state.average is not None:
        for name, parameter in state.model.named_parameters():
            tensors[f"weights|{name}"] = parameter.detach().contiguous()
    device = next(state.model.parameters()).device
    for kind, value in _generators(device).items():
        for rank, of_rank in enumerate(dist.gather_tensors(value.to(device))):
            tensors[f"generator|{rank}|{kind}"] = of_rank.cpu()
    return tensors


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The states of PyTorch's global generators, from which dropout draws; they are plain bytes."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _expected_bytes(state: TrainState, tensors: dict[str, Tensor]) -> int:
    weights = sum(parameter.nbytes for parameter in state.model.parameters())
    return weights + sum(tensor.nbytes for tensor in tensors.values())


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return None if value == float("inf") else value


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
