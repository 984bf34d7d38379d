"""`groundling reward`: from rankings to a model that tells how much a reply would be liked.

The loss of a pair is -log sigmoid(r(better) - r(worse)) (Bradley and Terry 1952; arXiv:2203.02155, equation 1). All
candidates of a prompt are scored in one forward pass, and a prompt's pairs count as much as another's, however many
there are. A tie is half a preference each way: it pulls the two together.

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
from groundling.align.preferences.encoding import NOTHING, LeftOut, Ranked, ranked, ranked_rows
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
    """Teach a model to tell better replies from worse: groundling reward BUNDLE --rankings FILE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """The model to start from, after fine-tuning."""
    rankings: Path = Path("runs/rankings.sqlite")
    """What people, or simulated ones, have said; not looked at when preferences are given."""
    preferences: Path | None = None
    """Or a JSONL file of prompt, chosen and rejected; or of prompt, completion and label (true or false)."""
    out_dir: Path = Path("runs/reward")
    """The stage's folder."""
    n_layer: int | None = None
    """Keep only so many of the model's blocks, the first ones: a smaller judge learns faster. None: all."""
    held_out: float = 0.1
    """The part of the prompts that is kept for measuring."""
    gold: str | None = None
    """The measure that a simulated rater followed, to tell how right anyone could be; see gold_noise."""
    gold_noise: float = 0.2
    """How noisy that rater was."""
    batch_size: int = 16
    """Answers per optimizer step, over all ranks."""
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
    """Packed candidates, and pairs of them."""

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
        """The same on another device."""
        rows = (self.idx_BT.to(device), self.layout.to(device), self.owners_BT.to(device))
        pairs = (self.pairs_P2.to(device), self.wins_P.to(device), self.weights_P.to(device))
        return PairBatch(*rows, self.n_replies, *pairs, self.n_targets)


class RewardObjective(nn.Module):
    """Bradley-Terry's loss in nats, summed over answers; of an answer's pairs it is the mean."""

    def __init__(self, model: RewardModel, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, batch: PairBatch) -> Tensor:
        """The loss of a batch."""
        with self.autocast():
            scores_BT = self.model(batch.idx_BT, batch.layout)
        # The last score, 0, is what a labelled reply is compared with.
        scores_N = F.pad(rewards_of(scores_BT, batch.owners_BT, batch.n_replies), (0, 1))
        return (batch.weights_P * bradley_terry(scores_N, batch.pairs_P2, batch.wins_P)).sum()


def bradley_terry(scores_N: Tensor, pairs_P2: Tensor, wins_P: Tensor) -> Tensor:
    """The loss of each pair (P): the cross-entropy between what was said and sigmoid(r(a) - r(b))."""
    gaps_P = scores_N[pairs_P2[:, 0]] - scores_N[pairs_P2[:, 1]]
    return -(wins_P * F.logsigmoid(gaps_P) + (1 - wins_P) * F.logsigmoid(-gaps_P))


def main(argv: Sequence[str]) -> int:
    """The verb `reward`."""
    return reward(parse_stage(RewardConfig, argv, "groundling reward"))


def reward(config: RewardConfig) -> int:
    """Train a reward model as the config says; return the exit code.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    with open_stage(config, "reward") as stage:
        if stage.has_finished():
            return 0
        bundle = with_chat(load_bundle(config.path, stage.picked.device, context=config.context))
        packer = Packer(config.longest(bundle), config.micro_batch_rows)
        answers, left_out = _read(config, bundle, packer.max_length)
        if not answers:
            raise DataError(f"{config.preferences or config.rankings} has nothing to learn from{left_out.line()}")
        train, measured = split_by_prompt(answers, config.held_out)
        log.info(f"answers     {len(train):,} to learn from, {len(measured):,} to measure by{left_out.line()}")
        n_layer = bundle.config.n_layer if config.n_layer is None else config.n_layer
        model = RewardModel(first_blocks(bundle.model, n_layer))

        def make(numbers: list[int]) -> list[PairBatch]:
            return pair_batches([train[i] for i in numbers], packer)

        feed = ExampleFeed(len(train), config.batch_size, make, config.seed)
        stage.look_back([base_at(config.path).sha256], train)
        objective = RewardObjective(model, stage.picked.autocast)
        judge = None if config.gold is None else SimulatedRater(measure_by_name(config.gold), config.gold_noise, 0)
        measure = RewardMetrics(stage, model, measured, judge)
        ended, figures = learn(stage, config, model, objective, feed, measure)
        if distributed.is_first():
            _settle(model, train, stage)
            save_reward_model(config.out_dir / "bundle", model, bundle, figures)
        return stage.finish(ended, {**figures, "calibration": measure.calibration})


def _read(config: RewardConfig, bundle: ChatBundle, max_ids: int) -> tuple[list[Ranked], LeftOut]:
    if config.preferences is not None:
        return ranked_rows(config.preferences, bundle, max_ids)
    with Rankings(config.rankings, must_exist=True) as rankings:
        return ranked(rankings, bundle, max_ids)


def split_by_prompt(answers: Sequence[Ranked], part: float) -> tuple[list[Ranked], list[Ranked]]:
    """Answers to learn from and to measure by: the last prompts, so that none is on both sides.

    Raises:
        DataError: there are not two prompts.
    """
    n_prompts = len({answer.messages for answer in answers})
    if n_prompts < 2:
        raise DataError(
            f"there are answers for {n_prompts} prompts; learning needs 2 at least, and some hundreds to be any good"
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
            pairs.append(tuple(len(sequences) if each == NOTHING else first + each for each in (a, b)))
            wins.append(win)
            weights.append(1 / len(answer.pairs))
        first += len(answer.sequences)
    numbers = (torch.tensor(pairs), torch.tensor(wins), torch.tensor(weights))
    where = (rows.idx_BT, rows.layout, owners_BT, len(sequences))
    return PairBatch(*where, *numbers, n_targets=len(answers))


@torch.no_grad()
def _settle(model: RewardModel, answers: Sequence[Ranked], stage: Stage, most: int = 500) -> None:
    """Scale the head so that the rewards of replies like those it learned from have a spread of 1.

    Only differences were learned, on whatever scale; a reward needs one that does not change from run to run. Their
    mean stays what it is: added up over a reply, no bias is the same for long and short ones.
    """
    scores = torch.tensor(
        scores_of(model, [each for answer in answers[:most] for each in answer.sequences], stage.picked.autocast)
    )
    mean, spread = scores.mean(), scores.std().clamp(min=1e-6)
    model.head_weight.div_(spread)
    model.head_bias.div_(spread)
    log.info(f"rewards     mean {mean:.3f}, spread {spread:.3f} before they were scaled")
