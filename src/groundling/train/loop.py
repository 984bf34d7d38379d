"""The training loop, shared by everything from the lecture's bigram to the production GPT."""

import time
from collections.abc import Sequence
from typing import Protocol

from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import TrainState
from groundling.train.step import StepStats, train_step

FINISHED = "finished"
"""The reason that `train` returns after all steps."""


class Callback(Protocol):
    """Work between updates: evaluation, checkpoints, metrics. It must not change the training itself.

    Subclasses override what they need.
    """

    def before_step(self, state: TrainState) -> str | None:  # noqa: ARG002
        """Called before each update and once after the last. Return a reason to end training, or None to continue.

        If a callback returns a reason, the callbacks after it are skipped.
        """
        return None

    def after_step(self, state: TrainState, stats: StepStats) -> None:  # noqa: ARG002
        """Called after each update."""
        return

    def at_end(self, state: TrainState, reason: str) -> None:  # noqa: ARG002
        """Called when training ends without an error."""
        return


def train(
    state: TrainState,
    *,
    n_steps: int,
    schedule: ScheduleConfig,
    max_norm: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> str:
    """Train until the run has made `n_steps` updates or a callback ends it; return "finished" or the callback's reason.

    Raises:
        TrainingError: a loss or gradient is not finite; the weights are those of the last good step.
    """
    progress = state.progress
    state.model.train()
    while True:
        reason = _before_step(callbacks, state) or (FINISHED if progress.step >= n_steps else None)
        if reason is not None:
            for callback in callbacks:
                callback.at_end(state, reason)
            return reason
        start = time.perf_counter()
        stats = train_step(
            state.objective,
            state.batches.next_step(),
            state.optimizers,
            lr_factor=schedule.factor(progress.step, n_steps),
            max_norm=max_norm,
        )
        if state.average is not None:
            state.average.update()
        progress.step += 1
        progress.n_tokens += stats.n_targets
        progress.train_s += time.perf_counter() - start
        for callback in callbacks:
            callback.after_step(state, stats)


def _before_step(callbacks: Sequence[Callback], state: TrainState) -> str | None:
    for callback in callbacks:
        if reason := callback.before_step(state):
            return reason
    return None
