"""A policy's log-probabilities of what it said, recomputed by the forward pass that is trained.

Decoding may round (bfloat16 weights, another order of sums); a ratio of new to old probabilities must not. So what
was drawn is scored again, packed in the very rows that the update will use: the first ratio is 1 (a law in the tests).

Shapes: B rows, T positions, N of them at which something is said, V vocabulary.
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
    """Packed replies: at each position that says something, what it says and whose it is."""

    idx_BT: Tensor
    layout: Layout
    targets_BT: Tensor
    """What the assistant said next, or IGNORE."""
    owners_BT: Tensor
    """The number of the reply that a position belongs to; N for padding."""
    n_replies: int
    packing: Packing
    """Of each reply with the id before it."""

    @property
    def n_said(self) -> int:
        """Ids that were said."""
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: torch.device) -> "Scored":
        """The same on another device."""
        return dataclasses.replace(
            self,
            idx_BT=self.idx_BT.to(device),
            layout=self.layout.to(device),
            targets_BT=self.targets_BT.to(device),
            owners_BT=self.owners_BT.to(device),
        )

    def sums(self, values_BT: Tensor) -> Tensor:
        """The sum of each reply's values over what it said, reply by reply."""
        said_BT = torch.where(self.targets_BT != IGNORE, values_BT, 0)
        totals = values_BT.new_zeros(self.n_replies + 1)
        return totals.index_add(0, self.owners_BT.flatten(), said_BT.flatten())[: self.n_replies]

    def said_only(self, rows_BT: Tensor) -> list[Tensor]:
        """The values of each reply at the positions that said something."""
        return [values[:-1] for values in self.packing.collect(rows_BT)]

    def spread_said(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of `said_only` (BT); 0 elsewhere."""
        return self.packing.spread(values, 0.0, torch.float32)


def score_rows(exchanges: Sequence[Exchange], width: int) -> Scored:
    """Pack prompts with what was said to them, for scoring, into rows of at most `width` positions."""
    rows = pack_exchanges(exchanges, width)
    owners = [[number] * length for number, length in enumerate(rows.packing.lengths)]
    owners_BT = rows.packing.spread(owners, len(exchanges), torch.long)
    return Scored(rows.idx_BT, rows.layout, rows.targets_BT, owners_BT, len(exchanges), rows.packing)


def exchanges_of(replies: Sequence[Reply]) -> list[Exchange]:
    """Replies with their prompts."""
    return [(reply.prompt, reply.said) for reply in replies]


def scored_groups(replies: Sequence[Reply], packer: Packer) -> Iterator[tuple[list[int], Scored]]:
    """Pack replies into micro-batches for scoring, each with the indices of its replies."""
    exchanges = exchanges_of(replies)
    for group, width in packer.group_exchanges(exchanges):
        yield group, score_rows([exchanges[number] for number in group], width)


def said_values(replies: Sequence[Reply], packer: Packer, values_of: Callable[[Scored], Tensor]) -> list[Tensor]:
    """What `values_of` gives (BT, on the CPU) for each id of each reply."""
    values: list[Tensor] = [torch.empty(0)] * len(replies)
    for group, scored in scored_groups(replies, packer):
        for number, said in zip(group, scored.said_only(values_of(scored)), strict=True):
            values[number] = said.clone()
    return values


class Policy(nn.Module):
    """A GPT whose words are looked at: log-probabilities among the ids that a reply can be made of.

    Args:
        model: the GPT.
        n_reply_ids: only ids below this can be part of a reply.
        autocast: makes the context of the forward pass, for precision.
        temperature: of the sampling.
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

    def logits(self, idx_BT: Tensor, layout: Layout, said_BT: Tensor) -> Tensor:
        """What replies are drawn from, where something is said (NV), in float32."""
        with self.autocast():
            logits_NV = logits_at(self.model, idx_BT, layout, said_BT)[..., : self.n_reply_ids]
        return at_least_float32(logits_NV) / self.temperature

    def forward(self, idx_BT: Tensor, layout: Layout, targets_BT: Tensor) -> Tensor:
        """The log-probability of each target (BT); 0 where there is none."""
        said_BT = targets_BT != IGNORE
        logprobs_N = token_logprobs(self.logits(idx_BT, layout, said_BT), targets_BT[said_BT])
        return logprobs_N.new_zeros(targets_BT.shape).index_put((said_BT,), logprobs_N)

    @torch.inference_mode()
    def score(self, scored: Scored) -> Tensor:
        """`forward` for packed replies, without gradients, on the CPU."""
        there = scored.to(next(self.parameters()).device)
        logprobs_BT: Tensor = self(there.idx_BT, there.layout, there.targets_BT)
        return logprobs_BT.cpu().clone()


def entropy_of(logits_NV: Tensor) -> Tensor:
    """The entropy of each position's distribution, in nats (N)."""
    logprobs_NV = logits_NV.log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)
