"""An exponential moving average of the weights: what is evaluated, saved and sampled from, while training goes on
with the plain weights (Polyak and Juditsky 1992; arXiv:2312.02696 for its use at a constant rate).

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
        model: whose parameters; their present values are the mean's first.
        decay: the part of the old mean that stays at each update. In the first steps it is less, (1 + n) / (10 + n),
            so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self.decay = decay
        self.n_updates = 0
        self.mean = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the mean."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        torch._foreach_lerp_(list(self.mean.values()), [p.data for p in self._parameters.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside this block the model's weights are the mean; after it they are again what they were, to the bit."""
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
