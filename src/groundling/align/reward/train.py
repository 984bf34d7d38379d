"""`groundling reward`: train a reward model on rankings.

The loss of a pair is -log sigmoid(r(better) - r(worse)) (Bradley and Terry 1952; arXiv:2203.02155, equation 1). All
candidates of an answer are scored in one forward pass, and its pairs are averaged, so that each answer has the same
weight. A tie is half a preference each way.

Shapes: B rows, T positions, N sequences, P pairs.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from groundling.align.arguments import parse_stage
from groundling.align.chat_vocab import with_chat
from groundling.align.data import split
from groundling.align.example_loader import ExampleFeed
from groundling.align.example_training import learn
from groundling.align.preferences.encoding import ZERO_REWARD, LeftOut, Ranked, ranked, ranked_rows
from groundling.align.preferences.measures import measure_by_name
from groundling.align.preferences.simulated_rater import SimulatedRater
from groundling.align.preferences.store import Rankings
from groundling.align.reward.metrics import RewardMetrics
from groundling.align.reward.model import (
    RewardModel,
    first_blocks,
    pack_replies,
    rewards_of,
    save_reward_model,
    scores_of,
)
from groundling.align.stage import ExamplesConfig, Stage, open_stage
from groundling.bundle import ChatBundle, load_bundle
from groundling.bundle.adapter import base_at
from groundling.errors import DataError, require
from groundling.model.packer import Packer
from groundling.model.packing import Layout
from groundling.system import distributed
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(ExamplesConfig):
    """Train a reward model on rankings: groundling reward BUNDLE --rankings FILE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """Initial model, usually fine-tuned with SFT."""
    rankings: Path = Path("runs/rankings.sqlite")
    """Rankings file (SQLite); ignored if preferences is set."""
    preferences: Path | None = None
    """Alternatively, a JSONL file of prompt, chosen and rejected; or of prompt, completion and label (true, false)."""
    out_dir: Path = Path("runs/reward")
    """Run folder."""
    n_layer: int | None = None
    """Keep only the first n blocks; a smaller reward model trains faster. None: all."""
    held_out: float = 0.1
    """Fraction of the prompts held out for evaluation."""
    gold: str | None = None
    """Gold score of the simulated rater, to compute the best reachable accuracy; see gold_noise."""
    gold_noise: float = 0.2
    """Noise of the simulated rater."""
    batch_size: int = 16
    """Rankings per optimizer step, over all ranks."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="linear", warmup_steps=20))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.held_out < 1, f"held_out is {self.held_out}; it must be between 0 and 1")
        require(self.gold_noise >= 0, f"gold_noise is {self.gold_noise}; it must be at least 0")
        require(
            self.gold is None or self.preferences is None,
            "gold is given with preferences, which no simulated rater made; leave one of them out",
        )
        if self.gold is not None:
            measure_by_name(self.gold)


@dataclass(frozen=True)
class PairBatch:
    """Packed candidates, and pairs of them to compare."""

    idx_BT: Tensor
    layout: Layout
    owners_BT: Tensor
    n_replies: int
    pairs_P2: Tensor
    wins_P: Tensor
    weights_P: Tensor
    n_targets: int
    """Answers."""

    def to(self, device: torch.device) -> "PairBatch":
        """Copy to another device."""
        rows = (self.idx_BT.to(device), self.layout.to(device), self.owners_BT.to(device))
        pairs = (self.pairs_P2.to(device), self.wins_P.to(device), self.weights_P.to(device))
        return PairBatch(*rows, self.n_replies, *pairs, self.n_targets)


class RewardObjective(nn.Module):
    """Bradley-Terry loss in nats: the mean over an answer's pairs, summed over answers."""

    def __init__(self, model: RewardModel, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, batch: PairBatch) -> Tensor:
        """The loss of a batch."""
        with self.autocast():
            scores_BT = self.model(batch.idx_BT, batch.layout)
        # The last score is ZERO_REWARD, with which labelled replies are compared.
        scores_N = F.pad(rewards_of(scores_BT, batch.owners_BT, batch.n_replies), (0, 1))
        return (batch.weights_P * bradley_terry(scores_N, batch.pairs_P2, batch.wins_P)).sum()


def bradley_terry(scores_N: Tensor, pairs_P2: Tensor, wins_P: Tensor) -> Tensor:
    """The loss of each pair (P): the cross-entropy between its preference and sigmoid(r(a) - r(b))."""
    gaps_P = scores_N[pairs_P2[:, 0]] - scores_N[pairs_P2[:, 1]]
    return -(wins_P * F.logsigmoid(gaps_P) + (1 - wins_P) * F.logsigmoid(-gaps_P))


