"""Dropout by a hash: it drops as often as it should, everywhere, and the same again when asked."""

import math

import pytest
import torch

from groundling.model.dropout import Dropout, MaskedDropout, keep_mask, scaled_mask

N = 1 << 20


def mask(p: float, n: int = N, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return keep_mask(torch.empty(n), p).bool()


def within_noise(part: float, expected: float, n: int) -> bool:
    """Within five standard deviations of what independent draws give."""
    return abs(part - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_it_drops_as_often_as_it_should(p, seed):
    assert within_noise(1 - mask(p, seed=seed).float().mean().item(), p, N)


@pytest.mark.parametrize("apart", [1, 2, 16, 64, 256, 4096])
def test_whether_one_is_kept_says_nothing_of_another(apart):
    kept = mask(0.5)
    both = (kept[:-apart] & kept[apart:]).float().mean().item()
    assert within_noise(both, 0.25, N - apart)


def test_every_stretch_drops_its_part():
    parts = 1 - mask(0.2).view(1024, -1).float().mean(1)
    spread = math.sqrt(0.2 * 0.8 / 1024)
    assert (parts - 0.2).abs().max() < 5 * spread
    assert parts.std() == pytest.approx(spread, rel=0.1)


def test_two_masks_have_nothing_in_common_and_a_seed_repeats_them():
    torch.manual_seed(5)
    x = torch.empty(N)
    first, second = keep_mask(x, 0.5).bool(), keep_mask(x, 0.5).bool()
    assert within_noise((first & second).float().mean().item(), 0.25, N)
    assert torch.equal(mask(0.5, seed=5), first)


def test_seeds_one_apart_give_masks_with_nothing_in_common():
    assert within_noise((mask(0.5, seed=1) & mask(0.5, seed=2)).float().mean().item(), 0.25, N)


def test_while_training_the_kept_are_scaled_and_their_gradients_too():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.2)(x)
    assert set(y.tolist()) == {0.0, 1.25}
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_it_does_nothing_in_evaluation_mode_nor_at_zero():
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_precision_stays(dtype):
    assert Dropout(0.5)(torch.ones(8, dtype=dtype)).dtype == dtype


@pytest.mark.slow
def test_a_mask_drawn_apart_is_the_same_compiled_and_not():
    """And gradients pass only where an element was kept, with the scale."""
    results = []
    for draw in (scaled_mask, torch.compile(scaled_mask, dynamic=False, options={"fallback_random": True})):
        torch.manual_seed(7)
        x = torch.randn(5, 40, 30, requires_grad=True)
        y = MaskedDropout(0.2, draw).train()(2 * x)
        y.sum().backward()
        results.append((y, x.grad))
    (y, grad), (compiled_y, compiled_grad) = results
    assert torch.equal(y, compiled_y)
    assert torch.equal(grad, compiled_grad)
    assert set(grad.unique().tolist()) == {0.0, 2.5}
    assert MaskedDropout(0.2, scaled_mask).eval()(x) is x
