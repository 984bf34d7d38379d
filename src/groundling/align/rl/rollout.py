"""What PPO and GRPO share: drawing replies, rewarding them, and one clipped update after another.

Shapes: B rows, T positions, N of them at which something is said, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from torch import Tensor

from groundling.align.data import ChatDataConfig
from groundling.align.example_loader import ShuffledNumbers
from groundling.align.logprobs import Policy, Scored, said_values, scored_groups
from groundling.align.preferences.measures import measure_by_name
from groundling.align.replies import Reply, ReplySampler, Rewards, reproducible_sampler
from groundling.align.rl.objective import PolicyBatch
from groundling.align.rl.rounds import Round, exchanges_in, values_of_each
from groundling.align.stage import StageConfig, progress_of_first
from groundling.bundle import ChatBundle
from groundling.data.batches import counted_generator
from groundling.errors import require
from groundling.model.packer import Packer
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(StageConfig):
    """What both can be told."""

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
    """Pack some replies, and several values of each of their ids with them (BT)."""
    for group, scored in scored_groups([replies[number] for number in numbers], packer):
        yield scored, [scored.spread_said([each[numbers[place]] for place in group]) for each in values]


def scored_by(
    policy: Policy,
    replies: Sequence[Reply],
    packer: Packer,
    parts: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """The log-probability of each id of each reply.

    Args:
        policy: whose.
        replies: N.
        packer: cuts them into micro-batches.
        parts: the numbers of replies that are packed together; None: all. In bfloat16 a number's last bits depend on
            the shape of what it is computed with.
    """
    values: list[Tensor] = [torch.empty(0)] * len(replies)
    for part in [range(len(replies))] if parts is None else parts:
        found = said_values([replies[number] for number in part], packer, policy.score)
        for number, each in zip(part, found, strict=True):
            values[number] = each
    return values


class RolloutSampler:
    """Draws the replies of a round, and looks at them.

    Args:
        config: how.
        bundle: the policy.
        prompts: as ids, to draw from.
        rewards: what replies are worth.
        packer: cuts replies into micro-batches, here and in the updates.
    """

    def __init__(
        self, config: RolloutConfig, bundle: ChatBundle, prompts: Sequence[list[int]], rewards: Rewards, packer: Packer
    ) -> None:
        self._config, self._bundle, self._prompts, self._rewards = config, bundle, prompts, rewards
        self.packer = packer
        self._order = ShuffledNumbers(len(prompts), config.seed, purpose=3)

    def draw(
        self, policy: Policy, reference: Policy, step: int, each: int, stop: Callable[[], bool] | None = None
    ) -> Round | None:
        """The replies of round `step`, `each` to every one of its prompts; None where `stop` has ended the drawing."""
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
            for reply, value in zip(replies, rewards_of_different(self._rewards, replies), strict=True)
        ]
        # Packed as the first pass will pack them: its first ratio is 1 to the last bit, whatever the precision.
        parts = minibatches_of(len(replies), config.minibatches, config.seed, step, 0, each)
        old, base = (scored_by(each, replies, self.packer, parts) for each in (policy, reference))
        return Round(replies, rewards, old, base)

    def round_of(self, tensors: dict[str, Tensor]) -> Round:
        """The round whose `Round.tensors` these are.

        Raises:
            CheckpointError: they are those of no round of this stage.
        """
        config, bundle, sampler = self._config, self._bundle, self._sampler()
        limits = (config.replies, bundle.config.vocab_size, bundle.n_ids, self.packer.max_length)
        replies = [sampler.reply_of(*each) for each in exchanges_in(tensors, *limits)]
        lengths = [len(reply.said) for reply in replies]
        known = (values_of_each(tensors, name, lengths) for name in ("logprobs", "reference", "advantages"))
        return Round(replies, tensors["rewards"].double().flatten().tolist(), *known)

    def _sampler(self) -> ReplySampler:
        config = self._config
        return reproducible_sampler(self._bundle, max_new_tokens=config.max_new_tokens, temperature=config.temperature)


def rewards_of_different(rewards: Rewards, replies: Sequence[Reply]) -> list[float]:
    """The rewards of replies, of which equal ones are asked about once: what is said twice is worth the same.

    A model's score depends in its last bits on where in a batch it was computed, and GRPO looks at nothing but gaps.
    """
    keys = [(tuple(reply.prompt), tuple(reply.said)) for reply in replies]
    different = dict(zip(keys, replies, strict=True))
    value_of = dict(zip(different, rewards(list(different.values())), strict=True))
    return [value_of[key] for key in keys]


def minibatches_of(n: int, count: int, seed: int, step: int, number: int, each: int = 1) -> list[list[int]]:
    """The numbers of a round's replies, shuffled and cut into `count` parts; the `each` to a prompt stay together."""
    generator = counted_generator(seed, purpose=4, number=step, part=number)
    parts = np.array_split(generator.permutation(n // each), count)
    return [[place * each + i for place in part.tolist() for i in range(each)] for part in parts]


def whitened(values: Sequence[Tensor]) -> list[Tensor]:
    """Values moved and scaled, all together, to mean 0 and variance 1; equal ones become zeros."""
    flat = torch.cat(list(values))
    if len(flat) == 0:
        return list(values)
    mean, spread = flat.mean(), flat.std(unbiased=False)
    if spread <= 1e-8:
        return [torch.zeros_like(each) for each in values]
    return [(each - mean) / spread for each in values]