def main(argv: Sequence[str]) -> int:
    """The verb `reward`."""
    return reward(parse_stage(RewardConfig, argv, "groundling reward"))


def reward(config: RewardConfig) -> int:
    """Run the stage; return the exit code.

    Raises:
        GroundlingError: any subclass.
    """
    with open_stage(config, "reward") as stage:
        if stage.has_finished():
            return 0
        bundle = with_chat(load_bundle(config.path, stage.picked.device, context=config.context))
        packer = Packer(config.longest(bundle), config.micro_batch_rows)
        answers, left_out = _read(config, bundle, packer.max_length)
        if not answers:
            raise DataError(f"{config.preferences or config.rankings} has no preference to train on{left_out.line()}")
        train, measured = split_by_prompt(answers, config.held_out)
        log.info(f"answers     {len(train):,} for training, {len(measured):,} for evaluation{left_out.line()}")
        n_layer = bundle.config.n_layer if config.n_layer is None else config.n_layer
        model = RewardModel(first_blocks(bundle.model, n_layer))

        def make(numbers: list[int]) -> list[PairBatch]:
            return pair_batches([train[i] for i in numbers], packer)

        feed = ExampleFeed(len(train), config.batch_size, make, config.seed)
        stage.find_checkpoint([base_at(config.path).sha256], train)
        objective = RewardObjective(model, stage.picked.autocast)
        rater = None if config.gold is None else SimulatedRater(measure_by_name(config.gold), config.gold_noise, 0)
        measure = RewardMetrics(stage, model, measured, rater)
        ended, figures = learn(stage, config, model, objective, feed, measure)
        if distributed.is_first():
            _normalize(model, train, stage)
            save_reward_model(config.out_dir / "bundle", model, bundle, figures)
        return stage.finish(ended, {**figures, "calibration": measure.calibration})


def _read(config: RewardConfig, bundle: ChatBundle, max_ids: int) -> tuple[list[Ranked], LeftOut]:
    if config.preferences is not None:
        return ranked_rows(config.preferences, bundle, max_ids)
    with Rankings(config.rankings, must_exist=True) as rankings:
        return ranked(rankings, bundle, max_ids)


def split_by_prompt(answers: Sequence[Ranked], part: float) -> tuple[list[Ranked], list[Ranked]]:
    """Split answers into training and held-out ones, so that no prompt is in both.

    Raises:
        DataError: there are fewer than two prompts.
    """
    n_prompts = len({answer.messages for answer in answers})
    if n_prompts < 2:
        raise DataError(
            f"there are answers for {n_prompts} prompts; training needs at least 2, and hundreds for a useful model"
        )
    return split(answers, part)


def pair_batches(answers: Sequence[Ranked], packer: Packer) -> list[PairBatch]:
    """Pack answers into micro-batches, in order; the candidates of one answer stay together."""
    groups = packer.group_comparisons([answer.sequences for answer in answers])
    return [_pair_batch([answers[number] for number in group], width) for group, width in groups]


def _pair_batch(answers: Sequence[Ranked], width: int) -> PairBatch:
    sequences = [each for answer in answers for each in answer.sequences]
    rows, owners_BT = pack_replies(sequences, width)
    pairs, wins, weights, first = [], [], [], 0
    for answer in answers:
        for a, b, win in answer.pairs:
            pairs.append(tuple(len(sequences) if each == ZERO_REWARD else first + each for each in (a, b)))
            wins.append(win)
            weights.append(1 / len(answer.pairs))
        first += len(answer.sequences)
    numbers = (torch.tensor(pairs), torch.tensor(wins), torch.tensor(weights))
    where = (rows.idx_BT, rows.layout, owners_BT, len(sequences))
    return PairBatch(*where, *numbers, n_targets=len(answers))


@torch.no_grad()
def _normalize(model: RewardModel, answers: Sequence[Ranked], stage: Stage, most: int = 500) -> None:
    """Scale the head so that the rewards of training replies have standard deviation 1.

    Training fixes differences only up to scale, and reinforcement learning needs the same scale in all runs. The mean
    is left alone: summed over a reply, a bias would depend on its length.
    """
    scores = torch.tensor(
        scores_of(model, [each for answer in answers[:most] for each in answer.sequences], stage.picked.autocast)
    )
    mean, spread = scores.mean(), scores.std().clamp(min=1e-6)
    model.head_weight.div_(spread)
    model.head_bias.div_(spread)
    log.info(f"rewards     mean {mean:.3f}, standard deviation {spread:.3f} before scaling")
