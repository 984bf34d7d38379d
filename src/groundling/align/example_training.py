"""The loop of the stages that learn from examples: sft, reward and dpo."""

import math
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor, nn

from groundling import dist
from groundling.align.checkpoint import Count, Snapshot, require_steps_left, restoring
from groundling.align.feed import ExampleFeed
from groundling.align.stage import ExamplesConfig, Stage, progress_of_first
from groundling.errors import TrainingError
from groundling.model.gpt import GPT
from groundling.train.loop import FINISHED, Watcher, train
from groundling.train.optim import Optimizers
from groundling.train.state import Progress, TrainState
from groundling.train.step import StepStats
from groundling.train.training_tensors import optimizer_tensors, restore_learned, weight_tensors
from groundling.train.watch import ASKED_TO_STOP


def learn(
    stage: Stage,
    config: ExamplesConfig,
    model: nn.Module,
    objective: nn.Module,
    feed: ExampleFeed,
    evaluate: Callable[[], dict[str, float]],
    keep: dict[str, Tensor] | None = None,
) -> tuple[str, dict[str, float]]:
    """Train `model` through `objective`; return how it ended ("finished" or why) and the figures of what was learned.

    Begins the stage, or goes on where `Stage.look_back` has found it. All checkpoints hold the tensors `keep` besides.

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
    if stage.found is not None:
        require_steps_left(stage.found.snapshot.step, n_steps, config.out_dir, f"epochs {config.epochs}")
        with restoring(stage.found) as snapshot:
            restore_learned(model, optimizers, snapshot.tensors)
            feed.load_state_dict(msgspec.convert(snapshot.facts["batches"], dict[str, Count]))
            state.progress = msgspec.convert(snapshot.facts["progress"], Progress)
            if state.progress.step != snapshot.step or not 0 <= state.progress.train_s < math.inf:
                raise ValueError(f"its progress is not that of step {snapshot.step}")
    stage.begin(state.progress.step, made_again=lambda record: "loss" not in record)
    watcher = _Watch(stage, n_steps, evaluate, keep or {}, saved_at=state.progress.step)
    try:
        reason = train(state, n_steps=n_steps, schedule=config.schedule, max_norm=config.grad_clip, watcher=watcher)
    except TrainingError as error:
        reason = stage.fail(state.progress.step + 1, error)
    model.eval()
    return reason, {} if reason != FINISHED else watcher.newest


class _Watch(Watcher):
    """Evaluates before the first step and after the last; saves, and records."""

    def __init__(
        self,
        stage: Stage,
        n_steps: int,
        evaluate: Callable[[], dict[str, float]],
        keep: dict[str, Tensor],
        saved_at: int,
    ) -> None:
        self._stage, self._n_steps, self._evaluate, self._keep = stage, n_steps, evaluate, keep
        self.newest: dict[str, float] = {}
        self._stopping, self._saved_at = False, saved_at

    def before_step(self, state: TrainState) -> None:
        self._stopping = self._stage.asked_to_stop()
        step = state.progress.step
        if (self._stopping or step % self._stage.config.save_every == 0) and step != self._saved_at:
            self._save(state)
        if step in (0, self._n_steps) and not self._stopping:
            self._stage.stop.can_save = step > 0
            with state.ready_to_judge(), progress_of_first("evaluating"):
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

    def _save(self, state: TrainState) -> None:
        tensors = weight_tensors(state.model) | optimizer_tensors(state.optimizers) | self._keep
        progress = {name: getattr(state.progress, name) for name in ("step", "n_tokens", "train_s")}
        facts = {"progress": progress, "batches": state.batches.state_dict()}
        self._stage.save(Snapshot(state.progress.step, tensors, facts))
        self._saved_at = state.progress.step
