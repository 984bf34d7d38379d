"""The loop of the stages that learn from examples: sft, reward and dpo."""

from collections.abc import Callable

import msgspec
import torch
from torch import Tensor, nn

from groundling.align.checkpoint import Snapshot, require_steps_left, restoring
from groundling.align.example_loader import ExampleFeed
from groundling.align.stage import ExamplesConfig, Stage, progress_of_first
from groundling.errors import CheckpointError, TrainingError
from groundling.model.gpt import GPT
from groundling.system import distributed
from groundling.system.signals import ASKED_TO_STOP
from groundling.train.checkpoints.folder import Count, Seconds
from groundling.train.checkpoints.tensors import learned_tensors, restore_learned
from groundling.train.loop import FINISHED, Watcher, train
from groundling.train.optim.optimizers import Optimizers
from groundling.train.state import Progress, TrainState
from groundling.train.step import StepStats


class _Facts(msgspec.Struct, forbid_unknown_fields=True):
    """What a checkpoint says besides its tensors."""

    n_tokens: Count
    train_s: Seconds
    batches: dict[str, Count]


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
    torch.manual_seed(config.seed + distributed.rank())
    optimizers = Optimizers(model, config.optim, picked.compute_dtype)
    state = TrainState(model, distributed.wrap(objective), optimizers, feed)
    if stage.found is not None:
        require_steps_left(stage.found.snapshot.step, n_steps, config.out_dir, f"epochs {config.epochs}")
        with restoring(stage.found) as snapshot:
            restore_learned(model, optimizers, snapshot.tensors)
            facts = msgspec.convert(snapshot.facts, _Facts)
            feed.load_state_dict(facts.batches)
            state.progress = Progress(snapshot.step, facts.n_tokens, facts.train_s)
            if facts.batches != {"next_sample": snapshot.step * config.batch_size}:
                raise CheckpointError(f"its examples go on at {facts.batches}, and not after its {snapshot.step} steps")
    stage.begin(state.progress.step, made_again=lambda record: "loss" not in record)
    saved_at = None if stage.found is None else state.progress.step
    watcher = _Watch(stage, n_steps, evaluate, keep or {}, saved_at)
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
        saved_at: int | None,
    ) -> None:
        self._stage, self._n_steps, self._evaluate, self._keep = stage, n_steps, evaluate, keep
        self.newest: dict[str, float] = {}
        self._stopping, self._saved_at = False, saved_at

    def before_step(self, state: TrainState) -> None:
        self._stopping = self._stage.asked_to_stop()
        step = state.progress.step
        # Also at the end: what follows takes time, and a folder with a bundle alone could not be gone on with.
        is_due = step > 0 and (step % self._stage.config.save_every == 0 or step == self._n_steps)
        if (self._stopping or is_due) and step != self._saved_at:
            self._save(state)
        if step in (0, self._n_steps) and not self._stopping:
            self._stage.stop.can_save = step > 0
            with state.eval_mode(), progress_of_first("evaluating"):
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
        tensors = learned_tensors(state.model, state.optimizers) | self._keep
        progress, batches = state.progress, state.batches.state_dict()
        facts = {"n_tokens": progress.n_tokens, "train_s": progress.train_s, "batches": batches}
        self._stage.save(Snapshot(state.progress.step, tensors, facts))
        self._saved_at = state.progress.step
