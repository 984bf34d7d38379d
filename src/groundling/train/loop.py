"""The training loop of everything that is trained, from the lecture's bigram to the production GPT."""

import time

from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import TrainState
from groundling.train.step import StepStats, train_step

FINISHED = "finished"
"""How a training ends that was not stopped."""


class Watcher:
    """What happens around the updates. A subclass overrides what it needs; nothing here changes the training."""

    def before_step(self, state: TrainState) -> None:
        """Called before each update, and once after the last: evaluate, save, show."""

    def reason_to_stop(self, state: TrainState) -> str | None:  # noqa: ARG002
        """Why training should end now, after `before_step`; None to go on."""
        return None

    def after_step(self, state: TrainState, stats: StepStats) -> None:
        """Called after each update, with what it did."""


class Watchers(Watcher):
    """Several watchers in order; the first reason to stop counts."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def before_step(self, state: TrainState) -> None:
        for watcher in self._watchers:
            watcher.before_step(state)

    def reason_to_stop(self, state: TrainState) -> str | None:
        return next((reason for each in self._watchers if (reason := each.reason_to_stop(state))), None)

    def after_step(self, state: TrainState, stats: StepStats) -> None:
        for watcher in self._watchers:
            watcher.after_step(state, stats)


def train(
    state: TrainState,
    *,
    n_steps: int,
    schedule: ScheduleConfig,
    max_norm: float | None = None,
    watcher: Watcher | None = None,
) -> str:
    """Train until `n_steps` updates are made in all, or the watcher wants to stop; return "finished" or why.

    Raises:
        TrainingError: a loss or gradient is not finite; the weights are those of the last good step.
    """
    watcher = watcher or Watcher()
    progress = state.progress
    state.model.train()
    while True:
        watcher.before_step(state)
        if reason := watcher.reason_to_stop(state):
            return reason
        if progress.step >= n_steps:
            return FINISHED
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
        watcher.after_step(state, stats)
