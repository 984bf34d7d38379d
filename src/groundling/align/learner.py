"""The rounds of PPO and GRPO: draw, judge, learn, write down."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from groundling import dist
from groundling.align.conversations import prompt_ids, prompt_room, read_asked
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
from groundling.align.stage import Stage, open_stage
from groundling.align.vocabulary import require_chat
from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.data.batches import MicroBatch
from groundling.data.examples import least_ids
from groundling.errors import TrainingError
from groundling.train.loop import FINISHED
from groundling.train.optim import Optimizers
from groundling.train.step import train_step
from groundling.train.watch import ASKED_TO_STOP

C = TypeVar("C", bound=RolloutConfig)


class Learner(ABC, Generic[C]):
    """A policy that learns from its own replies. A subclass says what they were worth, id by id.

    Args:
        config: how.
        stage: which it is a part of.
        bundle: the policy, and the reference as it is now.
        drawer: draws the replies.
        kl_coef: of the KL in the loss.
        each: replies to each prompt.
    """

    def __init__(
        self, config: C, stage: Stage, bundle: Bundle, drawer: Drawer, *, kl_coef: float = 0.0, each: int = 1
    ) -> None:
        assert bundle.chat is not None
        self.config, self.stage, self.drawer, self.each = config, stage, drawer, each
        self.max_length = config.longest(bundle)
        n_sayable, autocast = bundle.n_ids, stage.picked.autocast
        self.policy = Policy(bundle.model, n_sayable, autocast, config.temperature)
        frozen = copy.deepcopy(bundle.model).requires_grad_(False)
        self.reference = Policy(frozen, n_sayable, autocast, config.temperature)
        self.objective = ClippedObjective(self.policy, config.clip, kl_coef)
        self.optimizers = Optimizers(bundle.model, config.optim, stage.picked.compute_dtype)

    @abstractmethod
    def judge(self, round_: Round) -> None:
        """Fill in the round's advantages."""

    def learn_besides(self, round_: Round, numbers: Sequence[int], step: int) -> None:
        """Learn something else than the policy from some replies."""

    def more_figures(self) -> dict[str, float]:
        """What else is written down of the round that was learned from."""
        return {}

    def end_round(self, round_: Round) -> None:
        """What changes between rounds."""

    def run(self) -> tuple[str, dict[str, Any]]:
        """All rounds; how they ended, and the figures of the last."""
        figures = dict[str, Any]()
        for step in range(self.config.steps):
            if self.stage.asked_to_stop():
                return ASKED_TO_STOP, figures
            started = time.perf_counter()
            round_ = self.drawer.draw(self.policy, self.reference, step, self.each)
            limit = self.config.stop_kl
            if limit is not None and round_.kl() > limit:
                figures = figures_of(round_, started, self.config.gold)  # of the policy that is kept
                self.stage.record({"step": step + 1, **figures})
                return f"the KL went beyond {limit}", figures
            try:
                self._learn_from(round_, step)
            except TrainingError as error:
                return self.stage.fail(step + 1, error), figures
            seen = {**self.objective.look(), **self.more_figures()}
            figures = {**figures_of(round_, started, self.config.gold), **seen}
            self.stage.record({"step": step + 1, **figures})
            self.end_round(round_)
        return FINISHED, figures

    def _learn_from(self, round_: Round, step: int) -> None:
        config = self.config
        self.judge(round_)
        for number in range(config.passes):
            n, count = len(round_.replies), config.minibatches
            for part in minibatches_of(n, count, config.seed, step, number, self.each):
                batches = policy_batches(round_, part, self.max_length, config.micro_batch_rows)
                self.update(self.objective, batches, self.optimizers, step)
                self.learn_besides(round_, part, step)

    def update(self, objective: Any, batches: Sequence[MicroBatch], optimizers: Optimizers, step: int) -> None:
        """One update at the learning rate of a round."""
        config = self.config
        factor = config.schedule.factor(step, config.steps)
        train_step(objective, batches, optimizers, lr_factor=factor, max_norm=config.grad_clip)


def optimise(config: C, name: str, make: Callable[[C, Stage, Bundle, Drawer], Learner[C]]) -> int:
    """Run a stage of rounds from its config to its bundle; return the exit code.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    with open_stage(config, name) as stage:
        bundle = require_chat(load_bundle(config.path, stage.picked.device, context=config.context), config.path)
        assert bundle.chat is not None
        rewards = make_rewards(config.reward, bundle, stage.picked)
        least = least_ids(bundle.chat, bundle.tokenizer)
        room = prompt_room(config.longest(bundle), config.max_new_tokens, least)
        asked = prompt_ids(read_asked(config.data).train, bundle.chat, bundle.tokenizer, room)
        prompts = [list(ids) for ids in asked]
        learner = make(config, stage, bundle, Drawer(config, bundle, prompts, rewards))
        stage.begin()
        ended, figures = learner.run()
        if dist.is_first():
            save_bundle(config.out_dir / "bundle", bundle.model, bundle.tokenizer, {"stage": name}, bundle.chat)
        return stage.finish(ended, figures)
