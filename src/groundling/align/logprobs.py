"""Log-probabilities of replies under a policy, recomputed by the training forward pass.

Decoding rounds differently (bfloat16 weights, another order of sums), which would distort ratios of new to old
probabilities. So replies are scored again, packed into the same rows as in the update: the first ratio is 1 (a law in
the tests).

Shapes: B rows, T positions, N positions that predict a reply's id, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundling.align.replies import Reply
from groundling.model.gpt import GPT
from groundling.model.loss import IGNORE, token_logprobs
from groundling.model.numerics import at_least_float32
from groundling.model.packer import Packer
from groundling.model.packing import Exchange, Layout, Packing, logits_at, pack_exchanges


@dataclass(frozen=True)
class Scored:
    """Packed replies."""

    idx_BT: Tensor
    layout: Layout
    targets_BT: Tensor
    """The next id of a reply, or IGNORE."""
    owners_BT: Tensor
    """Index of the reply that a position belongs to; n_replies for padding."""
    n_replies: int
    packing: Packing
    """Layout of the replies, each with the id before it."""

    @property
    def n_reply_tokens(self) -> int:
        """Number of ids of all replies."""
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: torch.device) -> "Scored":
        """Copy to another device."""
        return dataclasses.replace(
            self,
            idx_BT=self.idx_BT.to(device),
            layout=self.layout.to(device),
            targets_BT=self.targets_BT.to(device),
            owners_BT=self.owners_BT.to(device),
        )

    def sums(self, values_BT: Tensor) -> Tensor:
        """Sum values over the ids of each reply (n_replies)."""
        reply_BT = torch.where(self.targets_BT != IGNORE, values_BT, 0)
        totals = values_BT.new_zeros(self.n_replies + 1)
        return totals.index_add(0, self.owners_BT.flatten(), reply_BT.flatten())[: self.n_replies]

    def reply_values(self, rows_BT: Tensor) -> list[Tensor]:
        """The values at each reply's ids."""
        return [values[:-1] for values in self.packing.collect(rows_BT)]

    def spread_reply_values(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of `reply_values` (BT); 0 elsewhere."""
        return self.packing.spread(values, 0.0, torch.float32)


def score_rows(exchanges: Sequence[Exchange], width: int) -> Scored:
    """Pack prompts and replies for scoring into rows of at most `width` positions."""
    rows = pack_exchanges(exchanges, width)
    owners = [[number] * length for number, length in enumerate(rows.packing.lengths)]
    owners_BT = rows.packing.spread(owners, len(exchanges), torch.long)
    return Scored(rows.idx_BT, rows.layout, rows.targets_BT, owners_BT, len(exchanges), rows.packing)


def exchanges_of(replies: Sequence[Reply]) -> list[Exchange]:
    """Prompts and replies as ids."""
    return [(reply.prompt, reply.ids) for reply in replies]


def scored_groups(replies: Sequence[Reply], packer: Packer) -> Iterator[tuple[list[int], Scored]]:
    """Pack replies into micro-batches for scoring, each with the indices of its replies."""
    exchanges = exchanges_of(replies)
    for group, width in packer.group_exchanges(exchanges):
        yield group, score_rows([exchanges[number] for number in group], width)


def values_at_replies(replies: Sequence[Reply], packer: Packer, values_of: Callable[[Scored], Tensor]) -> list[Tensor]:
    """Evaluate `values_of` (-> BT, on the CPU) and return the values at each reply's ids."""
    values: list[Tensor] = [torch.empty(0)] * len(replies)
    for group, scored in scored_groups(replies, packer):
        for number, each in zip(group, scored.reply_values(values_of(scored)), strict=True):
            values[number] = each.clone()
    return values


class Policy(nn.Module):
    """A GPT as a policy: log-probabilities of replies at the sampling temperature.

    Args:
        model: the GPT.
        n_reply_ids: only ids below this are sampled.
        autocast: makes the context of the forward pass.
        temperature: sampling temperature.
    """

    def __init__(
        self,
        model: GPT,
        n_reply_ids: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.n_reply_ids, self.autocast, self.temperature = model, n_reply_ids, autocast, temperature

    def logits(self, idx_BT: Tensor, layout: Layout, is_reply_BT: Tensor) -> Tensor:
        """Sampling logits at the positions in `is_reply_BT`, in float32 (NV)."""
        with self.autocast():
            logits_NV = logits_at(self.model, idx_BT, layout, is_reply_BT)[..., : self.n_reply_ids]
        return at_least_float32(logits_NV) / self.temperature

    def forward(self, idx_BT: Tensor, layout: Layout, targets_BT: Tensor) -> Tensor:
        """Log-probability of each target (BT); 0 for IGNORE."""
        is_reply_BT = targets_BT != IGNORE
        logprobs_N = token_logprobs(self.logits(idx_BT, layout, is_reply_BT), targets_BT[is_reply_BT])
        return logprobs_N.new_zeros(targets_BT.shape).index_put((is_reply_BT,), logprobs_N)

    @torch.inference_mode()
    def score(self, scored: Scored) -> Tensor:
        """`forward` on packed replies, without gradients; the result is on the CPU."""
        there = scored.to(next(self.parameters()).device)
        logprobs_BT: Tensor = self(there.idx_BT, there.layout, there.targets_BT)
        return logprobs_BT.cpu().clone()


def entropy_of(logits_NV: Tensor) -> Tensor:
    """Entropy of each distribution, in nats (N)."""
    logprobs_NV = logits_NV.log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)
