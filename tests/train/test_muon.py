"""Muon: its matrices are nearly orthogonal, and how they are batched or cut changes nothing.

Shapes: N matrices, R rows, C columns.
"""

import pytest
import torch
from torch import Tensor

from groundling.train.optim import muon
from groundling.train.optim.muon import Muon, _squares, normalize_neurons, orthogonalize

SHAPES = [(3, 24, 24), (2, 16, 48), (2, 48, 16), (1, 5, 7)]
BAND = {5: (0.87, 1.13), 4: (0.43, 1.57), 3: (0.18, 1.87)}
"""Where all singular values from 1/200 of a matrix's Frobenius norm on end, by the number of iterations."""


def matrices(shape: tuple[int, int, int], smallest: float = 0.02) -> Tensor:
    """Random matrices whose singular values are spread evenly, by their logarithm, from `smallest` to 1."""
    generator = torch.Generator().manual_seed(1)
    u_NRK, _, v_NKC = torch.linalg.svd(
        torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False
    )
    values = torch.logspace(torch.log10(torch.tensor(smallest)).item(), 0, min(shape[1:]), dtype=torch.float64)
    return u_NRK * values @ v_NKC


def all_directions(n: int = 2000) -> Tensor:
    """Matrices of two rows, the smaller singular value of each anywhere from 1/200 of the norm to all of it."""
    return torch.diag_embed(torch.stack([torch.ones(n), torch.linspace(0.0051, 1, n)], dim=1).double())


@pytest.mark.parametrize("iterations", BAND)
@pytest.mark.parametrize("x_NRC", [*map(matrices, SHAPES), all_directions()], ids=[*map(str, SHAPES), "all"])
def test_singular_values_come_near_1(x_NRC, iterations):
    lowest, highest = BAND[iterations]
    values = torch.linalg.svdvals(orthogonalize(x_NRC, iterations))
    assert lowest <= values.min()
    assert values.max() <= highest


