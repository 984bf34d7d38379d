"""Rollouts of PPO and GRPO: sample replies, score them, and cut them into minibatches.

Shapes: B rows, T positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from torch import Tensor

from groundling.align.data import ChatDataConfig
from groundling.align.example_loader import ShuffledIndices
from groundling.align.logprobs import Policy, Scored, scored_groups, values_at_replies
from groundling.align.preferences.measures import measure_by_name
from groundling.align.replies import Reply, ReplySampler, Rewards, reproducible_sampler
from groundling.align.rl.objective import PolicyBatch
from groundling.align.rl.rounds import Round, exchanges_in, read_values
from groundling.align.stage import StageConfig, progress_of_first
from groundling.bundle import ChatBundle
from groundling.data.batches import counted_generator
from groundling.errors import require
from groundling.model.packer import Packer
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(StageConfig):
    """Settings of both PPO and GRPO."""

    path: tyro.conf.Positional[str]
    """Initial and reference model, usually fine-tuned with SFT."""
    reward: str = "runs/reward"
    """Reward model, or a Python function MODULE:FUNCTION from (prompt, reply) to a number."""
    steps: int = 24
    """Rounds of rollout and update."""
    save_every: int = 5
    """Rounds between checkpoints. The last two are kept until the run finishes."""
    replies: int = 128
    """Replies per round."""
    minibatches: int = 2
    """Optimizer steps per epoch over a round's replies."""
    passes: int = 1
    """Epochs over the replies of a round."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    kl_coef: float = 0.05
    """KL penalty coefficient, reward per nat; 0: no penalty, which invites reward hacking."""
    stop_kl: float | None = None
    """Stop when the KL to the reference exceeds this, nats per reply; None: never."""
    max_new_tokens: int = 128
    """Maximum reply length in tokens."""
    no_end: float = -2.0
    """Reward of a reply without an end token."""
    temperature: float = 1.0
    """Sampling temperature."""
    gold: str | None = None
    """Gold score to record beside the reward (warm or verse); not used for training."""
    data: ChatDataConfig = field(default_factory=ChatDataConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0, betas=(0.9, 0.95)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="linear", warmup_steps=2))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "replies", "minibatches", "passes", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("clip", "temperature"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be positive")
        if self.gold is not None:
            measure_by_name(self.gold)
        require(self.kl_coef >= 0, f"kl_coef is {self.kl_coef}; it must be at least 0")
        require(self.stop_kl is None or self.stop_kl > 0, f"stop_kl is {self.stop_kl}; it must be positive, or None")
        require(
            self.replies % self.minibatches == 0,
            f"replies {self.replies} is not a multiple of minibatches {self.minibatches}; change one",
        )


def policy_batches(round_: Round, numbers: Sequence[int], packer: Packer) -> list[PolicyBatch]:
    """Pack some replies of a round into micro-batches."""
    values = (round_.logprobs, round_.reference, round_.advantages)
    packed = packed_values(round_.replies, values, numbers, packer)
    return [PolicyBatch(scored, *rows) for scored, rows in packed]


def packed_values(
    replies: Sequence[Reply],
    values: Sequence[Sequence[Tensor]],
    numbers: Sequence[int],
    packer: Packer,
) -> Iterator[tuple[Scored, list[Tensor]]]:
    """Pack some replies into micro-batches, each with several values per id (BT).

    Args:
        replies: all replies of a round.
        values: of each kind, one tensor per reply with a value per id.
        numbers: indices of the replies to pack.
        packer: cuts them into micro-batches.
    """
    for group, scored in scored_groups([replies[number] for number in numbers], packer):
        yield scored, [scored.spread_reply_values([each[numbers[place]] for place in group]) for each in values]


def reply_logprobs(
    policy: Policy,
    replies: Sequence[Reply],
    packer: Packer,
    parts: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """Log-probability of each id of each reply.

    Args:
        policy: scores the replies.
        replies: the replies.
        packer: cuts them into micro-batches.
        parts: indices of replies that are packed together; None: all. In bfloat16 the last bits depend on the shapes
            of a batch.
    """
    values: list[Tensor] = [torch.empty(0)] * len(replies)
    for part in [range(len(replies))] if parts is None else parts:
        found = values_at_replies([replies[number] for number in part], packer, policy.score)
        for number, each in zip(part, found, strict=True):
            values[number] = each
    return values


class RolloutSampler:
    """Samples and scores the replies of a round.

    Args:
        config: settings.
        bundle: the policy.
        prompts: prompts to sample from, as ids.
        rewards: scores replies.
        packer: cuts replies into micro-batches, here and in the updates.
    """

    def __init__(
        self, config: RolloutConfig, bundle: ChatBundle, prompts: Sequence[list[int]], rewards: Rewards, packer: Packer
    ) -> None:
        self._config, self._bundle, self._prompts, self._rewards = config, bundle, prompts, rewards
        self.packer = packer
        self._order = ShuffledIndices(len(prompts), config.seed, purpose=3)

    def draw(
        self, policy: Policy, reference: Policy, step: int, each: int, stop: Callable[[], bool] | None = None
    ) -> Round | None:
        """Sample and score round `step`, with `each` replies per prompt; None if `stop` ended it."""
        config = self._config
        sampler = self._sampler()
        n_prompts = config.replies // each
        prompts = [self._prompts[self._order(place)] for place in range(step * n_prompts, (step + 1) * n_prompts)]
        replies: list[Reply] = []
        with progress_of_first(f"round {step + 1}: drawing replies", config.replies) as progress:
            for _, group in sampler.stream(enumerate(prompts), config.seed + 7919 * (step + 1), each, stop):
                replies += group
                progress.done = len(replies)
        if len(replies) < config.replies:
            return None
        rewards = [
            value if reply.ended else config.no_end
            for reply, value in zip(replies, deduplicated_rewards(self._rewards, replies), strict=True)
        ]
        # Packed as in the first pass of the update, so that the first ratio is exactly 1 in any precision.
        parts = minibatches_of(len(replies), config.minibatches, config.seed, step, 0, each)
        old, base = (reply_logprobs(each, replies, self.packer, parts) for each in (policy, reference))
        return Round(replies, rewards, old, base)

    def round_of(self, tensors: dict[str, Tensor]) -> Round:
        """Restore a round from its `Round.tensors`.

        Raises:
            CheckpointError: they do not fit this stage.
        """
        config, bundle, sampler = self._config, self._bundle, self._sampler()
        limits = (config.replies, bundle.config.vocab_size, bundle.n_ids, self.packer.max_length)
        replies = [sampler.reply_of(*each) for each in exchanges_in(tensors, *limits)]
        lengths = [len(reply.ids) for reply in replies]
        known = (read_values(tensors, name, lengths) for name in ("logprobs", "reference", "advantages"))
        return Round(replies, tensors["rewards"].double().flatten().tolist(), *known)

    def _sampler(self) -> ReplySampler:
        config = self._config
        return reproducible_sampler(self._bundle, max_new_tokens=config.max_new_tokens, temperature=config.temperature)


def deduplicated_rewards(rewards: Rewards, replies: Sequence[Reply]) -> list[float]:
    """Rewards of replies, with equal replies scored once.

    A score's last bits depend on its place in the batch, and GRPO would amplify such differences.
    """
    keys = [(tuple(reply.prompt), tuple(reply.ids)) for reply in replies]
    different = dict(zip(keys, replies, strict=True))
    value_of = dict(zip(different, rewards(list(different.values())), strict=True))
    return [value_of[key] for key in keys]


def minibatches_of(n: int, count: int, seed: int, step: int, epoch: int, each: int = 1) -> list[list[int]]:
    """Shuffle the indices of a round's replies and cut them into `count` parts; replies to one prompt stay together."""
    generator = counted_generator(seed, purpose=4, number=step, part=epoch)
    parts = np.array_split(generator.permutation(n // each), count)
    return [[place * each + i for place in part.tolist() for i in range(each)] for part in parts]


def whitened(values: Sequence[Tensor]) -> list[Tensor]:
    """Normalise all values together to mean 0 and variance 1; equal values become zeros."""
    flat = torch.cat(list(values))
    if len(flat) == 0:
        return list(values)
    mean, spread = flat.mean(), flat.std(unbiased=False)
    if spread <= 1e-8:
        return [torch.zeros_like(each) for each in values]
    return [(each - mean) / spread for each in values]
