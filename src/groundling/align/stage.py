"""Shared by all stages of alignment: their config, and a run with checkpoints of its own."""

import logging
import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from groundling.align.checkpoint import (
    Found,
    Snapshot,
    StageCheckpoints,
    StageFacts,
    fingerprint_of,
    same_settings,
)
from groundling.align.checkpoint import find as find_stage
from groundling.bundle import ChatBundle
from groundling.data.examples.encoding import least_ids
from groundling.errors import CheckpointError, TrainingError, require
from groundling.storage import atomic
from groundling.system import distributed
from groundling.system.logs import Record, format_record
from groundling.system.progress import Progress
from groundling.system.runtime import RuntimeConfig
from groundling.system.signals import ASKED_TO_STOP
from groundling.train import run_folder
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.resuming import lower_rates
from groundling.train.run import Run, open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Settings of every stage."""

    out_dir: Path
    """Run folder."""
    resume: bool | Literal["if-present"] = False
    """Resume from the newest valid checkpoint in out_dir; `--resume if-present` starts a new run if there is none."""
    overwrite: bool = False
    """Remove an existing run in out_dir."""
    context: int | None = None
    """Context length of the trained model in tokens; None: unchanged."""
    max_length: int | None = None
    """Maximum length of an example in tokens, prompt and reply; longer ones are truncated. None: the context."""
    seed: int = 1337
    """Seed of the example order, dropout and sampling."""
    batch_size: int = 32
    """Examples per optimizer step, over all ranks."""
    micro_batch_rows: int = 16
    """Rows of packed examples per forward pass; affects memory and speed only."""
    grad_clip: float | None = 1.0
    """Maximum gradient norm; None: no clipping."""
    log_every: int = 10
    """Steps between records of the loss."""
    save_every: int = 100
    """Steps between checkpoints. The last two are kept until the run finishes."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_rows", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.grad_clip is None or self.grad_clip > 0, f"grad_clip is {self.grad_clip}; it must be positive")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be at least 0 and below 2**63")
        require(not (self.resume and self.overwrite), "resume continues a run and overwrite removes it; choose one")

    def longest(self, bundle: ChatBundle) -> int:
        """Maximum tokens of an example.

        Raises:
            ConfigError: max_length exceeds the context, or is too short for any example.
        """
        block_size, least = bundle.config.block_size, least_ids(bundle.chat, bundle.tokenizer)
        if self.max_length is None:
            return block_size
        allowed = f"the model's context is {block_size:,} tokens: give {least} to {block_size}"
        require(least <= self.max_length <= block_size, f"max_length is {self.max_length}; {allowed}")
        return self.max_length


