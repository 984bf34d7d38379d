"""What all stages share: their settings, the folder, checkpoints, the record, the end."""

import dataclasses
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
from groundling.config import to_dict, to_toml
from groundling.data.examples.encoding import least_ids
from groundling.errors import CheckpointError, TrainingError, require
from groundling.storage import atomic
from groundling.system import distributed, hardware, runtime
from groundling.system.logs import Record, format_record
from groundling.system.metrics import JsonlSink
from groundling.system.progress import Progress
from groundling.system.runtime import Runtime, RuntimeConfig, make_deterministic
from groundling.system.signals import ASKED_TO_STOP, SIGTERM_EXIT_CODE, StopRequest, stop_on_signals
from groundling.train import run_folder
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.resuming import AFTER_A_LOST_RANK, decided, lower_rates

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage can be told."""

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
        require(not (self.resume and self.overwrite), "resume goes on with a run and overwrite removes it; choose one")

    def longest(self, bundle: ChatBundle) -> int:
        """The most tokens of an example.

        Raises:
            ConfigError: max_length is more, or less than an example needs.
        """
        block_size, least = bundle.config.block_size, least_ids(bundle.chat, bundle.tokenizer)
        if self.max_length is None:
            return block_size
        allowed = f"the model's context is {block_size:,} tokens: give {least} to {block_size}"
        require(least <= self.max_length <= block_size, f"max_length is {self.max_length}; {allowed}")
        return self.max_length


@dataclass(frozen=True, kw_only=True)
class ExamplesConfig(StageConfig):
    """What every stage that learns from examples can be told."""

    epochs: float = 2.0
    """Passes over the examples."""
    dropout: float = 0.0
    """Dropout during training. A few epochs over a larger data set need none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.epochs < math.inf, f"epochs is {self.epochs}; it must be positive")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in [0, 1)")


