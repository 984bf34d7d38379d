"""Dropout (Srivastava et al. 2014) whose random numbers a compiler can vectorise.

PyTorch's CPU generators are sequential: with dropout 0.2, they took half the time of a small GPT (docs/log.md). Here
each element's number is a hash of its index and two seeds from the global generator: integer arithmetic that fuses
with the surrounding operations.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedDropout(nn.Dropout):
    """PyTorch's dropout with a mask from `draw`, for a model that is not compiled itself.

    A compiled `scaled_mask` takes an eighth of the time of PyTorch's generator on a CPU (docs/log.md).

    Args:
        p: probability of zeroing an element.
        draw: (x, p) -> a mask of x's shape: 0, or 1 / (1 - p).
    """

    def __init__(self, p: float, draw: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__(p)
        self._draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * self._draw(x.detach(), self.p) if self.training and self.p else x


class Dropout(nn.Module):
    """Zero elements with probability `p` in training, and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * keep_mask(x, self.p) * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        """Arguments in the module's repr."""
        return f"p={self.p}"


def scaled_mask(x: Tensor, p: float) -> Tensor:
    """`keep_mask` times 1 / (1 - p) (x's shape)."""
    return keep_mask(x, p) * (1 / (1 - p))


def keep_mask(x: Tensor, p: float) -> Tensor:
    """0 with probability p and 1 otherwise, independently for each element of x (x's shape).

    The hash is a 32-bit multiply-xorshift mixer with the low-bias constants of Chris Wellons ("Prospecting for hash
    functions", nullprogram.com, 2018).
    """
    seeds = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=x.device)
    bits = torch.arange(x.numel(), dtype=torch.int32, device=x.device) ^ seeds[0]
    bits = _mix(bits, 16) * 0x7FEB352D
    bits = _mix(bits, 15) * (0x846CA68B - 2**32)  # as a signed number
    bits = _mix(bits, 16) + seeds[1]
    uniform = ((bits >> 8) & (2**24 - 1)).float() * 2**-24  # in [0, 1), exactly
    # floor instead of a comparison: the compiler stores Booleans for the backward pass one by one.
    return (uniform + (1 - p)).floor().type_as(x).view(x.shape)


def _mix(bits: Tensor, n: int) -> Tensor:
    """bits ^ (bits >> n) with a logical shift; `>>` on signed integers is arithmetic."""
    shifted: Tensor = (bits >> n) & (2 ** (32 - n) - 1)
    return torch.bitwise_xor(bits, shifted)
