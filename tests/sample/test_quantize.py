"""Rounding weights: how far, what is rounded, and what is left alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.quantize import rounded, to_int8, with_rounded_weights

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=11, position="rotary")


@given(scale=st.floats(1e-20, 1e20), seed=st.integers(0, 99))
def test_int8_is_off_by_half_a_step_of_each_output_at_most(scale, seed):
    weight_NK = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * scale
    whole_NK, scale_N = to_int8(weight_NK)
    assert whole_NK.dtype == torch.int8
    assert whole_NK.abs().amax(1).tolist() == [127] * 5, "each output uses the whole range"
    assert ((whole_NK * scale_N[:, None] - weight_NK).abs() <= scale_N[:, None] * 0.5001).all()


def test_an_output_of_zeros_stays_one():
    whole_NK, scale_N = to_int8(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert whole_NK.tolist() == [[0, 0], [64, -127]]
    assert scale_N[0] == 1


def test_a_broken_weight_is_not_hidden():
    whole_NK, scale_N = to_int8(torch.tensor([[float("nan"), 1.0], [1.0, 1.0], [1e-44, 0.0]]))
    assert scale_N.isnan().tolist() == [True, False, False]
    assert whole_NK[1].tolist() == [127, 127]
    assert (whole_NK[2] * scale_N[2]).isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_only_the_matrices_of_products_are_rounded_and_the_model_is_left_alone(weights, tied):
    model = GPT(GPTConfig(**{**vars(CONFIG), "tie_weights": tied})).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = with_rounded_weights(model, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, tensor in copy.state_dict().items():
        is_matrix = tensor.dim() == 2 and name != "wte.weight"
        expected = rounded(before[name], weights) if is_matrix else before[name]
        assert torch.equal(tensor, expected), name
        assert torch.equal(tensor, before[name]) != is_matrix, name
    with torch.inference_mode():
        assert copy(torch.tensor([[1, 2, 3]])).isfinite().all(), "tables that no state holds came along"
    assert copy.h[0].ln_1.weight.data_ptr() == model.h[0].ln_1.weight.data_ptr(), "what is equal is shared"


def test_float32_changes_nothing():
    model = GPT(CONFIG).eval()
    idx_BT = torch.tensor([[1, 2, 3]])
    assert torch.equal(with_rounded_weights(model, "float32")(idx_BT), model(idx_BT))
