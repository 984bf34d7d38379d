"""Learning-rate schedules: a factor between 0 and 1 for each step, the same for every optimizer of a run."""

import math
from dataclasses import dataclass
from typing import Literal

from groundling.errors import require


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate schedule."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """cosine (arXiv:1608.03983), linear, wsd (warmup-stable-decay, arXiv:2404.06395) or constant."""
    warmup_steps: int = 100
    """Steps of linear warmup."""
    final_fraction: float = 0.1
    """Final learning rate as a fraction of the peak."""
    decay_fraction: float = 0.4
    """wsd only: fraction of the steps spent in the final linear decay."""

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; it must be at least 0")
        for name in ("final_fraction", "decay_fraction"):
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must be in [0, 1]")

    def factor(self, step: int, n_steps: int) -> float:
        """The factor for update number `step` (from 0) of `n_steps`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = min(1.0, (step - self.warmup_steps) / max(1, n_steps - self.warmup_steps))
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            return self._between(0.5 * (1 + math.cos(math.pi * done)))
        if self.kind == "linear":
            return self._between(1 - done)
        left = (n_steps - step) / max(1.0, self.decay_fraction * n_steps)
        return self._between(min(1.0, left))

    def _between(self, height: float) -> float:
        return self.final_fraction + (1 - self.final_fraction) * height
