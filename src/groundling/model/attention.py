"""Causal attention over a whole window in two ways: PyTorch's fused kernel, and products that a compiler fuses.

Both compute softmax(q k^T / sqrt(D)) v, in which each position sees itself and what came before. The fused kernel
needs the least memory and is best on a GPU. Its CPU version, though, reaches a seventh of the speed of a plain matrix
product, and one with dropout does not exist there: products in blocks of rows, with a compiler to fuse what lies
between them, train twice as fast (docs/log.md).

Shapes: B batch, H heads, T positions, S the positions that a block of rows sees, R rows, D head_size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from groundling.model.dropout import keep_mask
from groundling.model.numerics import at_least_float32

ROWS = 128
"""Rows of a block: a smaller one wastes less on what the mask hides, and makes smaller, slower products."""
MAX_BLOCKS = 8
"""A longer window is cut into larger blocks: each one lengthens the compiled code."""


def fused_attention(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float) -> Tensor:
    """PyTorch's own kernel: y_BHTD."""
    return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True, dropout_p=dropout)


def attention_in_products(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float) -> Tensor:
    """The same, for training with compiled code on a CPU: y_BHTD.

    Rows are taken in blocks, and a block is multiplied only with the positions that its last row sees: half of the
    square is never computed. The softmax's sum divides the D results of a row instead of its S weights, as in
    FlashAttention (arXiv:2205.14135). Exponents and sums are float32 whatever the precision of the products.
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
    """Attention of the rows from `first` on, whose queries are already scaled: y_BHRD."""
    n_rows = q_BHRD.size(2)
    n_seen = first + n_rows
    k_BHSD, v_BHSD = k_BHTD[:, :, :n_seen], v_BHTD[:, :, :n_seen]
    hidden_RS = torch.full((n_rows, n_seen), -math.inf, dtype=q_BHRD.dtype, device=q_BHRD.device).triu(first + 1)
    scores_BHRS = at_least_float32(q_BHRD @ k_BHSD.mT + hidden_RS)
    # Taking the highest away changes nothing but the range of exp, so nothing is learned through it.
    weights_BHRS = (scores_BHRS - scores_BHRS.detach().amax(-1, keepdim=True)).exp()
    sums_BHR1 = weights_BHRS.sum(-1, keepdim=True)
    if dropout:
        weights_BHRS = weights_BHRS * keep_mask(weights_BHRS, dropout) * (1 / (1 - dropout))
    return ((weights_BHRS.type_as(v_BHSD) @ v_BHSD) / sums_BHR1).type_as(v_BHSD)
