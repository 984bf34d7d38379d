"""`groundling ppo`: reinforcement learning from a reward model, as InstructGPT did it (arXiv:2203.02155, section 3.5).

A reply is a walk of one id at a time. Each id costs kl_coef times its log-probability's gain on the reference; the last
brings the reward. A value model, started from the reward model, guesses at each place what is still to come, and an
id's advantage is how much better things went than guessed (GAE, arXiv:1506.02438). Rewards are used as they are;
advantages are whitened over all ids of a round.

Shapes: B rows, T positions, N replies.
"""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from groundling import dist
from groundling.align.conversations import prepare_conversations
from groundling.align.dpo import require_chat
from groundling.align.policy import Policy, Scored, groups_of_replies, pairs_of, score_rows
from groundling.align.replies import Reply
from groundling.align.reward_model import RewardModel, load_reward_model
from groundling.align.rewards import make_rewards
from groundling.align.rollout import (
    ClippedObjective,
    Drawer,
    RolloutConfig,
    Round,
    figures_of,
    minibatches_of,
    policy_batches,
    whitened,
)
from groundling.align.stage import ASKED_TO_STOP, Stage, open_stage
from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.config import parse
from groundling.errors import require
from groundling.model.loss import IGNORE
from groundling.train.optim import OptimConfig, Optimizers
from groundling.train.step import train_step


@dataclass(frozen=True, kw_only=True)
class PpoConfig(RolloutConfig):
    """Learn from rewards, with a value model: groundling ppo BUNDLE --reward MODEL [--field value ...]."""

    out_dir: Path = Path("runs/ppo")
    """The stage's folder."""
    passes: int = 2
    """Passes over a round's replies."""
    value_from: str | None = None
    """The reward model that the value model starts from; None: the one of `reward`, or zero if that is a function."""
    gae_lambda: float = 0.95
    """How far ahead an advantage looks: 1 to the end of the reply, 0 to the next guess."""
    value_clip: float = 0.2
    """How far a guess may move from the old one before nothing more is learned by it."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """Whether kl_coef stays, or is turned until replies leave the reference by target_kl (arXiv:1909.08593)."""
    target_kl: float = 6.0
    """Nats a reply; only with adaptive control."""
    value_optim: tyro.conf.OmitSubcommandPrefixes[OptimConfig] = field(
        default_factory=lambda: OptimConfig(lr=2e-4, weight_decay=0.0, betas=(0.9, 0.95))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gae_lambda <= 1, f"gae_lambda is {self.gae_lambda}; it must be in [0, 1]")
        for name in ("value_clip", "target_kl"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be positive")


class ValueObjective(nn.Module):
    """Half the squared error of the guesses, clipped like the policy (arXiv:1707.06347), summed over what was said."""

    def __init__(self, model: RewardModel, clip: float, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self.clip, self.autocast = model, clip, autocast

    def forward(self, scored: Scored, old_BT: Tensor, returns_BT: Tensor) -> Tensor:
        """The loss of a batch."""
        with self.autocast():
            values_BT = self.model(scored.idx_BT, scored.numbers_BT)
        near_BT = old_BT + (values_BT - old_BT).clamp(-self.clip, self.clip)
        loss_BT = torch.maximum((values_BT - returns_BT).square(), (near_BT - returns_BT).square())
        return 0.5 * (loss_BT * (scored.targets_BT != IGNORE)).sum()


@dataclass(frozen=True)
class ValueBatch:
    """Packed replies with what was guessed and what came."""

    scored: Scored
    old_BT: Tensor
    returns_BT: Tensor

    @property
    def n_targets(self) -> int:
        """Ids that were said."""
        return self.scored.n_said

    def to(self, device: torch.device) -> "ValueBatch":
        """The same on another device."""
        return ValueBatch(self.scored.to(device), self.old_BT.to(device), self.returns_BT.to(device))

    def arguments(self, lr_factor: float) -> tuple[Any, ...]:  # noqa: ARG002
        """What the objective is called with."""
        return self.scored, self.old_BT, self.returns_BT


def generalized_advantages(rewards: Tensor, values: Tensor, lambda_: float) -> Tensor:
    """GAE of one reply, nothing discounted: advantage t = sum over k of lambda^k delta (t + k), where
    delta t = reward t + value (t + 1) - value t, and nothing comes after the end.
    """
    after = torch.cat([values[1:], values.new_zeros(1)])
    deltas = (rewards + after - values).tolist()
    advantages, ahead = [0.0] * len(deltas), 0.0
    for t in range(len(deltas) - 1, -1, -1):
        ahead = deltas[t] + lambda_ * ahead
        advantages[t] = ahead
    return torch.tensor(advantages)


class KlControl:
    """What a nat costs: always the same, or turned by a tenth of the relative error at most (arXiv:1909.08593, 2.2)."""

    def __init__(self, coef: float, target: float | None) -> None:
        self.coef, self._target = coef, target

    def update(self, kl: float) -> None:
        """Take the KL of a round."""
        if self._target is not None:
            self.coef *= 1 + 0.1 * max(-1.0, min(1.0, kl / self._target - 1)) * 2


def main(argv: Sequence[str]) -> int:
    """The verb `ppo`."""
    return ppo(parse(PpoConfig, argv, "groundling ppo"))


def ppo(config: PpoConfig) -> int:
    """Learn from rewards as the config says; return the exit code.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    with open_stage(config, "ppo") as stage:
        bundle = require_chat(load_bundle(config.path, stage.picked.device), config.path)
        assert bundle.chat is not None
        rewards = make_rewards(config.reward, bundle, stage.picked)
        value_model = _value_model(config, bundle, stage)
        data = prepare_conversations(config.data, bundle.chat, bundle.tokenizer, bundle.config.block_size)
        prompts = data.train_prompts(bundle.config.block_size - config.max_new_tokens)
        stage.begin()
        drawer = Drawer(config, bundle, prompts, rewards)
        ended, figures = _Ppo(config, stage, bundle, value_model, drawer).run()
        if dist.is_first():
            save_bundle(config.out_dir / "bundle", bundle.model, bundle.tokenizer, {"stage": "ppo"}, bundle.chat)
        return stage.finish({"ended": ended, **figures})


