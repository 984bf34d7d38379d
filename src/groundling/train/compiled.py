"""Compilation for training: which parts of a model, and which attention kernel."""

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from groundling.model.attention import attention_in_products, fused_attention
from groundling.model.gpt import GPT, Block
from groundling.system.compile import Compiler
from groundling.system.runtime import Runtime
from groundling.train.step import Objective


def compile_objective(objective: Objective, picked: Runtime) -> None:
    """Compile the model of an objective for training, if the runtime picked compilation.

    The blocks of a GPT share one compiled function: compiling the whole model was no faster at run time and took twice
    as long to compile (docs/log.md). Any other model is compiled in one piece, with its loss. Evaluation and sampling,
    whose shapes vary, stay uncompiled.
    """
    model = objective.model
    if not picked.compile:
        return
    if not isinstance(model, GPT):
        objective.loss_of = Compiler(picked)(objective.loss_of)  # type: ignore[method-assign]
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
