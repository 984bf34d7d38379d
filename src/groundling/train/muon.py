"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

Every direction of a weight matrix then moves at the same speed. Only for the matrices inside the blocks; embeddings,
the output matrix, norms and biases stay with AdamW.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Polar Express (arXiv:2505.16932, section 3): the odd polynomial of degree 5 that is best at each iteration, given
# what the ones before it have done. Three are enough here (docs/log.md).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def orthogonalize(x_NRC: Tensor, iterations: int) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, approximately, for each of N matrices.

    Args:
        x_NRC: N matrices of R rows and C columns; their precision is that of the products.
        iterations: how many polynomials are applied, up to 5.
    """
    tall = x_NRC.size(1) > x_NRC.size(2)
    x_NRC = x_NRC.mT if tall else x_NRC
    # The spectral norm is at most the Frobenius norm; the 1 % keeps rounding below 1.
    x_NRC = x_NRC / (x_NRC.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS[:iterations]:
        gram_NRR = x_NRC @ x_NRC.mT
        poly_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, poly_NRR, x_NRC, beta=a)
    return x_NRC.mT if tall else x_NRC


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    A matrix that is k squares side by side or on top of each other (q, k, v in one; the MLP's) is taken as k squares:
    all squares of one size are made orthogonal in one batched product.

    Args:
        params: matrices only.
        lr: the size of an update's singular values, times sqrt(max(1, rows / columns)).
        momentum: of the running mean of the gradients.
        weight_decay: the part, times lr, by which a weight shrinks each step.
        iterations: of the orthogonalisation.
        dtype: of its products.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 3,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.iterations, self.dtype = iterations, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Make one update."""
        for group in self.param_groups:
            for shape, pieces in self._pieces_by_shape(group).items():
                directions_NRC = torch.empty((len(pieces), *shape), dtype=self.dtype, device=pieces[0][0].device)
                for direction, (_, gradient, momentum) in zip(directions_NRC, pieces, strict=True):
                    torch.lerp(gradient, momentum, group["momentum"], out=direction)  # Nesterov's
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                updates_NRC = orthogonalize(directions_NRC, self.iterations)
                for (weight, _, _), update in zip(pieces, updates_NRC, strict=True):
                    weight.add_(update, alpha=-scale)

    def _pieces_by_shape(self, group: dict[str, Any]) -> dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]]:
        """Bring momenta and decay up to date; return views of (weight, gradient, momentum), one for each square."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            if group["weight_decay"]:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
            views = (_squares(weight), _squares(weight.grad), _squares(state["momentum"]))
            for pieces in zip(*views, strict=True):
                by_shape[pieces[0].shape].append(pieces)
        return by_shape


def _squares(matrix: Tensor) -> tuple[Tensor, ...]:
    """Views of the squares that a matrix is made of, or of the matrix itself."""
    n_rows, n_columns = matrix.shape
    if n_rows % n_columns == 0:
        return torch.chunk(matrix, n_rows // n_columns, dim=0)
    if n_columns % n_rows == 0:
        return torch.chunk(matrix, n_columns // n_rows, dim=1)
    return (matrix,)
