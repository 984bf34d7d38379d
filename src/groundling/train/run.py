"""The run harness of pretraining, the stages of alignment and long rungs: everything in a run except the training.

with open_run(config, "sft") as run:    # ranks, signals, lock, device
    ...                                 # build; restore the checkpoint of `run.find_checkpoint()`
    run.begin(step)                     # run.toml, env.json, metrics.jsonl
    reason = train(state, ..., callbacks=[StopOnSignal(run), ...])
    return run.finish(reason, figures)  # summary.json
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from groundling.bundle.layout import CHECKPOINTS
from groundling.config import to_dict, to_toml
from groundling.storage import atomic
from groundling.system import distributed, hardware, runtime
from groundling.system.console import ConsoleSink
from groundling.system.logs import Record
from groundling.system.metrics import JsonlSink, MetricsWriter, Sink
from groundling.system.runtime import Runtime, RuntimeConfig, make_deterministic
from groundling.system.signals import ASKED_TO_STOP, SIGTERM_EXIT_CODE, StopRequest, stop_on_signals
from groundling.train import run_folder
from groundling.train.checkpoints.folder import CheckpointFolder
from groundling.train.resuming import LOST_RANK_ADVICE, Resumable, resolve_resume
from groundling.train.run_folder import RunSummary

log = logging.getLogger(__name__)


class RunConfig(Resumable, Protocol):
    """The config of a run: a dataclass with these fields."""

    @property
    def overwrite(self) -> bool:
        """Whether to remove an earlier run in the folder."""

    @property
    def runtime(self) -> RuntimeConfig:
        """Device, precision, threads."""


C = TypeVar("C", bound=RunConfig)


class Run(Generic[C]):
    """A run in progress. Made by `open_run`.

    Args:
        config: with `resume` true or false.
        name: the verb.
        stop: set by signals.
        stack: closed when the run ends.
        started: start time, by `time.perf_counter`.
    """

    picked: Runtime
    """Device, precision and compilation; set by `pick_runtime`."""

    def __init__(self, config: C, name: str, stop: StopRequest, stack: ExitStack, started: float) -> None:
        self.config, self.name, self.stop = config, name, stop
        self.folder = config.out_dir
        self.run_id = run_folder.new_run_id()
        self.metrics = MetricsWriter()
        self._stack, self._started = stack, started
        self._console: ConsoleSink | None = None

    def show_progress(self, n_steps: int, first_step: int = 0, plain_every_s: float = math.inf) -> None:
        """Show a progress bar, or lines if there is no terminal, on the first rank; see `ConsoleSink`."""
        if distributed.is_first():
            self._console = ConsoleSink(n_steps, first_step, plain_every_s)
            self._stack.callback(self._console.close)

    def pick_runtime(self, *, worth_compiling: bool) -> Runtime:
        """Pick device, precision and compilation as the config says."""
        self.picked = runtime.pick(self.config.runtime, worth_compiling)
        make_deterministic(self.picked.device)
        return self.picked

    def find_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, the same on all ranks; None for a new run. All ranks call this together.

        Raises:
            CheckpointError: the folder holds no intact checkpoint.
        """
        if not self.config.resume:
            return None
        if distributed.is_first():
            path, skipped = run_folder.find_resumable(self.folder)
            for why in skipped:
                log.warning(f"skipped: {why}")
        distributed.barrier()
        if not distributed.is_first():
            path, _ = CheckpointFolder(self.folder / CHECKPOINTS).newest_good()
        log.info(f"resuming from {path}")
        return path

    def continue_from(self, run_id: str, wall_s: float) -> None:
        """Take over the identity and the time of the run that is resumed."""
        self.run_id = run_id
        self._started -= wall_s

    def begin(
        self,
        step: int = 0,
        *,
        rewritten: Callable[[Record], bool] = lambda _: False,
        extra_sinks: Callable[[], Sequence[Sink]] = list,
        preset: bool = True,
    ) -> MetricsWriter:
        """Open metrics.jsonl and write run.toml and env.json. Call it after all checks of the config.

        A new run first removes an earlier one in the folder. All ranks call this together.

        Args:
            step: of the checkpoint, for a resumed run.
            rewritten: which records of that step the run will write again.
            extra_sinks: makes the sinks besides metrics.jsonl and the console.
            preset: write run.toml.
        """
        if distributed.is_first():
            if not self.config.resume:
                self._stack.enter_context(run_folder.new_run(self.folder, self.stop))
            more = extra_sinks()  # before anything is written, because a package may be missing
            atomic.remove(self.folder / run_folder.SUMMARY)
            if preset:
                atomic.write_text(self.folder / "run.toml", to_toml(self._own_config()))
            about = {"stage": self.name, "run_id": self.run_id}
            atomic.write_json(self.folder / "env.json", {**about, **hardware.environment(), **self.picked.reasons})
            record = JsonlSink(self.folder / "metrics.jsonl", step if self.config.resume else None, rewritten)
            self._stack.callback(self.metrics.close)
            self.metrics.sinks = [record, *([self._console] if self._console else []), *more]
        distributed.barrier()
        return self.metrics

    def asked_to_stop(self) -> bool:
        """Whether any rank received a signal to stop; all ranks call this together and get the same answer."""
        return distributed.any_rank(bool(self.stop), self.picked.device)

    def wall_s(self) -> float:
        """Seconds since the run was opened, summed over resumptions."""
        return time.perf_counter() - self._started

    def settings(self) -> dict[str, Any]:
        """The config as plain data, without the flags `resume` and `overwrite`."""
        return to_dict(self._own_config())

    def finish(
        self, reason: str, figures: dict[str, Any], *, failed: bool = False, even_if_stopped: bool = False
    ) -> RunSummary:
        """Close the metrics and write summary.json, the last file of a run.

        Args:
            reason: why training ended.
            figures: final metrics.
            failed: the loss or the gradient was not finite.
            even_if_stopped: write it for a stopped run too, because it leaves a model.
        """
        self.metrics.close()
        stopped = reason == ASKED_TO_STOP
        summary = RunSummary(
            stage=self.name,
            reason=reason,
            failed=failed,
            # The signal may have reached another rank.
            exit_code=(self.stop.exit_code or SIGTERM_EXIT_CODE) if stopped else 0,
            wall_s=round(self.wall_s(), 3),
            config=self.settings(),
            figures=figures,
        )
        if distributed.is_first() and (even_if_stopped or not stopped):
            atomic.write_json(self.folder / run_folder.SUMMARY, summary.to_json())
        return summary

    def _own_config(self) -> C:
        return dataclasses.replace(self.config, resume=False, overwrite=False)  # type: ignore[type-var]


@contextmanager
def open_run(config: C, name: str) -> Iterator[Run[C]]:
    """Join the ranks, handle signals and lock the run folder.

    Raises:
        ConfigError: the folder holds a run that is neither resumed nor overwritten, or the device is missing.
        CheckpointError: another process uses the folder.
    """
    started = time.perf_counter()
    device = runtime.pick_device(config.runtime.device)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        stack.enter_context(distributed.process_group(device, advice=LOST_RANK_ADVICE))
        if distributed.is_first():
            stack.enter_context(run_folder.locked(config.out_dir))
        config = resolve_resume(config)
        if distributed.is_first() and not config.resume:
            run_folder.require_room(config.out_dir, overwrite=config.overwrite)
        distributed.barrier()
        yield Run(config, name, stop, stack, started)
