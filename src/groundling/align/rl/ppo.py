"""`groundling ppo`: proximal policy optimisation against a reward model, as in InstructGPT (arXiv:2203.02155, 3.5).

Each id of a reply is an action. Its reward is -kl_coef times its log-probability relative to the reference; the last id
also gets the reply's reward. A value model, initialised from the reward model, predicts the return at each position;
advantages are computed by GAE (arXiv:1506.02438). Rewards are not normalised; advantages are whitened over a round.

Shapes: B rows, T positions, N replies.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from groundling.align.arguments import parse_stage
from groundling.align.chat_vocab import reads_the_same
from groundling.align.logprobs import Scored, values_at_replies
from groundling.align.replies import Reply
from groundling.align.reward.functions import is_function, reward_fingerprint
from groundling.align.reward.model import RewardModel, load_reward_model
from groundling.align.rl.rollout import RolloutConfig, RolloutSampler, packed_values, whitened
from groundling.align.rl.rounds import Round, concatenated, read_values
from groundling.align.rl.trainer import PolicyTrainer, optimise
from groundling.align.stage import Stage
from groundling.bundle import ChatBundle
from groundling.errors import CheckpointError, ConfigError, require
from groundling.model.loss import IGNORE
from groundling.train.checkpoints.tensors import learned_tensors, restore_learned
from groundling.train.optim.optimizers import OptimConfig, Optimizers


@dataclass(frozen=True, kw_only=True)
class PpoConfig(RolloutConfig):
    """Optimize a model against rewards with PPO: groundling ppo BUNDLE --reward MODEL [--field value ...]."""

    out_dir: Path = Path("runs/ppo")
    """Run folder."""
    passes: int = 2
    """Epochs over the replies of a round."""
    value_from: str | None = None
    """Reward model that initializes the value model; None: `reward`, or zero if that is a function."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation: 1: Monte Carlo, 0: one-step TD."""
    value_clip: float = 0.2
    """Clip range of the value update."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """Keep kl_coef fixed, or adapt it to reach target_kl (arXiv:1909.08593)."""
    target_kl: float = 6.0
    """Target KL in nats per reply; adaptive control only."""
    value_optim: tyro.conf.OmitSubcommandPrefixes[OptimConfig] = field(
        default_factory=lambda: OptimConfig(lr=2e-4, weight_decay=0.0, betas=(0.9, 0.95))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gae_lambda <= 1, f"gae_lambda is {self.gae_lambda}; it must be in [0, 1]")
        for name in ("value_clip", "target_kl"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True)
class ValueBatch:
    """Packed replies with old values and returns."""

    scored: Scored
    old_BT: Tensor
    returns_BT: Tensor

    @property
    def n_targets(self) -> int:
        """Number of ids of all replies."""
        return self.scored.n_reply_tokens

    def to(self, device: torch.device) -> "ValueBatch":
        """Copy to another device."""
        return ValueBatch(self.scored.to(device), self.old_BT.to(device), self.returns_BT.to(device))


class ValueObjective(nn.Module):
    """Half the squared error of the values, clipped like the policy (arXiv:1707.06347), summed over reply ids."""

    def __init__(self, model: RewardModel, clip: float, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self.clip, self.autocast = model, clip, autocast

    def forward(self, batch: ValueBatch) -> Tensor:
        """The loss of a batch."""
        scored, old_BT, returns_BT = batch.scored, batch.old_BT, batch.returns_BT
        with self.autocast():
            values_BT = self.model(scored.idx_BT, scored.layout)
        near_BT = old_BT + (values_BT - old_BT).clamp(-self.clip, self.clip)
        loss_BT = torch.maximum((values_BT - returns_BT).square(), (near_BT - returns_BT).square())
        return 0.5 * (loss_BT * (scored.targets_BT != IGNORE)).sum()


def token_rewards(reward: float, logprobs: Tensor, reference: Tensor, kl_coef: float) -> Tensor:
    """Reward of each id of a reply: minus its KL penalty, plus the reply's reward at the last id."""
    rewards = -kl_coef * (logprobs - reference)
    rewards[-1] += reward
    return rewards


def generalized_advantages(rewards: Tensor, values: Tensor, lambda_: float) -> Tensor:
    """GAE of one reply without discounting (arXiv:1506.02438, equation 16).

    The advantage at t is the sum over k of lambda^k delta(t + k), where delta(t) = reward(t) + value(t + 1) - value(t)
    and the value after the end is 0.
    """
    next_values = torch.cat([values[1:], values.new_zeros(1)])
    deltas = (rewards + next_values - values).tolist()
    advantages, advantage = [0.0] * len(deltas), 0.0
    for t in range(len(deltas) - 1, -1, -1):
        advantage = deltas[t] + lambda_ * advantage
        advantages[t] = advantage
    return torch.tensor(advantages)


