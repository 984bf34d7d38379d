"""Fewer bytes for each weight: what decoding costs on a CPU is mostly the reading of the weights.

Only the matrices of the products are rounded (linear layers and `lm_head`); embeddings, norms and biases are looked
up or tiny, and keep their precision. int8 rounds weights only, each output with a scale of its own.

Shapes: N outputs, K inputs.
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from groundling.model.gpt import GPT
from groundling.model.uninitialized import blank_gpt

Weights = Literal["float32", "bfloat16", "int8"]
LARGEST = 127


def to_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Round to int8: whole numbers of -127 to 127, and the scale of each output (N) that they are to be multiplied by.

    An output whose weights are all zero has the scale 1, and one with a NaN the scale NaN.
    """
    largest_N = weight_NK.abs().amax(1)
    smallest = torch.finfo(weight_NK.dtype).tiny
    scale_N = torch.where(largest_N == 0, 1.0, (largest_N / LARGEST).clamp_min(smallest))
    return (weight_NK / scale_N[:, None]).nan_to_num(0.0).round().to(torch.int8), scale_N


def rounded(weight_NK: Tensor, weights: Weights) -> Tensor:
    """What is left of a matrix in this precision, in the type it had."""
    if weights == "int8":
        whole_NK, scale_N = to_int8(weight_NK)
        return whole_NK.type_as(weight_NK) * scale_N[:, None]
    return weight_NK.to(torch.bfloat16).type_as(weight_NK) if weights == "bfloat16" else weight_NK


@torch.no_grad()
def with_rounded_weights(model: GPT, weights: Weights) -> GPT:
    """A model that computes with rounded weights, for any device and for measuring what the rounding costs.

    It shares all but the rounded matrices with `model`. A tied matrix is rounded as the output matrix only.
    """
    copy = blank_gpt(dataclasses.replace(model.config, tie_weights=False), "meta")
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            state[f"{name}.weight"] = rounded(module.weight.detach(), weights)
    copy.load_state_dict(state, assign=True)
    for (_, mine), (_, theirs) in zip(copy.named_modules(), model.named_modules(), strict=True):
        for name, buffer in theirs.named_buffers(recurse=False):  # tables that no state holds, as the rotary ones
            setattr(mine, name, buffer)
    return copy.requires_grad_(False).train(model.training)
