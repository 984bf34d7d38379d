"""`groundling grpo`: group relative policy optimisation, without a value model.

The advantage of all ids of a reply is its reward minus the mean of its group, divided by the group's standard
deviation (arXiv:2402.03300, section 4.1.1). The loss is PPO's clipped loss plus the KL to the reference, averaged over
ids as in DAPO (arXiv:2503.14476, section 3.3), which does not favour long replies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from groundling.align.arguments import parse_stage
from groundling.align.rl.rollout import RolloutConfig, RolloutSampler
from groundling.align.rl.rounds import Round
from groundling.align.rl.trainer import PolicyTrainer, optimise
from groundling.align.stage import Stage
from groundling.bundle import ChatBundle
from groundling.errors import require


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(RolloutConfig):
    """Optimize a model against rewards with GRPO: groundling grpo BUNDLE --reward MODEL [--field value ...]."""

    out_dir: Path = Path("runs/grpo")
    """Run folder."""
    group: int = 8
    """Replies per prompt."""
    divide_by_spread: bool = True
    """Divide advantages by the standard deviation of the group; otherwise prompts with varied rewards weigh more
    (arXiv:2503.20783)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group >= 2, f"group is {self.group}; it must be at least 2")
        require(
            self.replies % self.group == 0,
            f"replies {self.replies} is not a multiple of group {self.group}; change one",
        )
        require(
            self.minibatches <= self.replies // self.group,
            f"minibatches is {self.minibatches}, and a round has {self.replies // self.group} groups; "
            "there must be fewer minibatches, or more replies",
        )


MIN_SPREAD = 1e-4
"""Smaller standard deviations of rewards are rounding errors and count as 0."""


def group_advantages(rewards: Tensor, group: int, *, divide_by_spread: bool) -> Tensor:
    """Advantage of each reply within its group of neighbours (N); zeros for groups of equal rewards."""
    grouped = rewards.view(-1, group)
    gaps = grouped - grouped.mean(1, keepdim=True)
    spread = grouped.std(1, unbiased=False, keepdim=True)
    if divide_by_spread:
        gaps = gaps / spread.clamp(min=MIN_SPREAD)
    return torch.where(spread <= MIN_SPREAD, torch.zeros_like(gaps), gaps).flatten()  # NaN stays


def main(argv: Sequence[str]) -> int:
    """The verb `grpo`."""
    return grpo(parse_stage(GrpoConfig, argv, "groundling grpo"))


def grpo(config: GrpoConfig) -> int:
    """Run the stage; return the exit code.

    Raises:
        GroundlingError: any subclass.
    """
    return optimise(config, "grpo", _Grpo)


class _Grpo(PolicyTrainer[GrpoConfig]):
    def __init__(self, config: GrpoConfig, stage: Stage, bundle: ChatBundle, sampler: RolloutSampler) -> None:
        super().__init__(config, stage, bundle, sampler, kl_coef=config.kl_coef, each=config.group)

    def compute_advantages(self, round_: Round) -> None:
        rewards = torch.tensor(round_.rewards)
        advantages = group_advantages(rewards, self.config.group, divide_by_spread=self.config.divide_by_spread)
        round_.advantages = [
            torch.full((len(reply.ids),), float(advantage))
            for reply, advantage in zip(round_.replies, advantages, strict=True)
        ]
