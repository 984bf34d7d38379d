"""The few alternatives that a Block is built from: norms, MLPs, positions.

Shapes: B batch, T positions, H heads, D head_size, P pairs (D / 2), C n_embd, F hidden.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundling.model.cache import Positions

PLACES_AT_ONCE = 8192


def make_norm(kind: str, size: int, eps: float, bias: bool) -> nn.Module:
    """Pick a norm over the last dimension: "layernorm" (arXiv:1607.06450) or "rmsnorm" (arXiv:1910.07467)."""
    if kind == "rmsnorm":
        return RMSNorm(size, eps=eps)
    return nn.LayerNorm(size, eps=eps, bias=bias)


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm, whose gain follows the precision of its input: only then is the fused kernel taken."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (arXiv:2109.08668): sparse like ReLU, and smooth at zero."""
    return F.relu(x).square()


def gelu(x: Tensor) -> Tensor:
    """GELU in GPT-2's tanh approximation (arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    """Widen, bend, narrow: the computation of each token for itself. The lecture's rung 5, with its rung 6's width."""

    activations: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": gelu, "relu2": relu2}  # noqa: RUF012

    def __init__(self, kind: str, n_embd: int, n_hidden: int, bias: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, n_hidden, bias=bias)
        self.activation = self.activations[kind]
        self.c_proj = nn.Linear(n_hidden, n_embd, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTF: Tensor = self.activation(self.c_fc(x_BTC))
        return self.c_proj(x_BTF)  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """The gated MLP of Llama and Qwen3 (arXiv:2002.05202): one branch decides how much of the other passes."""

    def __init__(self, n_embd: int, n_hidden: int, bias: bool) -> None:
        super().__init__()
        self.c_gate = nn.Linear(n_embd, n_hidden, bias=bias)
        self.c_fc = nn.Linear(n_embd, n_hidden, bias=bias)
        self.c_proj = nn.Linear(n_hidden, n_embd, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTF: Tensor = F.silu(self.c_gate(x_BTC)) * self.c_fc(x_BTC)
        return self.c_proj(x_BTF)  # type: ignore[no-any-return]


def make_mlp(kind: str, n_embd: int, n_hidden: int, bias: bool) -> nn.Module:
    """Pick a token's own computation: "relu", "gelu", "relu2" or "swiglu"."""
    return SwiGLU(n_embd, n_hidden, bias) if kind == "swiglu" else MLP(kind, n_embd, n_hidden, bias)


class LearnedPositions(nn.Module):
    """GPT-2's and the lecture's positions: a learned vector per place, added to the token's."""

    def __init__(self, block_size: int, n_embd: int) -> None:
        super().__init__()
        self.wpe = nn.Embedding(block_size, n_embd)

    def forward(self, x_BTC: Tensor, positions: Positions) -> Tensor:
        """Add the vectors of the places."""
        return x_BTC + self.wpe.weight[positions]


class NoPositions(nn.Module):
    """Stands where a model adds nothing: a rotary model puts no positions into the stream."""

    def forward(self, x_BTC: Tensor, positions: Positions) -> Tensor:  # noqa: ARG002
        """Return the stream as it is."""
        return x_BTC


class Rotary(nn.Module):
    """Rotary positions (arXiv:2104.09864): turn pairs of a query's or key's numbers by an angle that grows with place.

    The pairs are (i, i + D/2), as in Llama's and Qwen3's published weights.
    """

    cos_TP: Tensor
    sin_TP: Tensor

    def __init__(self, block_size: int, head_size: int, theta: float) -> None:
        super().__init__()
        cos_TP, sin_TP = _rotary_tables(block_size, head_size, theta)
        self.register_buffer("cos_TP", cos_TP, persistent=False)
        self.register_buffer("sin_TP", sin_TP, persistent=False)

    def forward(self, x_BHTD: Tensor, positions: Positions) -> Tensor:
        """Turn each position by the angles of its place."""
        cos_HTP, sin_HTP = (
            self.cos_TP[positions].unsqueeze(-3),
            self.sin_TP[positions].unsqueeze(-3),
        )  # one for all heads
        # Taken apart and put together by a view, whose gradient is a view: that of `chunk` and `cat` is padding.
        left_BHTP, right_BHTP = x_BHTD.reshape(*x_BHTD.shape[:-1], 2, -1).unbind(-2)
        turned = (left_BHTP * cos_HTP - right_BHTP * sin_HTP, right_BHTP * cos_HTP + left_BHTP * sin_HTP)
        return torch.stack(turned, dim=-2).flatten(-2).type_as(x_BHTD)


def _rotary_tables(block_size: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """The cosines and sines of all places (TP), from float64: so far places keep their precision."""
    if torch.get_default_device().type == "meta":  # an outline has sizes, and nothing is computed
        return torch.empty(block_size, head_size // 2), torch.empty(block_size, head_size // 2)
    rates = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    cos_TP, sin_TP = (torch.empty(block_size, head_size // 2, dtype=torch.float32) for _ in range(2))
    for start in range(0, block_size, PLACES_AT_ONCE):  # in float64 all of them would take four times as much
        positions = torch.arange(start, min(start + PLACES_AT_ONCE, block_size), dtype=torch.float64)
        angles_TP = torch.outer(positions, rates)
        cos_TP[start : start + len(positions)], sin_TP[start : start + len(positions)] = (
            angles_TP.cos(),
            angles_TP.sin(),
        )
    return cos_TP, sin_TP


class NoRotation(nn.Module):
    """Stands where a model with learned positions does not turn its queries and keys."""

    def forward(self, x_BHTD: Tensor, positions: Positions) -> Tensor:  # noqa: ARG002
        """Return queries or keys as they are."""
        return x_BHTD
