"""The reward model: a GPT with a scalar output per position, summed over a reply.

InstructGPT reads the reward at the last position only (arXiv:2203.02155, section 3.5); with small models the sum
learned faster in a first experiment (docs/log.md).

Shapes: B rows, T positions, C n_embd, N sequences.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.bundle.layout import HEAD, find_bundle
from groundling.errors import CheckpointError, require
from groundling.model.gpt import GPT
from groundling.model.numerics import at_least_float32
from groundling.model.packer import Packer
from groundling.model.packing import Exchange, Layout, PackedSequences, Rows, pack_exchanges
from groundling.model.uninitialized import blank_gpt
from groundling.storage.tensors import read_tensors

SCALE = 1 / 16
"""Keeps initial sums over a reply in the range where the sigmoid has a gradient."""


class RewardModel(nn.Module):
    """A GPT with a scalar head in place of the output matrix (arXiv:2203.02155, section 3.5).

    Args:
        gpt: the trunk, trained with the head.
        scale: factor of the head's output.
    """

    def __init__(self, gpt: GPT, scale: float = SCALE) -> None:
        super().__init__()
        self.gpt, self.scale = gpt, scale
        weight = gpt.wte.weight
        self.head_weight = nn.Parameter(torch.zeros(1, gpt.config.n_embd, dtype=weight.dtype, device=weight.device))
        self.head_bias = nn.Parameter(torch.zeros(1, dtype=weight.dtype, device=weight.device))
        # The output matrix is unused and not trained, unless it is tied to the embedding.
        if not gpt.config.tie_weights:
            gpt.lm_head.weight.requires_grad_(False)

    def forward(self, idx_BT: Tensor, layout: Layout) -> Tensor:
        """Score each position of packed sequences (BT)."""
        x_BTC = at_least_float32(self.gpt.features(idx_BT, PackedSequences(layout)))
        return F.linear(x_BTC, self.head_weight.type_as(x_BTC), self.head_bias.type_as(x_BTC)).squeeze(-1) * self.scale


def first_blocks(gpt: GPT, n: int) -> GPT:
    """The first `n` blocks of a model as a smaller model.

    Raises:
        ConfigError: it has fewer blocks.
    """
    require(
        1 <= n <= gpt.config.n_layer,
        f"n_layer is {n}, and the model has {gpt.config.n_layer} blocks; keep at least 1 and not more than these",
    )
    if n == gpt.config.n_layer:
        return gpt
    shorter = blank_gpt(dataclasses.replace(gpt.config, n_layer=n))
    known = gpt.state_dict()
    shorter.load_state_dict({name: known[name] for name in shorter.state_dict()})
    return shorter.to(gpt.wte.weight.device)


def save_reward_model(folder: Path, model: RewardModel, bundle: Bundle, about: dict[str, Any]) -> None:
    """Write a reward model as a bundle with an additional head.

    Raises:
        StorageError: writing failed.
    """
    head = {"weight": model.head_weight.detach().cpu(), "bias": model.head_bias.detach().cpu()}
    save_bundle(folder, model.gpt, bundle.tokenizer, {"stage": "reward", **about}, bundle.chat, head)


def load_reward_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[RewardModel, Bundle]:
    """Load a reward model in evaluation mode, with its bundle.

    Raises:
        CheckpointError: there is no reward model, or it is damaged.
    """
    bundle = load_bundle(path, device)
    file = find_bundle(path) / HEAD
    if not os.path.lexists(file):
        raise CheckpointError(f"{path} is not a reward model (it has no {HEAD}); `groundling reward` trains one")
    head, model = read_tensors(file), RewardModel(bundle.model)
    expected = {"weight": model.head_weight.shape, "bias": model.head_bias.shape}
    if {name: tensor.shape for name, tensor in head.items()} != expected:
        raise CheckpointError(f"{file} does not fit the model; it has to hold {expected}")
    with torch.no_grad():
        model.head_weight.copy_(head["weight"])
        model.head_bias.copy_(head["bias"])
    return model.eval(), bundle


def rewards_of(scores_BT: Tensor, owners_BT: Tensor, n_replies: int) -> Tensor:
    """Sum the scores of each reply (N).

    Args:
        scores_BT: score of each position.
        owners_BT: index of the reply that a position belongs to; `n_replies` for none.
        n_replies: N.
    """
    totals = scores_BT.new_zeros(n_replies + 1)
    return totals.index_add(0, owners_BT.flatten(), scores_BT.flatten())[:n_replies]


def pack_replies(exchanges: Sequence[Exchange], width: int) -> tuple[Rows, Tensor]:
    """Pack prompts and replies; return the rows, and the index of the reply at each position (BT), N for none."""
    rows = pack_exchanges(exchanges, width)
    n = len(exchanges)
    owners = [[n] + [i] * len(reply) for i, (_, reply) in enumerate(exchanges)]
    return rows, rows.packing.spread(owners, n, torch.long)


@torch.inference_mode()
def scores_of(
    model: RewardModel,
    exchanges: Sequence[Exchange],
    autocast: Callable[[], AbstractContextManager[Any]],
    max_rows: int = 32,
) -> list[float]:
    """Rewards of replies, without gradients."""
    packer, device = Packer(model.gpt.config.block_size, max_rows), model.head_bias.device
    scores: list[float] = []
    for group, width in packer.group_exchanges(exchanges):
        rows, owners_BT = pack_replies([exchanges[i] for i in group], width)
        with autocast():
            scores_BT = model(rows.idx_BT.to(device), rows.layout.to(device))
        scores += rewards_of(scores_BT.cpu(), owners_BT, len(group)).tolist()
    return scores
