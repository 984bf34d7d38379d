"""Set up a rung for training: model, data and optimizer in the lecture's settings."""

import torch
from torch import nn

from groundling.data.batches import Batches
from groundling.data.corpus import Corpus
from groundling.ladder.fused import fuse_heads
from groundling.ladder.rungs import Rung
from groundling.model.dropout import MaskedDropout, scaled_mask
from groundling.system import runtime
from groundling.system.compile import Compiler
from groundling.system.runtime import Runtime, RuntimeConfig, make_deterministic
from groundling.train.compiled import compile_objective
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.state import TrainState
from groundling.train.step import Objective

SMALL = ("s1", "s2", "s3", "s4", "s5", "s6", "s7")


def begin(rung: Rung, corpus: Corpus, seed: int, compiled: bool | None = None) -> tuple[TrainState, Runtime]:
    """Build a rung with fused heads, AdamW at a constant learning rate, and batches from random positions.

    Args:
        rung: the rung to train.
        corpus: the text.
        seed: seed of the initial weights, the batches, and dropout.
        compiled: for a resumed run, whether it was compiled; None for a new run.
    """
    torch.manual_seed(seed)
    model = fuse_heads(rung.build(corpus.tokenizer.vocab_size))
    picked = runtime.pick(_runtime(rung, compiled))
    make_deterministic(picked.device)
    model.to(picked.device)
    block_size = int(model.block_size)  # type: ignore[arg-type]
    batches = Batches(corpus.train.ids, block_size=block_size, batch_size=rung.batch_size, order="random", seed=seed)
    objective = Objective(model, autocast=picked.autocast)
    if rung.name == "s8" and picked.device.type == "cpu":
        _compile_dropout(model, picked)
    else:
        compile_objective(objective, picked)
    # The lecture's torch.optim.AdamW(model.parameters(), lr): PyTorch's defaults, one weight decay for all tensors.
    optimizers = Optimizers(
        model, OptimConfig(lr=rung.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, decay_all=True)
    )
    return TrainState(model, objective, optimizers, batches), picked


def _compile_dropout(model: nn.Module, picked: Runtime) -> None:
    """Compile only the dropout masks, half of a step on a CPU; compiling all of s8 is slower (docs/log.md)."""
    if not picked.compile:
        return
    draw = Compiler(picked)(scaled_mask)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, MaskedDropout(child.p, draw))
    picked.reasons["compile"] += ", dropout only"


def _runtime(rung: Rung, compiled: bool | None) -> RuntimeConfig:
    if rung.name in SMALL:
        # Launch overhead dominates: threads, compilation and bfloat16 do not help.
        return RuntimeConfig(device="cpu", compile="off", dtype="float32", threads=1)
    if compiled is None:
        return RuntimeConfig()
    return RuntimeConfig(compile="on" if compiled else "off")