def _value_model(config: PpoConfig, bundle: Bundle, stage: Stage) -> RewardModel:
    source = config.value_from or (None if ":" in config.reward and "/" not in config.reward else config.reward)
    if source is None:
        return RewardModel(copy.deepcopy(bundle.model), scale=1.0)
    # It knows what makes a reply good; what is still to come at a place is another number, learned from zero.
    return RewardModel(load_reward_model(source, stage.picked.device)[0].gpt, scale=1.0)


class _Ppo:
    def __init__(
        self, config: PpoConfig, stage: Stage, bundle: Bundle, value_model: RewardModel, drawer: Drawer
    ) -> None:
        assert bundle.chat is not None
        self.config, self.stage, self.drawer, self.values = config, stage, drawer, value_model
        self.block_size = bundle.config.block_size
        n_sayable, autocast = bundle.chat.n_sayable(), stage.picked.autocast
        self.policy = Policy(bundle.model, n_sayable, autocast, config.temperature)
        frozen = copy.deepcopy(bundle.model).requires_grad_(False)
        self.reference = Policy(frozen, n_sayable, autocast, config.temperature)
        self.objective = ClippedObjective(self.policy, config.clip)
        self.value_objective = ValueObjective(value_model, config.value_clip, autocast)
        dtype = stage.picked.compute_dtype
        self.optimizers = Optimizers(bundle.model, config.optim, dtype)
        self.value_optimizers = Optimizers(value_model, config.value_optim, dtype)
        self.kl = KlControl(config.kl_coef, config.target_kl if config.kl_control == "adaptive" else None)

    def run(self) -> tuple[str, dict[str, Any]]:
        config, figures = self.config, dict[str, Any]()
        for step in range(config.steps):
            if self.stage.asked_to_stop():
                return ASKED_TO_STOP, figures
            started = time.perf_counter()
            round_ = self.drawer.draw(self.policy, self.reference, step, each=1)
            if config.stop_kl is not None and round_.kl() > config.stop_kl:
                return f"the KL went beyond {config.stop_kl}", figures
            old, returns = self._judge(round_)
            self._learn(round_, old, returns, step)
            guesses, came = torch.cat(old), torch.cat(returns)
            figures = {
                **figures_of(round_, started, config.gold),
                **self.objective.look(),
                "kl_coef": self.kl.coef,
                "explained_variance": explained_variance(guesses, came),
            }
            self.stage.record({"step": step + 1, **figures})
            self.kl.update(round_.kl())
        return "finished", figures

    def _judge(self, round_: Round) -> tuple[list[Tensor], list[Tensor]]:
        """Fill in the advantages; return what the value model guessed, and what came."""
        old = self._guesses(round_.replies)
        advantages = []
        for number, reward in enumerate(round_.rewards):
            rewards = -self.kl.coef * (round_.logprobs[number] - round_.reference[number])
            rewards[-1] += reward
            advantages.append(generalized_advantages(rewards, old[number], self.config.gae_lambda))
        round_.advantages = whitened(advantages)
        return old, [a + v for a, v in zip(advantages, old, strict=True)]

    @torch.inference_mode()
    def _guesses(self, replies: Sequence[Reply]) -> list[Tensor]:
        sequences = pairs_of(replies)
        values: list[Tensor] = [torch.empty(0)] * len(replies)
        device = self.stage.picked.device
        for group in groups_of_replies(sequences, self.block_size, self.config.micro_batch_rows):
            scored = score_rows([sequences[i] for i in group], self.block_size)
            with self.stage.picked.autocast():
                rows_BT = self.values(scored.idx_BT.to(device), scored.numbers_BT.to(device)).cpu()
            for number, said in zip(group, scored.said_only(rows_BT), strict=True):
                values[number] = said.clone()
        return values

    def _learn(self, round_: Round, old: list[Tensor], returns: list[Tensor], step: int) -> None:
        config, n_rows = self.config, self.config.micro_batch_rows
        factor = config.schedule.factor(step, config.steps)
        for number in range(config.passes):
            for part in minibatches_of(len(round_.replies), config.minibatches, config.seed, step, number):
                batches = policy_batches(round_, part, self.block_size, n_rows)
                train_step(self.objective, batches, self.optimizers, lr_factor=factor, max_norm=config.grad_clip)
                train_step(
                    self.value_objective,
                    _value_batches(round_, part, old, returns, self.block_size, n_rows),
                    self.value_optimizers,
                    lr_factor=factor,
                    max_norm=config.grad_clip,
                )


def _value_batches(
    round_: Round, numbers: Sequence[int], old: list[Tensor], returns: list[Tensor], block_size: int, n_rows: int
) -> list[ValueBatch]:
    sequences = pairs_of([round_.replies[i] for i in numbers])
    batches = []
    for group in groups_of_replies(sequences, block_size, n_rows):
        scored = score_rows([sequences[i] for i in group], block_size)
        chosen = [numbers[i] for i in group]
        batches.append(
            ValueBatch(
                scored, scored.spread_said([old[i] for i in chosen]), scored.spread_said([returns[i] for i in chosen])
            )
        )
    return batches


def explained_variance(guesses: Tensor, came: Tensor) -> float:
    """The part of the variance of what came that the guesses explain: 1 all, 0 none; nothing to explain is 0."""
    variance = came.var(unbiased=False)
    return float(1 - (came - guesses).var(unbiased=False) / variance) if variance > 1e-12 else 0.0
