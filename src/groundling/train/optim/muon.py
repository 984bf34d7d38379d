"""Muon: momentum with orthogonalized updates (Jordan et al. 2024).

Orthogonalization gives all directions of a weight matrix the same step size. It is used for matrices inside the blocks
only; embeddings, the output projection, norms and biases use AdamW. Unlike torch.optim.Muon, this one has NorMuon and
Polar Express, and orthogonalizes all squares of one size in one batched product.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Polar Express (arXiv:2505.16932, section 3): the optimal odd polynomial of degree 5 for each iteration, given the ones
# before. Three iterations are enough here (docs/log.md).
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
        x_NRC: N matrices of R rows and C columns, in the precision of the products.
        iterations: number of polynomials, up to 5.
    """
    tall = x_NRC.size(1) > x_NRC.size(2)
    x_NRC = x_NRC.mT if tall else x_NRC
    # The spectral norm is at most the Frobenius norm; 1 % is a margin for rounding.
    x_NRC = x_NRC / (x_NRC.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS[:iterations]:
        gram_NRR = x_NRC @ x_NRC.mT
        poly_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, poly_NRR, x_NRC, beta=a)
    return x_NRC.mT if tall else x_NRC


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    A matrix that consists of k squares (q, k, v in one; the MLP's) is treated as k squares.

    Args:
        params: matrices only.
        lr: the size of an update's singular values, times sqrt(max(1, rows / columns)).
        momentum: decay of the gradients' running mean.
        weight_decay: multiplied by lr.
        iterations: polynomials per orthogonalization.
        neuron_beta: decay of each neuron's second moment, by which NorMuon (arXiv:2510.05491) normalises the neurons
            of a matrix; None: plain Muon.
        dtype: precision of the matrix products.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 3,
        neuron_beta: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.iterations, self.neuron_beta, self.dtype = iterations, neuron_beta, dtype

    def initial_state(self, weight: Tensor) -> dict[str, Tensor]:
        """The state of a weight before its first step."""
        state = {"momentum": torch.zeros_like(weight)}
        if self.neuron_beta is not None:
            state["variance"] = _zeros_for_neurons(weight)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Make one update."""
        for group in self.param_groups:
            for shape, pieces in self._pieces_by_shape(group).items():
                directions_NRC = torch.empty((len(pieces), *shape), dtype=self.dtype, device=pieces[0].weight.device)
                for direction, piece in zip(directions_NRC, pieces, strict=True):
                    torch.lerp(piece.gradient, piece.momentum, group["momentum"], out=direction)  # Nesterov's
                updates_NRC = orthogonalize(directions_NRC, self.iterations)
                if self.neuron_beta is not None:
                    normalize_neurons(
                        updates_NRC,
                        [piece.variance for piece in pieces if piece.variance is not None],
                        self.neuron_beta,
                    )
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for piece, update in zip(pieces, updates_NRC, strict=True):
                    piece.weight.add_(update, alpha=-scale)

    def _pieces_by_shape(self, group: dict[str, Any]) -> "dict[torch.Size, list[_Piece]]":
        """Update momenta and apply weight decay; return a view of each square, by shape."""
        by_shape: dict[torch.Size, list[_Piece]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum" not in state:
                state.update(self.initial_state(weight))
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            if group["weight_decay"]:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
            squares = [_squares(matrix) for matrix in (weight, weight.grad, state["momentum"])]
            unused = (None,) * len(squares[0])
            variances = torch.chunk(state["variance"], *_cut(weight)) if "variance" in state else unused
            for piece in map(_Piece, *squares, variances):
                by_shape[piece.weight.shape].append(piece)
        return by_shape


class _Piece(NamedTuple):
    """Views of one square of a matrix, or of the whole matrix."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    variance: Tensor | None


def normalize_neurons(updates_NRC: Tensor, variances: list[Tensor], beta: float) -> None:
    """Divide each neuron's update by the root of its running mean square; each matrix keeps its norm (NorMuon).

    A neuron is a row, or a column of a matrix that is wider than high. The running means start at zero; this bias
    cancels, because only their ratios matter.

    Args:
        updates_NRC: changed in place.
        variances: the running means of each matrix, R x 1 or 1 x C; changed in place.
        beta: decay of the running means.
    """
    over = -1 if updates_NRC.size(1) >= updates_NRC.size(2) else -2
    squares_NR1 = torch.linalg.vector_norm(updates_NRC, dim=over, keepdim=True, dtype=variances[0].dtype).square()
    means_NR1 = torch.stack(variances).lerp_(squares_NR1, 1 - beta)
    for variance, mean in zip(variances, means_NR1, strict=True):
        variance.copy_(mean)
    factors_NR1 = (means_NR1 + 1e-12).rsqrt()
    lengths_N11 = squares_NR1.sum((1, 2), keepdim=True), (squares_NR1 * factors_NR1.square()).sum((1, 2), keepdim=True)
    factors_NR1 = factors_NR1 * (lengths_N11[0] / (lengths_N11[1] + 1e-12)).sqrt()
    updates_NRC.mul_(factors_NR1.type_as(updates_NRC))


def _zeros_for_neurons(weight: Tensor) -> Tensor:
    """One number per neuron of each square of a matrix, in a shape that is cut like the matrix."""
    (n_rows, n_columns), (n, dim) = weight.shape, _cut(weight)
    if n == 1 and n_rows < n_columns:
        return weight.new_zeros(1, n_columns)
    return weight.new_zeros(n_rows, n if dim == 1 else 1)


def _squares(matrix: Tensor) -> tuple[Tensor, ...]:
    """Views of the squares of a matrix, or of the matrix itself."""
    return torch.chunk(matrix, *_cut(matrix))


def _cut(matrix: Tensor) -> tuple[int, int]:
    """Number of squares a matrix is cut into, and the dimension; 1 if it does not consist of squares."""
    n_rows, n_columns = matrix.shape
    if n_rows % n_columns == 0:
        return n_rows // n_columns, 0
    return (n_columns // n_rows, 1) if n_columns % n_rows == 0 else (1, 0)
