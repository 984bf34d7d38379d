"""Checkpoints of the stages of alignment: everything that changes while a stage runs, for exact resume.

    RUN/checkpoints/step-00000100/
        training.safetensors   trained weights, optimizers, random generators of all ranks, a rollout in progress
        state.json             step, config, fingerprint of models and data
        manifest.json          size and SHA-256 of each file, written last

They hold no bundle. `RUN/bundle` is written when a stage finishes or is stopped.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor

from groundling.bundle.layout import CHECKPOINTS
from groundling.config import to_dict
from groundling.errors import CheckpointError, ConfigError, GroundlingError
from groundling.storage import atomic
from groundling.storage.manifest import read_json_object
from groundling.storage.tensors import read_tensors
from groundling.system import distributed
from groundling.train.checkpoints.folder import CheckpointFolder, Count, Seconds, fitting
from groundling.train.checkpoints.tensors import generator_tensors, restore_generators
from groundling.train.resuming import COMMAND_SETTINGS, changes

FORMAT = 1
MAY_CHANGE = (
    *COMMAND_SETTINGS,
    "path",
    "epochs",
    "steps",
    "log_every",
    "save_every",
    "micro_batch_rows",
    "runtime",
    "data.path",
    "data.val_path",
    "rankings",
    "preferences",
    "reward",
    "value_from",
    "optim.lr",
    "optim.weight_decay",
    "optim.muon_lr",
    "optim.muon_weight_decay",
    "value_optim.lr",
    "value_optim.weight_decay",
    "value_optim.muon_lr",
    "value_optim.muon_weight_decay",
    "schedule",
)
"""Settings that may differ on resume. Models and data are compared by content, not by path."""


class _State(msgspec.Struct, forbid_unknown_fields=True):
    """`state.json`."""

    format: int
    stage: str
    run_id: str
    config: dict[str, Any]
    learns_from: str
    world_size: Annotated[int, msgspec.Meta(ge=1)]
    torch: str
    wall_s: Seconds
    step: Count
    facts: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A stage at a step."""

    step: int
    """Optimizer updates made."""
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    """Plain data."""


@dataclass(frozen=True)
class StageFacts:
    """Which run a checkpoint belongs to."""

    stage: str
    run_id: str
    config: dict[str, Any]
    learns_from: str
    """Fingerprint of the models and the examples."""


@dataclass(frozen=True)
class Found:
    """A checkpoint to resume from."""

    path: Path
    snapshot: Snapshot
    run_id: str
    wall_s: float
    world_size: int
    changed: list[str] = field(default_factory=list)
    """Changed settings, as `name: old -> new`."""


def fingerprint_of(*parts: Iterable[Any]) -> str:
    """SHA-256 of plain data, dataclasses and tuples, to identify what a stage learns from."""
    total, encoder = hashlib.sha256(), msgspec.json.Encoder()
    for part in parts:
        for item in part:
            total.update(encoder.encode(item) + b"\n")
        total.update(b"\n")
    return total.hexdigest()


class StageCheckpoints(CheckpointFolder):
    """The checkpoints of one run of a stage.

    Args:
        run: the run folder.
        device: whose generators are saved besides the CPU's.
    """

    def __init__(self, run: Path, device: torch.device) -> None:
        super().__init__(run / CHECKPOINTS)
        self._device = device

    def save(self, snapshot: Snapshot, about: StageFacts, wall_s: float) -> None:
        """Write a snapshot unless its step is saved already. All ranks call this together; the first one writes.

        Raises:
            StorageError: it could not be written; all older checkpoints are kept.
        """
        tensors = snapshot.tensors | generator_tensors(self._device)

        def write() -> None:
            if self.has(snapshot.step, about.run_id) is None:
                self._write(snapshot, tensors, about, wall_s)

        self.save_together(snapshot.step, about.run_id, write)

    def _write(self, snapshot: Snapshot, tensors: dict[str, Tensor], about: StageFacts, wall_s: float) -> None:
        state = {
            "format": FORMAT,
            **asdict(about),
            "world_size": distributed.world_size(),
            "torch": torch.__version__,
            "wall_s": wall_s,
            "step": snapshot.step,
            "facts": snapshot.facts,
        }

        def fill(new: Path) -> None:
            atomic.write_bytes(new / "training.safetensors", safetensors.torch.save(tensors))
            atomic.write_json(new / "state.json", state)

        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self.write(snapshot.step, {"run_id": about.run_id, "stage": about.stage}, n_bytes, fill)


def find(path: Path, config: Any, stage: str, learns_from: str) -> Found:
    """Read a checkpoint, whose manifest was checked, for a stage with this config.

    Raises:
        CheckpointError: it is damaged, or belongs to another stage, other settings or other data.
    """
    record = read_json_object(path / "state.json")
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {record.get('format')}, and this version reads format {FORMAT}")
    try:
        state = msgspec.convert(record, _State)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path / 'state.json'} is not the state of a stage: {error}") from error
    out_dir = path.parent.parent
    if state.stage != stage:
        raise CheckpointError(f"{out_dir} holds a run of {state.stage}; resume it with groundling {state.stage}")
    changed = same_settings(config, state.config, f"{out_dir} was started")
    if state.learns_from != learns_from:
        raise CheckpointError(
            f"the models or the examples are not those that {out_dir} was started with; "
            "resume with those, or start a new run in another --out-dir"
        )
    snapshot = Snapshot(state.step, read_tensors(path / "training.safetensors", raw="generator|"), state.facts)
    return Found(path, snapshot, state.run_id, state.wall_s, state.world_size, changed)


def same_settings(config: Any, earlier: dict[str, Any], what: str) -> list[str]:
    """Compare a config with an earlier one of the same stage; return the allowed changes.

    Raises:
        CheckpointError: a setting differs that may not.
    """
    changed, refused = changes(type(config), earlier, to_dict(config), MAY_CHANGE)
    if refused:
        raise CheckpointError(
            f"{what} with other settings ({refused}); leave these flags out to take its own run.toml, "
            "or start a new run in another --out-dir"
        )
    return changed


def require_steps_left(step: int, n_steps: int, out_dir: Path, setting: str) -> None:
    """Check that a resumed stage does not end before the step it has reached.

    Raises:
        ConfigError: `n_steps` is less.
    """
    if n_steps < step:
        raise ConfigError(
            f"{setting} makes {n_steps} steps, and {out_dir} has made {step} already; "
            f"give more, or start a new run in another --out-dir"
        )


@contextmanager
def restoring(found: Found) -> Iterator[Snapshot]:
    """Restore a snapshot inside this block; a mismatch is raised as CheckpointError.

    Generators are restored last, and only with the same number of ranks.
    """
    with fitting(found.path):
        try:
            yield found.snapshot
            if found.world_size == distributed.world_size():
                restore_generators(found.snapshot.tensors)
        except GroundlingError as error:  # errors of its parts do not name the checkpoint
            raise CheckpointError(f"{found.path} does not fit its run: {error}") from error
