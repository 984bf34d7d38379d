"""Laws of attention in products: it is the fused kernel's function, with its gradients, whatever the sizes.

Shapes: B batch, T positions, H heads, D head_size.
"""

import pytest
import torch

from groundling.model import attention
from groundling.model.attention import attention_in_products, fused_attention


def draw(T: int, dtype: torch.dtype = torch.float64, H: int = 3, D: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(T)
    return [torch.randn(2, H, T, D, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("T", [1, 2, 127, 128, 129, 256, 300, 1100], ids=str)
def test_in_products_it_is_the_fused_function_and_so_are_its_gradients(T):
    """1,100 positions need blocks of more than 128 rows, and the last block is shorter."""
    qkv = draw(T)
    weight_BHTD = torch.randn(2, 3, T, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = attention_in_products(*qkv, 0.0), fused_attention(*qkv, 0.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for mine, reference in zip(
        torch.autograd.grad((ours * weight_BHTD).sum(), qkv),
        torch.autograd.grad((theirs * weight_BHTD).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-11)


def test_huge_scores_do_not_overflow():
    q, k, v = (x * 1e3 for x in draw(140, torch.float32))
    y = attention_in_products(q, k, v, 0.0)
    assert y.isfinite().all()
    torch.testing.assert_close(y, fused_attention(q, k, v, 0.0), rtol=1e-3, atol=1e-1)


def test_bfloat16_products_stay_as_close_as_the_fused_kernel():
    exact = draw(256, D=32)
    reference = fused_attention(*exact, 0.0)
    rounded = [x.detach().bfloat16() for x in exact]

    def error(attend) -> float:
        return ((attend(*rounded, 0.0).double() - reference).norm() / reference.norm()).item()

    assert error(attention_in_products) < 2 * error(fused_attention) + 1e-3


def test_dropout_keeps_the_mean_and_drops_after_the_softmax():
    """The mean of many drops is the result without any; a row whose only weight falls is zero."""
    q, k, v = (x.detach() for x in draw(4, torch.float32, H=1, D=2))
    torch.manual_seed(0)
    many = torch.stack([attention_in_products(q, k, v, 0.5) for _ in range(4000)])
    torch.testing.assert_close(many.mean(0), fused_attention(q, k, v, 0.0), rtol=0, atol=0.1)
    first_rows = many[:, :, :, 0]  # position 0 sees itself only
    zeros = (first_rows == 0).all(-1).float().mean().item()
    assert zeros == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(first_rows.amax(0), (2 * v[:, :, 0]).clamp(min=0), rtol=1e-5, atol=1e-5)


def test_no_block_is_multiplied_with_what_it_cannot_see(monkeypatch):
    """A NaN in the future of the first block of rows would show in it, masked or not."""
    monkeypatch.setattr(attention, "ROWS", 4)
    q, k, v = (x.detach() for x in draw(8, torch.float32))
    k[:, :, 5] = torch.nan
    y = attention_in_products(q, k, v, 0.0)
    assert y[:, :, :4].isfinite().all()
    assert y[:, :, 4:].isnan().any()
