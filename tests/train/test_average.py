"""The moving average of the weights, and that putting it in place leaves no trace."""

import pytest
import torch
from torch import nn

from groundling.train.optim.ema import WeightAverage


def two_numbers() -> nn.Module:
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(-2.0)
    return model


def walk(model: nn.Module, average: WeightAverage, n: int) -> list[float]:
    """Make n updates of the weight to 2, 3, ...; return them."""
    values = [float(i + 2) for i in range(n)]
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
    return values


@pytest.mark.parametrize("decay", [0.15, 0.5, 0.999])
def test_the_mean_is_the_formulas(decay):
    model = two_numbers()
    average = WeightAverage(model, decay)
    mean = 1.0
    for n, value in enumerate(walk(model, average, 40), start=1):
        d = min(decay, (1 + n) / (10 + n))
        mean = d * mean + (1 - d) * value
    assert average.mean["weight"].item() == pytest.approx(mean, rel=1e-12)
    assert average.mean["bias"].item() == -2.0
    assert average.n_updates == 40


def test_in_place_swaps_in_the_mean_and_restores_the_weights_exactly():
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.normal_()
    average.update()
    plain = model.weight.detach().clone()
    with average.in_place():
        assert torch.equal(model.weight, average.mean["weight"])
        assert not torch.equal(model.weight, plain)
    assert torch.equal(model.weight, plain)
    with pytest.raises(RuntimeError, match="an evaluation failed"), average.in_place():
        raise RuntimeError("an evaluation failed")
    assert torch.equal(model.weight, plain)


def test_the_mean_is_a_copy_without_gradients():
    model = two_numbers()
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(9.0)
    assert average.mean["weight"].item() == 1.0
    assert not average.mean["weight"].requires_grad


def test_a_tied_matrix_is_averaged_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    average = WeightAverage(model, 0.5)
    assert list(average.mean) == ["0.weight"]
