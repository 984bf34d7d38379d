"""What is compiled of a model in training, and the attention that compiled code is given."""

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from groundling.model.attention import attention_in_products, fused_attention
from groundling.model.gpt import GPT, Block
from groundling.system.compile import Compiler
from groundling.system.runtime import Runtime
from groundling.train.step import Objective


def compile_objective(objective: Objective, picked: Runtime) -> None:
    """Compile what an objective calls while training, where the runtime picked that.

    A GPT's blocks are all the same code, which is compiled once and runs with each block's weights: the whole model in
    one piece ran no faster, and took twice as long to compile (docs/log.md). Any other model is one piece.
    Evaluating and sampling, whose shapes come and go, stay as they are.
    """
    model = objective.model
    if not picked.compile:
        return
    if not isinstance(model, GPT):
        objective.forward = Compiler(picked)(objective.forward)  # type: ignore[method-assign]
        return
    blocks = [cast(Block, block) for block in model.h]

    def attend_with(attention: Callable[..., Any]) -> None:
        for block in blocks:
            block.attn.attend = attention

    compiler = Compiler(picked, on_failure=lambda: attend_with(fused_attention))
    if picked.device.type == "cpu":
        attend_with(attention_in_products)
    for block in blocks:
        block.forward = _while_training(block, compiler(block.forward), block.forward)  # type: ignore[method-assign]


def _while_training(module: nn.Module, compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (compiled if module.training else plain)(*args)
