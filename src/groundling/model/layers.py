"""Building blocks with alternatives: norms, MLPs, position encodings.

Shapes: B batch, T positions, H heads, D head_size, P pairs (D / 2), C n_embd, F hidden.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundling.model.context import Positions

TABLE_ROWS = 8192
"""Rows of the rotary tables that are computed at a time."""


def make_norm(kind: str, size: int, eps: float, bias: bool) -> nn.Module:
    """Make a norm over the last dimension: "layernorm" (arXiv:1607.06450) or "rmsnorm" (arXiv:1910.07467)."""
    if kind == "rmsnorm":
        return RMSNorm(size, eps=eps)
    return nn.LayerNorm(size, eps=eps, bias=bias)


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm with its gain cast to the input's dtype: only then does the fused kernel run."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (arXiv:2109.08668): sparse like ReLU, smooth at zero."""
    return F.relu(x).square()


def gelu(x: Tensor) -> Tensor:
    """GELU in GPT-2's tanh approximation (arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    """Linear, activation, linear: the lecture's feed-forward layer (rung 5) with the width of rung 6."""

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
    """The gated MLP of Llama and Qwen3 (arXiv:2002.05202)."""

    def __init__(self, n_embd: int, n_hidden: int, bias: bool) -> None:
        super().__init__()
        self.c_gate = nn.Linear(n_embd, n_hidden, bias=bias)
        self.c_fc = nn.Linear(n_embd, n_hidden, bias=bias)
        self.c_proj = nn.Linear(n_hidden, n_embd, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTF: Tensor = F.silu(self.c_gate(x_BTC)) * self.c_fc(x_BTC)
        return self.c_proj(x_BTF)  # type: ignore[no-any-return]


def make_mlp(kind: str, n_embd: int, n_hidden: int, bias: bool) -> nn.Module:
    """Make an MLP: "relu", "gelu", "relu2" or "swiglu"."""
    return SwiGLU(n_embd, n_hidden, bias) if kind == "swiglu" else MLP(kind, n_embd, n_hidden, bias)


class LearnedPositions(nn.Module):
    """Learned position embeddings, added to the token embeddings, as in GPT-2 and the lecture."""

    def __init__(self, block_size: int, n_embd: int) -> None:
        super().__init__()
        self.wpe = nn.Embedding(block_size, n_embd)

    def forward(self, x_BTC: Tensor, positions: Positions) -> Tensor:
        """Add the embeddings of `positions`."""
        return x_BTC + self.wpe.weight[positions]


class NoPositions(nn.Module):
    """No-op position embedding, for rotary models."""

    def forward(self, x_BTC: Tensor, _positions: Positions) -> Tensor:
        """Return x_BTC unchanged."""
        return x_BTC


class Rotary(nn.Module):
    """Rotary position encoding (arXiv:2104.09864): rotate pairs of query and key dimensions by the position's angles.

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
        """Rotate queries or keys at `positions`."""
        cos_HTP, sin_HTP = self.cos_TP[positions].unsqueeze(-3), self.sin_TP[positions].unsqueeze(-3)  # H = 1
        # Views have views as gradients; the gradient of `chunk` and `cat` pads.
        left_BHTP, right_BHTP = x_BHTD.reshape(*x_BHTD.shape[:-1], 2, -1).unbind(-2)
        rotated = (left_BHTP * cos_HTP - right_BHTP * sin_HTP, right_BHTP * cos_HTP + left_BHTP * sin_HTP)
        return torch.stack(rotated, dim=-2).flatten(-2).type_as(x_BHTD)


def _rotary_tables(block_size: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions (TP), computed in float64 for precision at large positions."""
    if torch.get_default_device().type == "meta":  # shapes only
        return torch.empty(block_size, head_size // 2), torch.empty(block_size, head_size // 2)
    rates = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    cos_TP, sin_TP = (torch.empty(block_size, head_size // 2, dtype=torch.float32) for _ in range(2))
    for start in range(0, block_size, TABLE_ROWS):  # the whole table in float64 would take four times the memory
        positions = torch.arange(start, min(start + TABLE_ROWS, block_size), dtype=torch.float64)
        angles_TP = torch.outer(positions, rates)
        cos_TP[start : start + len(positions)], sin_TP[start : start + len(positions)] = (
            angles_TP.cos(),
            angles_TP.sin(),
        )
    return cos_TP, sin_TP


class NoRotation(nn.Module):
    """No-op rotation, for models with learned positions."""

    def forward(self, x_BHTD: Tensor, _positions: Positions) -> Tensor:
        """Return x_BHTD unchanged."""
        return x_BHTD
