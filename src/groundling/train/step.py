"""One optimizer update, whatever is trained and however its batch is cut.

Shapes: B batch, T positions, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundling.data.batches import MicroBatch
from groundling.errors import TrainingError
from groundling.model.loss import distillation_loss_sum, loss_sum
from groundling.system import distributed
from groundling.train.optim.optimizers import Optimizers


@dataclass(frozen=True)
class StepStats:
    """What one update did."""

    loss: float
    """Nats per target, over all ranks."""
    grad_norm: float
    """The length of the whole gradient before it was clipped."""
    n_targets: int
    """Targets, over all ranks."""
    lr_factor: float
    """What the learning rates were multiplied with."""


class Objective(nn.Module):
    """A model with the loss that is summed over its logits: what is compiled, wrapped for ranks, and called.

    Args:
        model: token ids in, logits out.
        loss: (logits_BTV, targets_BT) -> nats, summed over the batch's targets.
        autocast: makes the context of the forward pass, for precision.
        teacher_weight: the part of a teacher's hints in the loss, where a batch brings any.
        teacher_fades: whether that part falls with the learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = loss_sum,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        teacher_weight: float = 0.0,
        teacher_fades: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast
        self.teacher_weight, self.teacher_fades = teacher_weight, teacher_fades

    def forward(
        self, idx_BT: Tensor, targets_BT: Tensor, hints_BTV: Tensor | None = None, lr_factor: float = 1.0
    ) -> Tensor:
        """The loss of a batch; a teacher that fades says less as the learning rate falls."""
        with self.autocast():
            logits_BTV = self.model(idx_BT)
        if hints_BTV is None:
            return self.loss(logits_BTV, targets_BT)
        weight = self.teacher_weight * (lr_factor if self.teacher_fades else 1.0)
        return distillation_loss_sum(logits_BTV, targets_BT, hints_BTV, weight)


def train_step(
    objective: nn.Module,
    micro_batches: Sequence[MicroBatch],
    optimizers: Optimizers,
    *,
    lr_factor: float = 1.0,
    max_norm: float | None = None,
) -> StepStats:
    """Make one optimizer update. How the batch is cut into `micro_batches` changes memory, and not the result
    (but for dropout, which draws for each of them).

    Raises:
        TrainingError: the loss or the gradient is not finite, on any rank; no weight was changed.
    """
    parameters = optimizers.parameters
    device = parameters[0].device
    n_targets = distributed.all_reduce_sum(sum(batch.n_targets for batch in micro_batches), device)
    # DDP averages over ranks and we want the sum; a step without any target gives zero gradients, not NaN.
    scale = distributed.world_size() / max(1.0, n_targets)
    optimizers.zero_grad()
    nats = 0.0
    for batch in micro_batches:
        with distributed.sync_gradients(objective, when=batch is micro_batches[-1]):
            # Nats, summed over this micro-batch's targets.
            loss = objective(*batch.to(device).arguments(lr_factor))
            (loss * scale).backward()
        nats += loss.item()
    mean = distributed.all_reduce_sum(nats, device) / max(1.0, n_targets)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    length = grad_norm.item()
    if not (math.isfinite(mean) and math.isfinite(length)):
        optimizers.zero_grad()
        raise TrainingError(f"the loss is {mean} and the gradient's length {length}: no weight was changed")
    if max_norm is not None and length > max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, grad_norm)
    optimizers.step(lr_factor)
    return StepStats(loss=mean, grad_norm=length, n_targets=int(n_targets), lr_factor=lr_factor)
