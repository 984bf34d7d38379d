"""Precision of sums."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Losses and softmaxes are summed in float32 or better: a bfloat16 sum stops growing after a few hundred terms."""
    return x if x.dtype == torch.float64 else x.float()