@dataclass(frozen=True, kw_only=True)
class ExamplesConfig(StageConfig):
    """Settings of the stages that learn from examples."""

    epochs: float = 2.0
    """Passes over the examples."""
    dropout: float = 0.0
    """Dropout during training. A few epochs over a larger data set need none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.epochs < math.inf, f"epochs is {self.epochs}; it must be positive")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in [0, 1)")


class Stage:
    """A stage in progress: a run with checkpoints of its own, which leaves its model even if it is stopped or fails.

    Made by `open_stage`.
    """

    def __init__(self, run: Run[StageConfig]) -> None:
        self.run, self.config, self.name = run, run.config, run.name
        self.stop, self.picked = run.stop, run.picked
        self.failure: TrainingError | None = None
        """Why training could not continue; the model of the last good step is kept."""
        self.found: Found | None = None
        """The checkpoint to resume from."""
        self._checkpoints = StageCheckpoints(run.folder, run.picked.device)
        self._learns_from = ""

    def has_finished(self) -> bool:
        """Whether a stage to be resumed has nothing left to do, which is logged. All ranks call this together.

        Raises:
            CheckpointError: the folder holds another finished stage, or this one with other settings.
        """
        folder = self.run.folder
        summary = run_folder.read_summary(folder) if self.config.resume else {}
        if summary.get("reason") in (None, ASKED_TO_STOP) or summary.get("failed", True):
            return False
        if summary.get("stage") != self.name:
            raise CheckpointError(f"{folder} holds a run of {summary.get('stage')}; choose another --out-dir")
        earlier = summary.get("config")
        if changed := same_settings(self.config, earlier if isinstance(earlier, dict) else {}, f"{folder} was made"):
            raise CheckpointError(
                f"{folder} has finished, and these settings are new: {'; '.join(changed)}; "
                "start it again with --overwrite, or choose another --out-dir"
            )
        log.info(f"{folder} has finished; nothing to do")
        if distributed.is_first():
            atomic.remove(self._checkpoints.folder)  # a killed process may have left some
            atomic.sweep_temporaries(folder)
        return True

    def find_checkpoint(self, *learns_from: Iterable[Any]) -> Snapshot | None:
        """Find the checkpoint of a stage that is resumed; None for a new one. All ranks call this before `begin`.

        Args:
            learns_from: everything the stage learns from, as plain data: fingerprints of models, examples.

        Raises:
            CheckpointError: there is no checkpoint, or it is of another stage, other settings or other data.
        """
        self._learns_from = fingerprint_of(*learns_from)
        path = self.run.find_checkpoint()
        if path is None:
            return None
        self.found = found = find_stage(path, self.config, self.name, self._learns_from)
        self.run.continue_from(found.run_id, found.wall_s)
        if found.changed:
            log.info(f"changed     {'; '.join(found.changed)}")
        return found.snapshot

    def begin(self, step: int = 0, rewritten: Callable[[Record], bool] = lambda _: False) -> None:
        """Open the metrics; see `Run.begin`."""
        self.run.begin(step, rewritten=rewritten)

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint. All ranks call this together."""
        facts = StageFacts(self.name, self.run.run_id, self.run.settings(), self._learns_from)
        self._checkpoints.save(snapshot, facts, self.run.wall_s())

    def record(self, record: Record, *, show: bool = True) -> None:
        """Write a record to the metrics, and log it."""
        self.run.metrics.write(record)
        if show:
            log.info(f"{self.name} step {record['step']}: {format_record(record)}")

    def asked_to_stop(self) -> bool:
        """As `Run.asked_to_stop`. From the first call on, a signal waits for a checkpoint, even one of step 0."""
        self.stop.can_save = True
        return self.run.asked_to_stop()

    def fail(self, step: int, error: TrainingError) -> str:
        """Record a failure, which `finish` raises once the model is saved; return the reason for the end."""
        reason = f"{self.name} stopped at step {step}: {error}"
        kept, rates = f"{reason}; the model so far is in {self.config.out_dir}", lower_rates(self.config)
        if self._checkpoints.finished():
            advice = f"resume from its last checkpoint with lower learning rates: {self._resume_command()} {rates}"
        else:
            advice = f"try again with lower learning rates, for example: {rates} --overwrite"
        self.failure = TrainingError(f"{kept}; {advice}")
        return reason

    def finish(self, reason: str, figures: dict[str, Any]) -> int:
        """Write the summary, remove the checkpoints of a finished stage, and return the exit code.

        Raises:
            TrainingError: the stage failed.
        """
        summary = self.run.finish(reason, figures, failed=self.failure is not None, even_if_stopped=True)
        if self.failure is not None:
            raise self.failure
        if summary.exit_code:
            log.info(f"{self.name} stopped as asked; resume with: {self._resume_command()}")
            return summary.exit_code
        if distributed.is_first():
            atomic.remove(self._checkpoints.folder)
        return self.stop.exit_code  # a signal after the last step stops the stages that would follow

    def _resume_command(self) -> str:
        return f"groundling {self.name} --resume --out-dir {shlex.quote(str(self.config.out_dir))}"


@contextmanager
def open_stage(config: StageConfig, name: str) -> Iterator[Stage]:
    """Open the run of a stage; see `open_run`. Stages are never compiled unless the config says so."""
    with open_run(config, name) as run:
        run.pick_runtime(worth_compiling=False)
        yield Stage(run)


@contextmanager
def progress_of_first(what: str, total: int | None = None) -> Iterator[Progress]:
    """`Progress`, printed by the first rank only."""
    progress = Progress(what, total)
    with progress if distributed.is_first() else nullcontext():
        yield progress
