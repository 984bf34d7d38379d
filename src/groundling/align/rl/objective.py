"""The clipped objective of PPO and GRPO, and its batches.

Shapes: B rows, T positions, N ids of replies, V vocabulary.
"""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from groundling.align.logprobs import Policy, Scored, entropy_of
from groundling.model.loss import IGNORE, token_logprobs


@dataclass(frozen=True)
class PolicyBatch:
    """Packed replies with their old and reference log-probabilities and advantages."""

    scored: Scored
    old_BT: Tensor
    reference_BT: Tensor
    advantages_BT: Tensor

    @property
    def n_targets(self) -> int:
        """Number of ids of all replies."""
        return self.scored.n_reply_tokens

    def to(self, device: torch.device) -> "PolicyBatch":
        """Copy to another device."""
        rest = [t.to(device) for t in (self.old_BT, self.reference_BT, self.advantages_BT)]
        return PolicyBatch(self.scored.to(device), *rest)


class CallMetrics(TypedDict):
    """Metrics of one call of the objective: sums over ids."""

    n: float
    clipped: float
    entropy: float
    step_kl: float
    off_one: float
    """Largest distance of a ratio from 1."""


class ClippedObjective(nn.Module):
    """PPO's clipped loss (arXiv:1707.06347, equation 7) plus GRPO's KL term, summed over the replies' ids.

    Args:
        policy: the policy being trained.
        clip: clip range of the ratio.
        kl_coef: weight of the KL to the reference, estimated per id, unbiased and positive (Schulman 2020, "k3"); 0 if
            the KL is part of the rewards.
    """

    def __init__(self, policy: Policy, clip: float, kl_coef: float = 0.0) -> None:
        super().__init__()
        self.policy, self.clip, self.kl_coef = policy, clip, kl_coef
        self.seen: list[CallMetrics] = []
        """Metrics of the calls since the last `pop_metrics`."""

    def forward(self, batch: PolicyBatch) -> Tensor:
        """The loss of a batch."""
        scored = batch.scored
        is_reply_BT = scored.targets_BT != IGNORE
        logits_NV = self.policy.logits(scored.idx_BT, scored.layout, is_reply_BT)
        new_N = token_logprobs(logits_NV, scored.targets_BT[is_reply_BT])
        log_ratio_N = new_N - batch.old_BT[is_reply_BT]
        loss_N = clipped_loss(log_ratio_N, batch.advantages_BT[is_reply_BT], self.clip)
        if self.kl_coef:
            gap_N = batch.reference_BT[is_reply_BT] - new_N
            loss_N = loss_N + self.kl_coef * (gap_N.exp() - gap_N - 1)
        with torch.no_grad():
            off_N = log_ratio_N.exp() - 1
            self.seen.append(
                {
                    "n": float(len(off_N)),
                    "clipped": float((off_N.abs() > self.clip).sum()),
                    "entropy": float(entropy_of(logits_NV).sum()),
                    "step_kl": float((off_N - log_ratio_N).sum()),
                    "off_one": float(off_N.abs().max()) if len(off_N) else 0.0,
                }
            )
        return loss_N.sum()

    def pop_metrics(self) -> dict[str, float]:
        """Return and reset the metrics: means over ids, and the largest error of a ratio in the first call."""
        n = max(1.0, sum(each["n"] for each in self.seen))
        figures = {
            "clip_fraction": sum(each["clipped"] for each in self.seen) / n,
            "entropy": sum(each["entropy"] for each in self.seen) / n,
            "step_kl": sum(each["step_kl"] for each in self.seen) / n,
            "first_ratio_off": self.seen[0]["off_one"] if self.seen else 0.0,
        }
        self.seen.clear()
        return figures


def clipped_loss(log_ratio_N: Tensor, advantages_N: Tensor, clip: float) -> Tensor:
    """-min(ratio A, clip(ratio) A) per id (N)."""
    ratio_N = log_ratio_N.exp()
    return -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - clip, 1 + clip) * advantages_N)