class KlControl:
    """The KL penalty: fixed, or adapted by at most 2 % per round towards a target (arXiv:1909.08593, 2.2)."""

    def __init__(self, coef: float, target: float | None) -> None:
        self.coef, self._target = coef, target

    def update(self, kl: float) -> None:
        """Adapt to the KL of a round."""
        if self._target is not None:
            self.coef *= 1 + 0.1 * max(-0.2, min(0.2, kl / self._target - 1))


def main(argv: Sequence[str]) -> int:
    """The verb `ppo`."""
    return ppo(parse_stage(PpoConfig, argv, "groundling ppo"))


def ppo(config: PpoConfig) -> int:
    """Run the stage; return the exit code.

    Raises:
        GroundlingError: any subclass.
    """
    return optimise(config, "ppo", _Ppo)


def _value_model(config: PpoConfig, bundle: ChatBundle, stage: Stage) -> RewardModel:
    source = config.value_from or (None if is_function(config.reward) else config.reward)
    if source is None:
        return RewardModel(copy.deepcopy(bundle.model), scale=1.0)
    # Keep the trunk. The head starts at zero: it predicts a return instead of a reward.
    model, theirs = load_reward_model(source, stage.picked.device)
    if not reads_the_same(theirs, bundle):
        raise ConfigError(
            f"the reward model {source} has another chat template or tokenizer than the policy, or a shorter context; "
            "give one of the policy's family with --value-from"
        )
    return RewardModel(model.gpt, scale=1.0)


class _Ppo(PolicyTrainer[PpoConfig]):
    def __init__(self, config: PpoConfig, stage: Stage, bundle: ChatBundle, sampler: RolloutSampler) -> None:
        super().__init__(config, stage, bundle, sampler)
        self.values = _value_model(config, bundle, stage)
        self.value_objective = ValueObjective(self.values, config.value_clip, stage.picked.autocast)
        self.value_optimizers = Optimizers(self.values, config.value_optim, stage.picked.compute_dtype)
        self.kl = KlControl(config.kl_coef, config.target_kl if config.kl_control == "adaptive" else None)
        self.old_values, self.returns = list[Tensor](), list[Tensor]()
        """Old values and returns of the current round."""

    def compute_advantages(self, round_: Round) -> None:
        self.old_values = self._predict_values(round_.replies)
        advantages = []
        for number, reward in enumerate(round_.rewards):
            rewards = token_rewards(reward, round_.logprobs[number], round_.reference[number], self.kl.coef)
            advantages.append(generalized_advantages(rewards, self.old_values[number], self.config.gae_lambda))
        round_.advantages = whitened(advantages)
        self.returns = [a + v for a, v in zip(advantages, self.old_values, strict=True)]

    @torch.inference_mode()
    def _predict_values(self, replies: Sequence[Reply]) -> list[Tensor]:
        def values_of(scored: Scored) -> Tensor:
            there = scored.to(self.stage.picked.device)
            with self.stage.picked.autocast():
                values_BT: Tensor = self.values(there.idx_BT, there.layout)
            return values_BT.cpu()

        return values_at_replies(replies, self.packer, values_of)

    def update_other_models(self, round_: Round, numbers: Sequence[int], step: int) -> None:
        values = (self.old_values, self.returns)
        packed = packed_values(round_.replies, values, numbers, self.packer)
        batches = [ValueBatch(scored, *rows) for scored, rows in packed]
        self.update(self.value_objective, batches, self.value_optimizers, step)

    def models(self) -> list[str]:
        source = self.config.value_from
        return [*super().models(), "" if source is None else reward_fingerprint(source)]

    def other_tensors(self) -> dict[str, Tensor]:
        tensors = learned_tensors(self.values, self.value_optimizers, "values|")
        if self.round is None:
            return tensors
        return tensors | concatenated("guessed", self.old_values) | concatenated("came", self.returns)

    def other_facts(self) -> dict[str, Any]:
        return {"kl_coef": self.kl.coef}

    def restore_others(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        restore_learned(self.values, self.value_optimizers, tensors, "values|")
        self.kl.coef = float(facts["kl_coef"])
        if not 0 <= self.kl.coef < math.inf:
            raise CheckpointError(f"its kl_coef is {self.kl.coef}")
        if self.round is not None:
            lengths = [len(reply.ids) for reply in self.round.replies]
            self.old_values, self.returns = (read_values(tensors, name, lengths) for name in ("guessed", "came"))

    def other_figures(self) -> dict[str, float]:
        explained = explained_variance(torch.cat(self.old_values), torch.cat(self.returns))
        return {"kl_coef": self.kl.coef, "explained_variance": explained}

    def end_round(self, round_: Round) -> None:
        self.kl.update(round_.kl())


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Share of the returns' variance that the values explain: 1 all, 0 none, or no variance."""
    variance = returns.var(unbiased=False)
    return float(1 - (returns - values).var(unbiased=False) / variance) if variance > 1e-12 else 0.0
