"""`groundling grpo`: learning from how a reply compares with others to the same prompt; no value model is needed.

A reply's advantage is its reward less the mean of its group, divided by the group's spread (arXiv:2402.03300, section
4.1.1), the same for all its ids. The loss is PPO's clipped one, summed over all ids and divided by their number (as in
DAPO, arXiv:2503.14476, section 3.3: long replies are not favoured), with the KL to the reference added to it.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundling import dist
from groundling.align.conversations import prepare_conversations
from groundling.align.dpo import require_chat
from groundling.align.policy import Policy
from groundling.align.rewards import make_rewards
from groundling.align.rollout import (
    ClippedObjective,
    Drawer,
    RolloutConfig,
    Round,
    figures_of,
    minibatches_of,
    policy_batches,
)
from groundling.align.stage import ASKED_TO_STOP, Stage, open_stage
from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.config import parse
from groundling.errors import require
from groundling.train.optim import Optimizers
from groundling.train.step import train_step


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(RolloutConfig):
    """Learn from rewards, by groups of replies: groundling grpo BUNDLE --reward MODEL [--field value ...]."""

    out_dir: Path = Path("runs/grpo")
    """The stage's folder."""
    group: int = 8
    """Replies to each prompt."""
    divide_by_spread: bool = True
    """Divide by the group's spread; without it, prompts whose replies differ more count more (arXiv:2503.20783)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group >= 2, f"group is {self.group}; comparing needs at least 2")
        require(
            self.replies % self.group == 0,
            f"replies {self.replies} is not a multiple of group {self.group}; change one",
        )


def group_advantages(rewards: Tensor, group: int, *, divide_by_spread: bool) -> Tensor:
    """Each reply's advantage (N) on its group of neighbours; zeros where all are equal."""
    grouped = rewards.view(-1, group)
    gaps = grouped - grouped.mean(1, keepdim=True)
    spread = grouped.std(1, unbiased=False, keepdim=True)
    if divide_by_spread:
        gaps = torch.where(spread > 1e-8, gaps / spread.clamp(min=1e-8), torch.zeros_like(gaps))
    return gaps.flatten()


def main(argv: Sequence[str]) -> int:
    """The verb `grpo`."""
    return grpo(parse(GrpoConfig, argv, "groundling grpo"))


def grpo(config: GrpoConfig) -> int:
    """Learn from rewards as the config says; return the exit code.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    with open_stage(config, "grpo") as stage:
        bundle = require_chat(load_bundle(config.path, stage.picked.device), config.path)
        assert bundle.chat is not None
        rewards = make_rewards(config.reward, bundle, stage.picked)
        data = prepare_conversations(config.data, bundle.chat, bundle.tokenizer, bundle.config.block_size)
        prompts = data.train_prompts(bundle.config.block_size - config.max_new_tokens)
        stage.begin()
        ended, figures = _Grpo(config, stage, bundle, Drawer(config, bundle, prompts, rewards)).run()
        if dist.is_first():
            save_bundle(config.out_dir / "bundle", bundle.model, bundle.tokenizer, {"stage": "grpo"}, bundle.chat)
        return stage.finish({"ended": ended, **figures})


class _Grpo:
    def __init__(self, config: GrpoConfig, stage: Stage, bundle: Bundle, drawer: Drawer) -> None:
        assert bundle.chat is not None
        self.config, self.stage, self.drawer = config, stage, drawer
        self.block_size = bundle.config.block_size
        n_sayable, autocast = bundle.chat.n_sayable(), stage.picked.autocast
        self.policy = Policy(bundle.model, n_sayable, autocast, config.temperature)
        frozen = copy.deepcopy(bundle.model).requires_grad_(False)
        self.reference = Policy(frozen, n_sayable, autocast, config.temperature)
        self.objective = ClippedObjective(self.policy, config.clip, config.kl_coef)
        self.optimizers = Optimizers(bundle.model, config.optim, stage.picked.compute_dtype)

    def run(self) -> tuple[str, dict[str, Any]]:
        config, figures = self.config, dict[str, Any]()
        for step in range(config.steps):
            if self.stage.asked_to_stop():
                return ASKED_TO_STOP, figures
            started = time.perf_counter()
            round_ = self.drawer.draw(self.policy, self.reference, step, config.group)
            advantages = group_advantages(
                torch.tensor(round_.rewards), config.group, divide_by_spread=config.divide_by_spread
            )
            round_.advantages = [
                torch.full((len(r.said),), float(a)) for r, a in zip(round_.replies, advantages, strict=True)
            ]
            if config.stop_kl is not None and round_.kl() > config.stop_kl:
                return f"the KL went beyond {config.stop_kl}", figures
            self._learn(round_, step)
            figures = {**figures_of(round_, started, config.gold), **self.objective.look()}
            self.stage.record({"step": step + 1, **figures})
        return "finished", figures

    def _learn(self, round_: Round, step: int) -> None:
        config = self.config
        for number in range(config.passes):
            for part in minibatches_of(len(round_.replies), config.minibatches, config.seed, step, number):
                train_step(
                    self.objective,
                    policy_batches(round_, part, self.block_size, config.micro_batch_rows),
                    self.optimizers,
                    lr_factor=config.schedule.factor(step, config.steps),
                    max_norm=config.grad_clip,
                )
