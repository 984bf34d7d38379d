"""Weight quantization to bfloat16 and int8: decoding on a CPU is bound by the bytes of weights read per step.

Only linear layers and `lm_head` are quantized. Embeddings, norms and biases stay as they are. int8 has one scale per
output, and quantizes weights only, not activations.

Shapes: N outputs, K inputs.
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from groundling.model.gpt import GPT
from groundling.model.uninitialized import blank_gpt

Weights = Literal["float32", "bfloat16", "int8"]
INT8_MAX = 127


def to_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to int8 in [-127, 127]; returns the weights and the scale per output (N).

    The scale is 1 for an output whose weights are all 0, and NaN for one with a NaN.
    """
    largest_N = weight_NK.abs().amax(1)
    smallest = torch.finfo(weight_NK.dtype).tiny
    scale_N = torch.where(largest_N == 0, 1.0, (largest_N / INT8_MAX).clamp_min(smallest))
    return (weight_NK / scale_N[:, None]).nan_to_num(0.0).round().to(torch.int8), scale_N


def rounded(weight_NK: Tensor, weights: Weights) -> Tensor:
    """Quantize and dequantize: the matrix rounded to this precision, in its original dtype."""
    if weights == "int8":
        quantized_NK, scale_N = to_int8(weight_NK)
        return quantized_NK.type_as(weight_NK) * scale_N[:, None]
    return weight_NK.to(torch.bfloat16).type_as(weight_NK) if weights == "bfloat16" else weight_NK


@torch.no_grad()
def with_rounded_weights(model: GPT, weights: Weights) -> GPT:
    """A copy with rounded weights, for devices without the native decoder and for measuring the cost in loss.

    Shares all other tensors with `model`. A tied matrix is rounded as `lm_head` only.
    """
    copy = blank_gpt(dataclasses.replace(model.config, tie_weights=False), "meta")
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            state[f"{name}.weight"] = rounded(module.weight.detach(), weights)
    copy.load_state_dict(state, assign=True)
    for (_, target), (_, source) in zip(copy.named_modules(), model.named_modules(), strict=True):
        for name, buffer in source.named_buffers(recurse=False):  # not in the state: rotary tables, for example
            setattr(target, name, buffer)
    return copy.requires_grad_(False).train(model.training)
