"""Validation losses, and the training loss beside them.

The loss that is reported is the mean in nats per token over the whole split, in consecutive windows of block_size,
every position counted, the model in evaluation mode. The lecture's is the mean over random batches; both are here.
The training loss is estimated on random windows of the training text, in evaluation mode too: unlike the loss of a
step's batch it is without dropout and of weights that have not seen the batch a moment ago, so the two can be compared.

Shapes: B windows, T block_size, V vocabulary.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from groundling.data.batches import Batch, RandomOffsets, Tokens, whole_split, windows
from groundling.model.loss import loss_sum
from groundling.system import distributed

TOKENS_AT_ONCE = 8192
"""What a model is given at a time: enough that the cost of calling it does not count."""
TRAIN_ESTIMATE = 5
"""The purpose of the generator that draws windows of the training text to estimate its loss, not to train."""
MAX_TRAIN_WINDOWS = 512
"""Of the estimate of the training loss: on Tiny Shakespeare its standard error is about 0.01 nats."""


class Interrupted(Exception):  # noqa: N818
    """An evaluation was given up, because the process was asked to stop."""


def mean_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> float:
    """The mean loss in nats over all targets of all batches, of all ranks. Draws nothing from any generator.

    Raises:
        Interrupted: `asked_to_stop` became true on some rank.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats, n_targets, stop = 0.0, 0, False
    try:
        with torch.inference_mode(), autocast():
            for batch in batches:
                if stop := asked_to_stop():
                    break
                local = batch.to(device)
                nats += loss_sum(model(local.idx_BT), local.targets_BT).item()
                n_targets += batch.n_targets
    finally:
        model.train(was_training)
    if distributed.any_rank(stop, device):
        raise Interrupted
    return distributed.all_reduce_sum(nats, device) / max(1.0, distributed.all_reduce_sum(n_targets, device))


def whole_split_loss(
    model: nn.Module,
    tokens: Tokens,
    block_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> float:
    """The loss that Groundling reports; see the top of this file. Each rank takes its share of the windows.

    Raises:
        Interrupted: `asked_to_stop` became true.
    """
    batches = whole_split(
        tokens, block_size, max(1, TOKENS_AT_ONCE // block_size), distributed.rank(), distributed.world_size()
    )
    return mean_loss(model, batches, autocast, asked_to_stop)


def train_loss_estimate(
    model: nn.Module,
    tokens: Tokens,
    block_size: int,
    n_windows: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> float:
    """The mean loss over windows from random places of the training text; the same places at each call.

    They come from a generator of their own, whatever the run's seed: evaluations and runs are compared on equal text.
    Each rank takes its share of the windows.

    Args:
        model: token ids in, logits out.
        tokens: the training text.
        block_size: T.
        n_windows: how many windows, at most `MAX_TRAIN_WINDOWS`.
        autocast: makes the context of the forward pass.
        asked_to_stop: gives the estimate up.

    Raises:
        Interrupted: `asked_to_stop` became true.
    """
    offset_of = RandomOffsets(len(tokens), block_size, seed=0, purpose=TRAIN_ESTIMATE)
    offsets = [offset_of(sample) for sample in range(min(n_windows, MAX_TRAIN_WINDOWS))]
    n_at_once = max(1, TOKENS_AT_ONCE // block_size)
    groups = [offsets[first : first + n_at_once] for first in range(0, len(offsets), n_at_once)]
    batches = (windows(tokens, group, block_size) for group in groups[distributed.rank() :: distributed.world_size()])
    return mean_loss(model, batches, autocast, asked_to_stop)


def random_batches_loss(
    model: nn.Module,
    tokens: Tokens,
    block_size: int,
    *,
    n_batches: int = 200,
    batch_size: int = 32,
    seed: int = 1337,
    purpose: int = 0,
) -> float:
    """The lecture's estimate: the mean over batches from random places of the split, from a generator of its own.

    Of the training split with a `purpose` of `TRAIN_ESTIMATE`, whatever the seed: training draws with 0.
    """
    offset_of = RandomOffsets(len(tokens), block_size, seed, purpose)
    samples = range(n_batches * batch_size)
    n_windows = max(1, TOKENS_AT_ONCE // block_size)  # batches of one size: the mean of their means is the mean of all
    batches = (
        windows(tokens, [offset_of(i) for i in samples[first : first + n_windows]], block_size)
        for first in samples[::n_windows]
    )
    return mean_loss(model, batches)
