"""The training state: everything that changes during training and is saved in checkpoints."""

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
    """Progress of a run, as plain numbers."""

    step: int = 0
    """Updates made."""
    n_tokens: int = 0
    """Targets trained on, over all ranks."""
    train_s: float = 0.0
    """Time spent in updates."""
    wall_s: float = 0.0
    """Seconds since the call that trains, summed over resumptions, at the last checkpoint."""
    val_loss: float | None = None
    """The last validation loss."""
    train_loss: float | None = None
    """The estimate of the training loss made with it."""
    evaluated_step: int | None = None
    """Step of that evaluation."""
    best_val_loss: float = math.inf
    """The lowest validation loss."""
    best_step: int | None = None
    """Step of that evaluation."""
    n_evals_since_best: int = 0
    """Evaluations since then."""

    def record_evaluation(self, val_loss: float, train_loss: float | None = None) -> None:
        """Record the losses of an evaluation at the current step."""
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
    """The model with its loss, possibly compiled and wrapped in DDP."""
    optimizers: Optimizers
    batches: Feed
    average: WeightAverage | None = None
    progress: Progress = field(default_factory=Progress)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Inside this block the model is what a bundle would hold: in evaluation mode, with averaged weights if any.

        Training mode and weights are restored exactly afterwards.
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
