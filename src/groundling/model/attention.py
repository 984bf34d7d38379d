"""Causal attention over a whole window, for training: PyTorch's fused kernel, and blocked products for a compiler.

Both compute causal softmax(q k^T / sqrt(D)) v. The fused kernel needs the least memory and is best on a GPU. Its CPU
version reaches a seventh of the speed of a plain matrix product and lacks dropout; products of blocks of rows, with
the operations between them fused by a compiler, train twice as fast (docs/log.md).

Shapes: B batch, H heads, T positions, S positions that a block of rows attends to, R rows, D head_size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from groundling.model.dropout import keep_mask
from groundling.model.numerics import at_least_float32

ROWS = 128
"""Rows of a block. Smaller blocks waste less on masked positions, but their products are less efficient."""
MAX_BLOCKS = 8
"""Long windows are cut into larger blocks instead of more, since each adds to the compiled code."""


def fused_attention(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float) -> Tensor:
    """Attention by PyTorch's fused kernel (BHTD)."""
    return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True, dropout_p=dropout)


def attention_in_products(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float) -> Tensor:
    """Attention by blocked products (BHTD), to be compiled for training on a CPU.

    A block of rows is multiplied only with the positions that its last row attends to, so that half of the square is
    never computed. The softmax normalises the D results of a row instead of its S weights, as in FlashAttention
    (arXiv:2205.14135). Exponents and sums are float32 in any precision.
    """
    T = q_BHTD.size(2)
    n_rows = max(ROWS, math.ceil(T / MAX_BLOCKS))
    q_BHTD = q_BHTD * q_BHTD.size(-1) ** -0.5
    return torch.cat(
        [
            _rows_of_attention(q_BHTD[:, :, first : first + n_rows], k_BHTD, v_BHTD, first, dropout)
            for first in range(0, T, n_rows)
        ],
        dim=2,
    )


def _rows_of_attention(q_BHRD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, first: int, dropout: float) -> Tensor:
    """Attention of the rows from `first` on (BHRD); queries are scaled already."""
    n_rows = q_BHRD.size(2)
    n_seen = first + n_rows
    k_BHSD, v_BHSD = k_BHTD[:, :, :n_seen], v_BHTD[:, :, :n_seen]
    hidden_RS = torch.full((n_rows, n_seen), -math.inf, dtype=q_BHRD.dtype, device=q_BHRD.device).triu(first + 1)
    scores_BHRS = at_least_float32(q_BHRD @ k_BHSD.mT + hidden_RS)
    # Subtracting the maximum only shifts the range of exp, so it needs no gradient.
    weights_BHRS = (scores_BHRS - scores_BHRS.detach().amax(-1, keepdim=True)).exp()
    sums_BHR1 = weights_BHRS.sum(-1, keepdim=True)
    if dropout:
        weights_BHRS = weights_BHRS * keep_mask(weights_BHRS, dropout) * (1 / (1 - dropout))
    return ((weights_BHRS.type_as(v_BHSD) @ v_BHSD) / sums_BHR1).type_as(v_BHSD)
