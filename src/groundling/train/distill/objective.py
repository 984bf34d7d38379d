"""The distillation objective, and the callback that fades the teacher out.

Shapes: B batch, T positions, V vocabulary.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from groundling.data.batches import Batch
from groundling.model.loss import distillation_loss_sum
from groundling.train.distill.table import TeacherConfig
from groundling.train.loop import Callback
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import TrainState
from groundling.train.step import Objective


class DistillationObjective(Objective):
    """Cross-entropy with a mixture of each target and the teacher's distribution over it (arXiv:1503.02531).

    Args:
        model: token ids in, logits out.
        weight: the teacher's part of the mixture; may be changed between steps.
        autocast: makes the context of the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__(model, autocast=autocast)
        self.weight = weight

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, in nats summed over its targets; the plain loss if no teacher gave it distributions."""
        if batch.teacher_probs_BTV is None:
            return super().forward(batch)
        logits_BTV = self.logits_of(batch.idx_BT)
        return distillation_loss_sum(logits_BTV, batch.targets_BT, batch.teacher_probs_BTV, self.weight)


class FadeTeacher(Callback):
    """Scale the teacher's weight with the learning rate, so that the data alone teaches at the end.

    The weight follows from the step, so that a resumed run continues exactly.

    Args:
        objective: whose weight is set before each step; its weight now is the one at the highest learning rate.
        schedule: of the learning rate.
        n_steps: of the run.
    """

    def __init__(self, objective: DistillationObjective, schedule: ScheduleConfig, n_steps: int) -> None:
        self._objective, self._schedule, self._n_steps = objective, schedule, n_steps
        self._full_weight = objective.weight

    def before_step(self, state: TrainState) -> str | None:
        """Set the weight of the next step."""
        self._objective.weight = self._full_weight * self._schedule.factor(state.progress.step, self._n_steps)
        return None


def make_objective(
    model: nn.Module,
    teacher: TeacherConfig,
    schedule: ScheduleConfig,
    n_steps: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[Objective, list[FadeTeacher]]:
    """The objective of pretraining, and the callback of a teacher that fades."""
    if not teacher.weight:
        return Objective(model, autocast=autocast), []
    objective = DistillationObjective(model, teacher.weight, autocast)
    return objective, [FadeTeacher(objective, schedule, n_steps)] if teacher.fades else []
