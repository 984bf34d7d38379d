"""Dropout (Srivastava et al. 2014) whose random numbers a compiler can vectorise.

PyTorch's CPU generators make one number after the other: in a small GPT with dropout 0.2, in attention too, they took
half of the time (docs/log.md). Here each element's number is a hash of its index and of
two seeds, which come from the global generator: integer arithmetic that is fused with whatever stands around it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedDropout(nn.Dropout):
    """PyTorch's dropout with a mask from `draw`, for a model that is not compiled itself: compiled, `scaled_mask` takes
    an eighth of the time of PyTorch's generator on a CPU (docs/log.md).

    Args:
        p: the part that is set to zero.
        draw: (x, p) -> a mask of x's shape: 0, or the scale that keeps the mean.
    """

    def __init__(self, p: float, draw: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__(p)
        self._draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * self._draw(x.detach(), self.p) if self.training and self.p else x


class Dropout(nn.Module):
    """Set a part `p` of the numbers to zero while training, and scale the others so that the mean stays."""

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
        """What `print` shows between the brackets."""
        return f"p={self.p}"


def scaled_mask(x: Tensor, p: float) -> Tensor:
    """`keep_mask`, with 1 / (1 - p) where an element is kept (x's shape)."""
    return keep_mask(x, p) * (1 / (1 - p))


def keep_mask(x: Tensor, p: float) -> Tensor:
    """1 where an element of x is kept and 0 where it is dropped, independently and with probability p (x's shape).

    The hash is a multiply-xorshift mixer of 32 bits with the constants that Chris Wellons' search found to have the
    least bias ("Prospecting for hash functions", nullprogram.com, 2018).
    """
    seeds = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=x.device)
    bits = torch.arange(x.numel(), dtype=torch.int32, device=x.device) ^ seeds[0]
    bits = _mix(bits, 16) * 0x7FEB352D
    bits = _mix(bits, 15) * (0x846CA68B - 2**32)  # as a signed number
    bits = _mix(bits, 16) + seeds[1]
    uniform = ((bits >> 8) & (2**24 - 1)).float() * 2**-24  # in [0, 1), exactly
    # Not a comparison: the compiler would keep Booleans for the backward pass, and it stores them one by one.
    return (uniform + (1 - p)).floor().type_as(x).view(x.shape)


def _mix(bits: Tensor, n: int) -> Tensor:
    """bits ^ (bits >> n), with zeros coming in from the left, which `>>` of signed numbers does not do."""
    shifted: Tensor = (bits >> n) & (2 ** (32 - n) - 1)
    return torch.bitwise_xor(bits, shifted)