def test_each_iteration_brings_them_nearer():
    spreads = [torch.linalg.svdvals(orthogonalize(all_directions(), n)).std().item() for n in range(1, 6)]
    assert spreads == sorted(spreads, reverse=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonalization_keeps_the_singular_vectors(shape):
    """u s v becomes u f(s) v: seen in the bases of u and v it is diagonal."""
    x_NRC = matrices(shape)
    u_NRK, _, v_NKC = torch.linalg.svd(x_NRC, full_matrices=False)
    seen_NKK = u_NRK.mT @ orthogonalize(x_NRC, 5) @ v_NKC.mT
    diagonal_NKK = torch.diag_embed(seen_NKK.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(seen_NKK, diagonal_NKK, rtol=0, atol=1e-10)
    assert diagonal_NKK.diagonal(dim1=-2, dim2=-1).min() > 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_and_columns_are_alike_and_the_length_does_not_matter(shape):
    x_NRC = matrices(shape)
    expected = orthogonalize(x_NRC, 3)
    torch.testing.assert_close(orthogonalize(x_NRC.mT, 3), expected.mT, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(orthogonalize(1000 * x_NRC, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "pieces"),
    [((6, 6), [(6, 6)]), ((18, 6), [(6, 6)] * 3), ((6, 24), [(6, 6)] * 4), ((6, 16), [(6, 16)]), ((16, 6), [(16, 6)])],
    ids=str,
)
def test_a_matrix_is_cut_into_squares_where_it_is_made_of_them(shape, pieces):
    matrix = torch.arange(shape[0] * shape[1], dtype=torch.float32).view(shape)
    squares = _squares(matrix)
    assert [tuple(square.shape) for square in squares] == pieces
    for square in squares:
        square.zero_()
    assert not matrix.any(), "the pieces must be views, or an update of them is lost"


def updated(weights: list[Tensor], gradients: list[list[Tensor]], **options) -> list[Tensor]:
    """The weights after one update for each list of gradients, all in one Muon, in float64."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = Muon(parameters, dtype=torch.float64, **options)
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def randoms(*shapes: tuple[int, int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_all_at_once_is_one_by_one():
    shapes = [(6, 6), (6, 6), (18, 6), (6, 24), (5, 7)]
    weights, gradients = randoms(*shapes, seed=0), [randoms(*shapes, seed=step) for step in (1, 2, 3)]
    together = updated(weights, gradients, weight_decay=0.1)
    for i, weight in enumerate(weights):
        (alone,) = updated([weight], [[of_step[i]] for of_step in gradients], weight_decay=0.1)
        torch.testing.assert_close(together[i], alone, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dim", [0, 1])
def test_queries_keys_and_values_in_one_matrix_are_three_matrices(dim):
    shapes = [(6, 6)] * 3
    weights, gradients = randoms(*shapes, seed=0), [randoms(*shapes, seed=step) for step in (1, 2)]
    (one,) = updated([torch.cat(weights, dim)], [[torch.cat(of_step, dim)] for of_step in gradients])
    torch.testing.assert_close(one, torch.cat(updated(weights, gradients), dim), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5)], ids=str)
def test_the_update_matches_the_paper(shape):
    """Nesterov's momentum, the orthogonal matrix of it, sqrt(max(1, rows / columns)), decay apart from it all."""
    lr, momentum, decay = 0.1, 0.9, 0.2
    (weight,) = randoms(shape, seed=0)
    gradients = [randoms(shape, seed=step) for step in (1, 2, 3)]
    (ours,) = updated([weight], gradients, lr=lr, momentum=momentum, weight_decay=decay, iterations=5)
    mean = torch.zeros_like(weight)
    for (gradient,) in gradients:
        mean = momentum * mean + (1 - momentum) * gradient
        direction = momentum * mean + (1 - momentum) * gradient
        update = orthogonalize(direction[None], 5)[0] * max(1.0, shape[0] / shape[1]) ** 0.5
        weight = weight * (1 - lr * decay) - lr * update
    torch.testing.assert_close(ours, weight, rtol=1e-10, atol=1e-13)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with PyTorch 2.9")
@pytest.mark.parametrize("shape", [(16, 16), (16, 24), (24, 16)], ids=str)
def test_plain_muon_with_its_polynomial_is_torchs(shape, monkeypatch):
    """Up to bfloat16, in which torch computes the products."""
    monkeypatch.setattr(muon, "POLAR_EXPRESS", ((3.4445, -4.775, 2.0315),) * 5)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    weight, gradients = randoms(shape, seed=0)[0].float(), [randoms(shape, seed=step)[0].float() for step in (1, 2, 3)]
    ours, theirs = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    optimizers = [Muon([ours], iterations=5, **settings), torch.optim.Muon([theirs], **settings)]
    for gradient in gradients:
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - weight).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_missing_and_zero_gradients_change_nothing():
    (weight,) = randoms((6, 6), seed=0)
    assert torch.equal(updated([weight], [[torch.zeros(6, 6, dtype=torch.float64)]])[0], weight)
    parameter = torch.nn.Parameter(weight.clone())
    Muon([parameter], weight_decay=0.5).step()
    assert torch.equal(parameter, weight)


def test_products_in_bfloat16_leave_the_weights_in_float32():
    (weight,) = (torch.nn.Parameter(w.float()) for w in randoms((6, 6), seed=0))
    before = weight.detach().clone()
    weight.grad = randoms((6, 6), seed=1)[0].float()
    Muon([weight], lr=1.0, dtype=torch.bfloat16).step()
    assert weight.dtype == torch.float32
    values = torch.linalg.svdvals(before - weight.detach())
    assert values.min() > 0.1
    assert values.max() < 2.0


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 12, 5), (2, 5, 12)], ids=str)
def test_in_the_first_step_all_neurons_get_the_same_norm(shape):
    updates_NRC = torch.stack(randoms(*[shape[1:]] * shape[0], seed=0))
    before = updates_NRC.norm(dim=(1, 2))
    over = -1 if shape[1] >= shape[2] else -2
    neurons = updates_NRC.norm(dim=over, keepdim=True)
    normalize_neurons(updates_NRC, [torch.zeros_like(neurons[0]) for _ in range(shape[0])], beta=0.0)
    after = updates_NRC.norm(dim=over)
    assert neurons.std() > 0.1
    torch.testing.assert_close(after, after.mean(1, keepdim=True).expand_as(after))
    torch.testing.assert_close(updates_NRC.norm(dim=(1, 2)), before)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8), (12, 5), (5, 12)], ids=str)
def test_neurons_are_normalized_per_square(shape):
    """A matrix of squares, and the squares as matrices of their own: the same weights after three steps."""
    (weight,) = randoms(shape, seed=0)
    gradients = [randoms(shape, seed=step) for step in (1, 2, 3)]
    whole = updated([weight], gradients, neuron_beta=0.9)[0]
    apart = updated(list(_squares(weight)), [list(_squares(gradient)) for (gradient,) in gradients], neuron_beta=0.9)
    for ours, square in zip(_squares(whole), apart, strict=True):
        torch.testing.assert_close(ours, square, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(whole, updated([weight], gradients)[0], atol=1e-4), "it has to matter"


def test_neuron_norms_are_averaged_over_steps():
    variance = torch.zeros(4, 1)
    first, second = torch.rand(1, 4, 4), torch.rand(1, 4, 4)
    expected = 0.75 * 0.25 * first.square().sum(-1) + 0.25 * second.square().sum(-1)
    normalize_neurons(first.clone(), [variance], beta=0.75)
    normalize_neurons(second.clone(), [variance], beta=0.75)
    torch.testing.assert_close(variance.flatten(), expected.flatten())
