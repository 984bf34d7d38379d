"""Precision of sums."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Cast to float32 unless x is float64, for sums: a bfloat16 sum stops growing after a few hundred terms."""
    return x if x.dtype == torch.float64 else x.float()
