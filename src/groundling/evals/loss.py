"""Validation loss, and a comparable estimate of the training loss.

The reported loss is the mean in nats per token over the whole split, in consecutive windows of block_size, with the
model in evaluation mode. The lecture's is the mean over random batches; both are here. The training loss is estimated
in evaluation mode too, on random windows of the training text. Unlike a step's batch loss, it has no dropout, so it can
be compared with the validation loss.

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
"""Tokens per forward pass, enough to amortise the overhead of a call."""
TRAIN_ESTIMATE = 5
"""Purpose of the generator that draws windows for the estimate; see `data.batches`."""
MAX_TRAIN_WINDOWS = 512
"""Windows of the estimate. On Tiny Shakespeare its standard error is then about 0.01 nats."""


class Interrupted(Exception):  # noqa: N818
    """An evaluation ended early because the process was asked to stop."""


def mean_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Mean loss in nats over all targets of all batches and ranks. Uses no random generator.

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
    """The reported loss, over the whole split. Each rank takes its share of the windows.

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
    """Mean loss over random windows of the training text.

    The windows are the same at each call and for every seed of a run. Each rank takes its share of them.

    Args:
        model: token ids in, logits out.
        tokens: the training text.
        block_size: T.
        n_windows: number of windows, at most `MAX_TRAIN_WINDOWS`.
        autocast: context of the forward pass.
        asked_to_stop: polled between batches.

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
    """The lecture's estimate: mean loss over random batches of a split, from a generator of its own.

    For the training split, pass `purpose=TRAIN_ESTIMATE`: training draws its batches with purpose 0.
    """
    offset_of = RandomOffsets(len(tokens), block_size, seed, purpose)
    samples = range(n_batches * batch_size)
    n_windows = max(1, TOKENS_AT_ONCE // block_size)  # equal sizes: the mean of batch means is the mean
    batches = (
        windows(tokens, [offset_of(i) for i in samples[first : first + n_windows]], block_size)
        for first in samples[::n_windows]
    )
    return mean_loss(model, batches)
