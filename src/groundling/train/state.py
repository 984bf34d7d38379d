"""All that changes while a model is trained: what a checkpoint holds, and nothing else does."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from groundling.data.batches import Feed
from groundling.train.optim.ema import WeightAverage
from groundling.train.optim.optimizers import Optimizers


@dataclass
class Progress:
    """How far a run has come: plain numbers."""

    step: int = 0
    """Updates made."""
    n_tokens: int = 0
    """Targets trained on, over all ranks."""
    train_s: float = 0.0
    """Time spent in updates."""
    wall_s: float = 0.0
    """Time since the call that trains, all of its resumptions together, at the last checkpoint."""
    val_loss: float | None = None
    """The newest validation loss."""
    train_loss: float | None = None
    """The estimate of the training loss that was made with it."""
    evaluated_step: int | None = None
    """When it was measured."""
    best_val_loss: float = math.inf
    """The lowest one."""
    best_step: int | None = None
    """When that was measured."""
    n_evals_since_best: int = 0
    """Evaluations since then."""

    def record_evaluation(self, val_loss: float, train_loss: float | None = None) -> None:
        """Take a validation loss, measured now, and the estimate of the training loss beside it."""
        self.val_loss, self.train_loss, self.evaluated_step = val_loss, train_loss, self.step
        if val_loss < self.best_val_loss:
            self.best_val_loss, self.best_step, self.n_evals_since_best = val_loss, self.step, 0
        else:
            self.n_evals_since_best += 1


@dataclass
class TrainState:
    """A model in training."""

    model: nn.Module
    """The plain model."""
    objective: nn.Module
    """The same model with its loss, perhaps compiled and wrapped for ranks."""
    optimizers: Optimizers
    batches: Feed
    average: WeightAverage | None = None
    progress: Progress = field(default_factory=Progress)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Inside this block the model is what would be saved: averaged weights, where asked for, in evaluation mode.

        After it, training goes on as if nothing had happened.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            if self.average is None:
                yield
            else:
                with self.average.in_place():
                    yield
        finally:
            self.model.train(was_training)
