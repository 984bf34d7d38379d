"""What all stages that learn from examples share: the folder, the loop, the record, the end."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from groundling import atomicio, dist, runtime
from groundling.align.feed import ExampleFeed
from groundling.bundle import Bundle
from groundling.config import to_dict, to_toml
from groundling.data.examples import least_ids
from groundling.errors import TrainingError, require
from groundling.log import JsonlSink, Record, say
from groundling.model.gpt import GPT
from groundling.runtime import Runtime, RuntimeConfig
from groundling.train import rundir
from groundling.train.loop import FINISHED, Watcher, train
from groundling.train.optim import OptimConfig, Optimizers
from groundling.train.resuming import lower_rates
from groundling.train.schedule import ScheduleConfig
from groundling.train.signals import SIGTERM_EXIT_CODE, StopRequest, stop_on_signals
from groundling.train.state import TrainState
from groundling.train.step import StepStats
from groundling.train.watch import ASKED_TO_STOP, make_deterministic


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage can be told."""

    out_dir: Path
    """The stage's folder."""
    overwrite: bool = False
    """Remove what an earlier run left in out_dir."""
    context: int | None = None
    """Tokens of context that the model keeps, here and afterwards; None: all that it has."""
    max_length: int | None = None
    """Tokens of the longest example, prompt and reply; what is longer is shortened. None: the context."""
    seed: int = 1337
    """Of the order of the examples, and all that is drawn."""
    batch_size: int = 32
    """Examples per optimizer step, over all ranks."""
    micro_batch_rows: int = 16
    """Rows of packed examples in one forward pass: more take more memory, and nothing else changes."""
    grad_clip: float | None = 1.0
    """The gradient's greatest length; None: as it comes."""
    log_every: int = 10
    """Steps between records of the loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_rows", "log_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.grad_clip is None or self.grad_clip > 0, f"grad_clip is {self.grad_clip}; it must be positive")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be at least 0 and below 2**63")

    def longest(self, bundle: Bundle) -> int:
        """The most tokens of an example for a model that chats.

        Raises:
            ConfigError: max_length is more, or less than an example needs.
        """
        assert bundle.chat is not None
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
    """How often each example is seen."""
    dropout: float = 0.0
    """Of the model while it learns. A few passes over data of some size need none."""

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
        self._sink: JsonlSink | None = None

    def say(self, text: str) -> None:
        """Print a line; only the first rank does."""
        if dist.is_first():
            say(text)

    def begin(self) -> None:
        """All that could be refused has been: an earlier run goes now, and the record begins."""
        run = self.config.out_dir
        if dist.is_first():
            self._stack.enter_context(rundir.new_run(run, self.stop))
            atomicio.write_text(run / "run.toml", to_toml(dataclasses.replace(self.config, overwrite=False)))
            atomicio.write_json(run / "env.json", {"stage": self.name, **runtime.environment(), **self.picked.reasons})
            self._sink = JsonlSink(run / "metrics.jsonl")
        dist.barrier()

    def record(self, record: Record, *, show: bool = True) -> None:
        """Write a record down, and show it."""
        if self._sink is not None:
            self._sink.write(record)
        if show:
            self.say(f"{self.name} step {record['step']}: {describe(record)}")

    def asked_to_stop(self) -> bool:
        """Whether some rank was asked to stop; all ranks get the same answer. From then on what is learned is kept."""
        self.stop.can_save = True
        return dist.any_rank(bool(self.stop), self.picked.device)

    def fail(self, step: int, error: TrainingError) -> str:
        """Remember why no more can be learned, until what was learned is kept; return how the stage ended."""
        reason = f"{self.name} stopped at step {step}: {error}"
        self.failure = TrainingError(
            f"{reason}; what it had learned is in {self.config.out_dir}; try again with lower learning rates, "
            f"for example: {lower_rates(self.config)} --overwrite"
        )
        return reason

    def finish(self, ended: str, figures: dict[str, Any]) -> int:
        """Write the summary: how the stage ended, and its last figures; return the exit code.

        Raises:
            TrainingError: it failed.
        """
        summary = {
            "stage": self.name,
            "wall_s": round(time.perf_counter() - self.started, 1),
            "config": to_dict(self.config),
            "ended": ended,
            "failed": self.failure is not None,
            **figures,
        }
        if dist.is_first():
            atomicio.write_json(self.config.out_dir / "summary.json", summary)
        if self.failure is not None:
            raise self.failure
        # Another rank may have been the one that was asked.
        return (self.stop.exit_code or SIGTERM_EXIT_CODE) if ended == ASKED_TO_STOP else 0


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
        stack.enter_context(dist.process_group(device, advice="begin the stage again with --overwrite"))
        if dist.is_first():
            stack.enter_context(rundir.locked(config.out_dir))
            rundir.require_room(config.out_dir, overwrite=config.overwrite, resumable=False)
        dist.barrier()
        picked = runtime.pick(config.runtime, worth_compiling=False)
        make_deterministic(picked.device)
        yield Stage(config, name, stop, picked, stack)


def learn(
    stage: Stage,
    config: ExamplesConfig,
    model: nn.Module,
    objective: nn.Module,
    feed: ExampleFeed,
    evaluate: Callable[[], dict[str, float]],
) -> tuple[str, dict[str, float]]:
    """Train `model` through `objective`; return how it ended ("finished" or why) and the figures of what was learned.

    A stage that was asked to stop has none: those of its beginning are another model's. So has one that failed, since a
    loss or a gradient was not finite; its weights are those of the last good step, and `Stage.finish` tells of it.
    """
    picked, n_steps = stage.picked, feed.n_steps(config.epochs)
    for module in model.modules():
        if isinstance(module, GPT):
            module.set_dropout(config.dropout)
    torch.manual_seed(config.seed + dist.rank())
    optimizers = Optimizers(model, config.optim, picked.compute_dtype)
    state = TrainState(model, dist.wrap(objective), optimizers, feed)
    watcher = _Watch(stage, n_steps, evaluate)
    try:
        reason = train(state, n_steps=n_steps, schedule=config.schedule, max_norm=config.grad_clip, watcher=watcher)
    except TrainingError as error:
        reason = stage.fail(state.progress.step + 1, error)
    model.eval()
    return reason, {} if reason != FINISHED else watcher.newest


class _Watch(Watcher):
    """Evaluates before the first step and after the last; records."""

    def __init__(self, stage: Stage, n_steps: int, evaluate: Callable[[], dict[str, float]]) -> None:
        self._stage, self._n_steps, self._evaluate = stage, n_steps, evaluate
        self.newest: dict[str, float] = {}
        self._stopping = False

    def before_step(self, state: TrainState) -> None:
        self._stopping = self._stage.asked_to_stop()
        step = state.progress.step
        if step in (0, self._n_steps) and not self._stopping:
            self._stage.stop.can_save = step > 0
            with state.ready_to_judge():
                self.newest = self._evaluate()
            self._stage.stop.can_save = True
            self._stage.record({"step": step, **self.newest})

    def reason_to_stop(self, state: TrainState) -> str | None:  # noqa: ARG002
        return ASKED_TO_STOP if self._stopping else None

    def after_step(self, state: TrainState, stats: StepStats) -> None:
        step = state.progress.step
        if step % self._stage.config.log_every and step != 1:
            return
        progress = state.progress
        record = {
            "step": step,
            "loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "lr_factor": stats.lr_factor,
            "train_s": round(progress.train_s, 3),
            "eta_s": round((self._n_steps - step) * progress.train_s / step, 1),
        }
        self._stage.record(record, show=(step // self._stage.config.log_every) % 10 == 1)


def describe(record: Record) -> str:
    """A record's figures in one line."""
    parts = []
    for name, value in record.items():
        if name in ("step", "lr_factor"):
            continue
        if isinstance(value, float):
            parts.append(f"{name} {value:.4g}" if math.isfinite(value) else f"{name} {value}")
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)
