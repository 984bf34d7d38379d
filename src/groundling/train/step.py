"""One optimizer step, for any objective and any cut of its batch into micro-batches.

Shapes: B batch, T positions, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundling.data.batches import Batch, MicroBatch
from groundling.errors import TrainingError
from groundling.model.loss import loss_sum
from groundling.system import distributed
from groundling.train.optim.optimizers import Optimizers


@dataclass(frozen=True)
class StepStats:
    """Figures of one optimizer step."""

    loss: float
    """Nats per target, over all ranks."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    n_targets: int
    """Targets, over all ranks."""
    lr_factor: float
    """Factor of the learning rates."""


class Objective(nn.Module):
    """A model and its loss as one module, from a batch to a scalar. DDP wraps it and `train_step` calls it.

    Args:
        model: token ids in, logits out.
        loss: (logits_BTV, targets_BT) -> nats, summed over the batch's targets.
        autocast: makes the context of the forward pass, for precision.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = loss_sum,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, in nats summed over its targets."""
        return self.loss_of(batch.idx_BT, batch.targets_BT)

    def loss_of(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """`forward` on plain tensors; compiled as a whole if the model is not compiled in parts."""
        return self.loss(self.logits_of(idx_BT), targets_BT)

    def logits_of(self, idx_BT: Tensor) -> Tensor:
        """The model's logits_BTV, in the precision of `autocast`."""
        with self.autocast():
            logits_BTV: Tensor = self.model(idx_BT)
        return logits_BTV


def train_step(
    objective: nn.Module,
    micro_batches: Sequence[MicroBatch],
    optimizers: Optimizers,
    *,
    lr_factor: float = 1.0,
    max_norm: float | None = None,
) -> StepStats:
    """Make one optimizer step.

    The cut into micro-batches changes memory and not the result, except for dropout, which draws for each of them.

    Args:
        objective: a micro-batch -> its loss, summed over its targets; possibly wrapped in DDP.
        micro_batches: this rank's part of the batch.
        optimizers: of the trained parameters.
        lr_factor: factor of the learning rates.
        max_norm: of the gradient, which is clipped to it; None: no clipping.

    Raises:
        TrainingError: the loss or the gradient is not finite, on any rank; no weight was changed.
    """
    parameters = optimizers.parameters
    device = parameters[0].device
    n_targets = distributed.all_reduce_sum(sum(batch.n_targets for batch in micro_batches), device)
    # DDP averages over ranks, and we need the sum. A step without targets has zero gradients, not NaN.
    scale = distributed.world_size() / max(1.0, n_targets)
    optimizers.zero_grad()
    nats = 0.0
    for batch in micro_batches:
        with distributed.sync_gradients(objective, when=batch is micro_batches[-1]):
            loss = objective(batch.to(device))
            (loss * scale).backward()
        nats += loss.item()
    mean = distributed.all_reduce_sum(nats, device) / max(1.0, n_targets)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    length = grad_norm.item()
    if not (math.isfinite(mean) and math.isfinite(length)):
        optimizers.zero_grad()
        raise TrainingError(f"the loss is {mean} and the gradient norm {length}: no weight was changed")
    if max_norm is not None and length > max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, grad_norm)
    optimizers.step(lr_factor)
    return StepStats(loss=mean, grad_norm=length, n_targets=int(n_targets), lr_factor=lr_factor)