class Stage:
    """A stage under way. Made by `open_stage`."""

    def __init__(self, config: StageConfig, name: str, stop: StopRequest, picked: Runtime, stack: ExitStack) -> None:
        self.config, self.name, self.stop, self.picked, self._stack = config, name, stop, picked, stack
        self.started = time.perf_counter()
        self.failure: TrainingError | None = None
        """Why it could not go on; what it had learned by then is kept."""
        self.found: Found | None = None
        """The checkpoint that it is resumed from."""
        self._checkpoints = StageCheckpoints(config.out_dir, picked.device)
        self._facts = StageFacts(name, run_folder.new_run_id(), _own_settings(config), "")
        self._sink: JsonlSink | None = None

    def has_finished(self) -> bool:
        """Whether a stage that is to be resumed has nothing left to do, which is printed. All ranks call this together.

        Raises:
            CheckpointError: another stage has finished there, or this one with other settings.
        """
        run = self.config.out_dir
        summary = run_folder.read_summary(run) if self.config.resume else {}
        if summary.get("ended") in (None, ASKED_TO_STOP) or summary.get("failed", True):
            return False
        if summary.get("stage") != self.name:
            raise CheckpointError(f"{run} holds a run of {summary.get('stage')}; choose another --out-dir")
        earlier = summary.get("config")
        if changed := same_settings(self.config, earlier if isinstance(earlier, dict) else {}, f"{run} was made"):
            raise CheckpointError(
                f"{run} has finished, and these settings are new: {'; '.join(changed)}; "
                "start it again with --overwrite, or choose another --out-dir"
            )
        log.info(f"{run} has finished; nothing is left to do")
        if distributed.is_first():
            atomic.remove(self._checkpoints.folder)  # it may have been killed while it removed them
            atomic.sweep_temporaries(run)
        return True

    def look_back(self, *learns_from: Iterable[Any]) -> Snapshot | None:
        """Find the checkpoint of a stage that is resumed; None for a new one. All ranks call this before `begin`.

        Args:
            learns_from: all that it learns from, as plain data: the models' fingerprints, the examples.

        Raises:
            CheckpointError: there is nothing to go on from, or it is another stage's.
        """
        self._facts = dataclasses.replace(self._facts, learns_from=fingerprint_of(*learns_from))
        if not self.config.resume:
            return None
        if distributed.is_first():
            path, passed_over = run_folder.find_resumable(self.config.out_dir)
            for why in passed_over:
                log.warning(f"passed over: {why}")
        distributed.barrier()
        if not distributed.is_first():
            path, _ = self._checkpoints.newest_good()
        self.found = found = find_stage(path, self.config, self.name, self._facts.learns_from)
        self._facts = dataclasses.replace(self._facts, run_id=found.run_id)
        log.info(f"resuming from {path}")
        if found.changed:
            log.info(f"changed     {'; '.join(found.changed)}")
        return found.snapshot

    def begin(self, step: int = 0, made_again: Callable[[Record], bool] = lambda _: False) -> None:
        """Open the record, once nothing more can be refused; a new stage first removes what an earlier run left.

        Args:
            step: the checkpoint's, for a stage that is resumed.
            made_again: which records of that step it will write again.
        """
        run = self.config.out_dir
        if distributed.is_first():
            if self.found is None:
                self._stack.enter_context(run_folder.new_run(run, self.stop))
            atomic.remove(run / "summary.json")
            settings = dataclasses.replace(self.config, resume=False, overwrite=False)
            atomic.write_text(run / "run.toml", to_toml(settings))
            about = {"stage": self.name, "run_id": self._facts.run_id}
            atomic.write_json(run / "env.json", {**about, **hardware.environment(), **self.picked.reasons})
            resumed_at = None if self.found is None else step
            self._sink = JsonlSink(run / "metrics.jsonl", resumed_at, made_again)
        distributed.barrier()

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint. All ranks call this together."""
        self._checkpoints.save(snapshot, self._facts, self._wall_s())

    def record(self, record: Record, *, show: bool = True) -> None:
        """Write a record down, and show it."""
        if self._sink is not None:
            self._sink.write(record)
        if show:
            log.info(f"{self.name} step {record['step']}: {format_record(record)}")

    def asked_to_stop(self) -> bool:
        """Whether some rank was asked to stop; all ranks get the same answer. From then on what is learned is kept."""
        self.stop.can_save = True
        return distributed.any_rank(bool(self.stop), self.picked.device)

    def fail(self, step: int, error: TrainingError) -> str:
        """Remember why no more can be learned, until what was learned is kept; return how the stage ended."""
        reason = f"{self.name} stopped at step {step}: {error}"
        kept, rates = f"{reason}; what it had learned is in {self.config.out_dir}", lower_rates(self.config)
        if self._checkpoints.finished():
            way_on = (
                f"go on from its last checkpoint with lower learning rates: {_way_on(self.name, self.config)} {rates}"
            )
        else:
            way_on = f"try again with lower learning rates, for example: {rates} --overwrite"
        self.failure = TrainingError(f"{kept}; {way_on}")
        return reason

    def finish(self, ended: str, figures: dict[str, Any]) -> int:
        """Write the summary: how the stage ended, and its last figures; return the exit code.

        Raises:
            TrainingError: it failed.
        """
        stopped = ended == ASKED_TO_STOP
        summary = {
            "stage": self.name,
            "wall_s": round(self._wall_s(), 1),
            "config": _own_settings(self.config),
            "ended": ended,
            "failed": self.failure is not None,
            **figures,
        }
        if distributed.is_first():
            atomic.write_json(self.config.out_dir / "summary.json", summary)
            if not stopped and self.failure is None:
                atomic.remove(self._checkpoints.folder)
        if self.failure is not None:
            raise self.failure
        if stopped:
            log.info(f"{self.name} stopped as asked; go on: {_way_on(self.name, self.config)}")
            # Another rank may have been the one that was asked.
            return self.stop.exit_code or SIGTERM_EXIT_CODE
        return self.stop.exit_code  # a signal that came after the last step ends what would follow this stage

    def _wall_s(self) -> float:
        return time.perf_counter() - self.started + (0.0 if self.found is None else self.found.wall_s)


def _own_settings(config: StageConfig) -> dict[str, Any]:
    """What a stage was told, but for how the command was given."""
    return to_dict(dataclasses.replace(config, resume=False, overwrite=False))


def _way_on(name: str, config: StageConfig) -> str:
    return f"groundling {name} --resume --out-dir {shlex.quote(str(config.out_dir))}"


@contextmanager
def open_stage(config: StageConfig, name: str) -> Iterator[Stage]:
    """Take the folder, the ranks and the signals, and pick the device and its precision.

    Raises:
        ConfigError: the folder holds a run already.
        CheckpointError: another process uses it.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        device = runtime.pick_device(config.runtime.device)
        stack.enter_context(distributed.process_group(device, advice=AFTER_A_LOST_RANK))
        if distributed.is_first():
            stack.enter_context(run_folder.locked(config.out_dir))
        config = decided(config)
        if distributed.is_first() and not config.resume:
            run_folder.require_room(config.out_dir, overwrite=config.overwrite)
        distributed.barrier()
        picked = runtime.pick(config.runtime, worth_compiling=False)
        make_deterministic(picked.device)
        yield Stage(config, name, stop, picked, stack)


@contextmanager
def progress_of_first(what: str, total: int | None = None) -> Iterator[Progress]:
    """`Progress` that only the first rank prints."""
    progress = Progress(what, total)
    with progress if distributed.is_first() else nullcontext():
        yield progress
