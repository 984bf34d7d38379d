"""Train a rung in memory, without checkpoints."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from groundling.data.corpus import Corpus
from groundling.evals.loss import whole_split_loss
from groundling.ladder.rungs import Rung
from groundling.ladder.runs.begin import begin
from groundling.system.runtime import Runtime
from groundling.train.loop import Callback, train
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import TrainState
from groundling.train.step import StepStats


@dataclass(frozen=True)
class Trained:
    """Final training state, and losses as (step, loss)."""

    state: TrainState
    picked: Runtime
    losses: list[tuple[int, float]]
    val_losses: list[tuple[int, float]]
    seconds: float


def train_unrecorded(rung: Rung, corpus: Corpus, n_steps: int, seed: int) -> Trained:
    """Train a rung for `n_steps` with seven evaluations."""
    state, picked = begin(rung, corpus, seed)
    start = time.perf_counter()
    block_size = int(state.model.block_size)  # type: ignore[arg-type]

    def evaluate() -> float:
        return whole_split_loss(state.model, corpus.val.ids, block_size, picked.autocast)

    curves = _Curves(n_steps, evaluate)
    train(state, n_steps=n_steps, schedule=ScheduleConfig(kind="constant", warmup_steps=0), callbacks=[curves])
    return Trained(state, picked, curves.losses, curves.val_losses, time.perf_counter() - start)


class _Curves(Callback):
    """Records training and validation losses."""

    def __init__(self, n_steps: int, evaluate: Callable[[], float]) -> None:
        # Spaced quadratically as the curve flattens: an evaluation costs as much as 70 steps of a small rung.
        self.evaluated_steps = {round(n_steps * (k / 6) ** 2) for k in range(7)}
        self.evaluate, self._record_every = evaluate, max(1, n_steps // 100)
        self.losses: list[tuple[int, float]] = []
        self.val_losses: list[tuple[int, float]] = []
        self._since: list[float] = []

    def before_step(self, state: TrainState) -> str | None:
        step = state.progress.step
        if step in self.evaluated_steps:
            self.val_losses.append((step, self.evaluate()))
        return None

    def after_step(self, state: TrainState, stats: StepStats) -> None:
        self._since.append(stats.loss)
        if len(self._since) == self._record_every:
            self.losses.append((state.progress.step, sum(self._since) / len(self._since)))
            self._since.clear()
