"""Training of the stages that learn from examples: sft, reward and dpo."""

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
from groundling.train.callbacks import Every, Save, StopOnSignal
from groundling.train.checkpoints.folder import Count, Seconds
from groundling.train.checkpoints.tensors import learned_tensors, restore_learned
from groundling.train.loop import FINISHED, Callback, train
from groundling.train.optim.optimizers import Optimizers
from groundling.train.state import Progress, TrainState
from groundling.train.step import StepStats


class _Facts(msgspec.Struct, forbid_unknown_fields=True):
    """Plain data of a checkpoint."""

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
    """Train `model` through `objective`; return why training ended and the figures of the trained model.

    Begins the stage, or resumes it from the checkpoint that `Stage.find_checkpoint` found. Checkpoints also hold the
    tensors `keep`. A stage that was stopped or failed has no figures: the last ones were measured before training. A
    failed stage keeps the weights of its last good step, and `Stage.finish` raises the error.
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
                raise CheckpointError(
                    f"its data position is {facts.batches}, which does not match its {snapshot.step} steps"
                )
    stage.begin(state.progress.step, rewritten=lambda record: "loss" not in record)
    evaluation = EvaluateAtBothEnds(stage, n_steps, evaluate)
    callbacks = [
        StopOnSignal(stage),
        # Before the evaluation, which takes time: a stage with a bundle but no checkpoint could not be resumed.
        Save(
            Every(config.save_every, n_steps),
            lambda state: _save(stage, state, keep or {}),
            saved_at=None if stage.found is None else state.progress.step,
        ),
        evaluation,
        RecordLoss(stage, n_steps),
    ]
    try:
        reason = train(state, n_steps=n_steps, schedule=config.schedule, max_norm=config.grad_clip, callbacks=callbacks)
    except TrainingError as error:
        reason = stage.fail(state.progress.step + 1, error)
    model.eval()
    return reason, {} if reason != FINISHED else evaluation.figures


def _save(stage: Stage, state: TrainState, keep: dict[str, Tensor]) -> None:
    tensors = learned_tensors(state.model, state.optimizers) | keep
    progress, batches = state.progress, state.batches.state_dict()
    facts = {"n_tokens": progress.n_tokens, "train_s": progress.train_s, "batches": batches}
    stage.save(Snapshot(progress.step, tensors, facts))


class EvaluateAtBothEnds(Callback):
    """Evaluate before the first step and after the last.

    Args:
        stage: records the figures.
        n_steps: steps of the whole stage.
        evaluate: returns the figures of the current model.
    """

    def __init__(self, stage: Stage, n_steps: int, evaluate: Callable[[], dict[str, float]]) -> None:
        self._stage, self._n_steps, self._evaluate = stage, n_steps, evaluate
        self.figures: dict[str, float] = {}
        """Figures of the last evaluation."""

    def before_step(self, state: TrainState) -> str | None:
        step = state.progress.step
        if step in (0, self._n_steps):
            self._stage.stop.can_save = step > 0
            with state.eval_mode(), progress_of_first("evaluating"):
                self.figures = self._evaluate()
            self._stage.stop.can_save = True
            self._stage.record({"step": step, **self.figures})
        return None


class RecordLoss(Callback):
    """Record the loss of the first step and of every `log_every`-th; log one record in ten."""

    def __init__(self, stage: Stage, n_steps: int) -> None:
        self._stage, self._n_steps = stage, n_steps

    def after_step(self, state: TrainState, stats: StepStats) -> None:
        progress, interval = state.progress, self._stage.config.log_every
        step = progress.step
        if step % interval and step != 1:
            return
        record = {
            "step": step,
            "loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "lr_factor": stats.lr_factor,
            "train_s": round(progress.train_s, 3),
            "eta_s": round((self._n_steps - step) * progress.train_s / step, 1),
        }
        self._stage.record(record, show=(step // interval) % 10 == 1)
