"""A rung before its first step: its model, its data and its optimizer, as the lecture has them."""

import torch

from groundling import runtime
from groundling.data.batches import Batches
from groundling.data.corpus import Corpus
from groundling.ladder.rungs import Rung
from groundling.log import say
from groundling.runtime import Runtime, RuntimeConfig
from groundling.train.compiled import compile_objective
from groundling.train.optim import OptimConfig, Optimizers
from groundling.train.state import TrainState
from groundling.train.step import Objective
from groundling.train.watch import make_deterministic

SMALL = ("s1", "s2", "s3", "s4", "s5", "s6", "s7")


def begin(rung: Rung, corpus: Corpus, seed: int, compiled: bool | None = None) -> tuple[TrainState, Runtime]:
    """Build a rung and all that trains it: AdamW at a constant rate, on batches from random places.

    Args:
        rung: what to train.
        corpus: the text.
        seed: of the initial weights, the batches, and dropout.
        compiled: whether its run was compiled before; None: a new one.
    """
    torch.manual_seed(seed)
    model = rung.build(corpus.tokenizer.vocab_size)
    picked = runtime.pick(_runtime(rung, compiled))
    make_deterministic(picked.device)
    model.to(picked.device)
    block_size = int(model.block_size)  # type: ignore[arg-type]
    batches = Batches(corpus.train.ids, block_size=block_size, batch_size=rung.batch_size, order="random", seed=seed)
    objective = Objective(model, autocast=picked.autocast)
    compile_objective(objective, picked, say)
    # torch.optim.AdamW(model.parameters(), lr), as the lecture calls it: PyTorch's defaults, one decay for all tensors.
    optimizers = Optimizers(
        model, OptimConfig(lr=rung.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, decay_all=True)
    )
    return TrainState(model, objective, optimizers, batches), picked


def _runtime(rung: Rung, compiled: bool | None) -> RuntimeConfig:
    if rung.name in SMALL:
        # Nothing but the cost of calling its operations: neither threads, nor compiling, nor bfloat16 pay.
        return RuntimeConfig(device="cpu", compile="off", dtype="float32", threads=1)
    if compiled is not None:
        return RuntimeConfig(compile="on" if compiled else "off")
    # On a CPU dropout is drawn one number after the other, compiled or not: compiling makes it slower (docs/log.md).
    slower = rung.name == "s8" and runtime.pick_device("auto").type == "cpu"
    return RuntimeConfig(compile="off" if slower else "auto")
