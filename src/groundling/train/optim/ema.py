"""An exponential moving average (EMA) of the weights, for evaluation, saving and sampling; training keeps the plain
weights (Polyak and Juditsky 1992; arXiv:2312.02696 for its use at a constant rate).

Why not torch.optim.swa_utils.AveragedModel: it is a second model; here the mean is swapped into the one that is
compiled and sharded, and is checkpointed by parameter name.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The running mean of a model's parameters.

    Args:
        model: whose parameters are averaged; the average starts at their current values.
        decay: share of the old average kept at each update. In the first steps it is lower, (1 + n) / (10 + n), to
            forget the initial weights quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self.decay = decay
        self.n_updates = 0
        self.mean = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        torch._foreach_lerp_(list(self.mean.values()), [p.data for p in self._parameters.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside this block the model has the averaged weights; its own are restored exactly afterwards."""
        plain = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._set(self.mean)
        try:
            yield
        finally:
            self._set(plain)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
