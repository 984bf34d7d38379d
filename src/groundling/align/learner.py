"""The rounds of PPO and GRPO: draw, judge, learn, write down."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from torch import Tensor

from groundling import dist
from groundling.align.checkpoint import Snapshot, require_steps_left, restoring
from groundling.align.conversations import prompt_ids, prompt_room, read_asked
from groundling.align.policy import Policy
from groundling.align.rewards import make_rewards, reward_fingerprint
from groundling.align.rollout import (
    ClippedObjective,
    Drawer,
    RolloutConfig,
    Seen,
    figures_of,
    minibatches_of,
    policy_batches,
)
from groundling.align.rounds import Round
from groundling.align.stage import Stage, has_finished, open_stage
from groundling.align.vocabulary import require_chat
from groundling.bundle import Bundle, base_at, load_bundle, save_bundle
from groundling.data.batches import MicroBatch
from groundling.data.examples import least_ids
from groundling.errors import TrainingError
from groundling.train.loop import FINISHED
from groundling.train.optim import Optimizers
from groundling.train.step import train_step
from groundling.train.training_tensors import optimizer_tensors, restore_learned, weight_tensors, with_prefix
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
        self.step = self.n_updates = 0
        """Rounds that are complete, and updates made in the one after them."""
        self.round: Round | None = None
        """The one that is learned from."""

    @abstractmethod
    def judge(self, round_: Round) -> None:
        """Fill in the round's advantages."""

    def models(self) -> list[str]:
        """What the models that it learns from, besides the one it begins with, are known by."""
        return [reward_fingerprint(self.config.reward)]

    def learn_besides(self, round_: Round, numbers: Sequence[int], step: int) -> None:
        """Learn something else than the policy from some replies."""

    def more_figures(self) -> dict[str, float]:
        """What else is written down of the round that was learned from."""
        return {}

    def end_round(self, round_: Round) -> None:
        """What changes between rounds."""

    def other_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the policy and the round."""
        return {}

    def other_facts(self) -> dict[str, Any]:
        """Plain data that it holds besides."""
        return {}

    def restore_others(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take back what `other_tensors` and `other_facts` gave; the round is there by then, if there is one."""

    def resume(self) -> int:
        """Go on where the stage has found a checkpoint; return how many rounds are complete."""
        if self.stage.found is None:
            return 0
        with restoring(self.stage.found) as snapshot:
            tensors, facts = snapshot.tensors, snapshot.facts
            restore_learned(self.policy.model, self.optimizers, with_prefix(tensors, "policy|"))
            self.step, self.n_updates = divmod(snapshot.step, self._updates_a_round())
            self.objective.seen = msgspec.convert(facts["seen"], list[Seen])
            drawn = with_prefix(tensors, "round|")
            if drawn or self.n_updates:
                self.round = self.drawer.round_of(self.policy, drawn)
            self.restore_others(tensors, facts)
        require_steps_left(self.step + bool(self.n_updates), self.config.steps, self.config.out_dir, "steps")
        return self.step

    def run(self) -> tuple[str, dict[str, Any]]:
        """All rounds that are left; how they ended, and the figures of the last."""
        figures = dict[str, Any]()
        while self.step < self.config.steps:
            started = time.perf_counter()
            if self.stage.asked_to_stop():
                return self._stop(), figures
            if self.round is None and not self._draw():
                return self._stop(), figures
            round_, limit = self.round, self.config.stop_kl
            assert round_ is not None
            if limit is not None and round_.kl() > limit:
                figures = figures_of(round_, started, self.config.gold)  # of the policy that is kept
                self.stage.record({"step": self.step + 1, **figures})
                return f"the KL went beyond {limit}", figures
            try:
                if not self._learn_from(round_):
                    return self._stop(), figures
            except TrainingError as error:
                return self.stage.fail(self.step + 1, error), figures
            seen = {**self.objective.look(), **self.more_figures()}
            figures = {**figures_of(round_, started, self.config.gold), **seen}
            self.stage.record({"step": self.step + 1, **figures})
            self.end_round(round_)
            self.step, self.round, self.n_updates = self.step + 1, None, 0
            if self.step % self.config.save_every == 0:
                self._save()
        return FINISHED, figures

    def _draw(self) -> bool:
        """Draw a round, and judge it; False where a signal came meanwhile."""
        # Other ranks, which draw the same, would wait for the one that gave up.
        stop = (lambda: bool(self.stage.stop)) if dist.world_size() == 1 else None
        round_ = self.drawer.draw(self.policy, self.reference, self.step, self.each, stop)
        if round_ is None:
            return False
        self.judge(round_)
        self.round = round_
        return True

    def _learn_from(self, round_: Round) -> bool:
        """Make the updates of a round that are left; False where a signal came between two of them."""
        config = self.config
        for update in range(self.n_updates, self._updates_a_round()):
            if update and self.stage.asked_to_stop():
                return False
            number, place = divmod(update, config.minibatches)
            parts = minibatches_of(len(round_.replies), config.minibatches, config.seed, self.step, number, self.each)
            batches = policy_batches(round_, parts[place], self.max_length, config.micro_batch_rows)
            self.update(self.objective, batches, self.optimizers, self.step)
            self.learn_besides(round_, parts[place], self.step)
            self.n_updates = update + 1
        return True

    def _updates_a_round(self) -> int:
        return self.config.passes * self.config.minibatches

    def _stop(self) -> str:
        self._save()
        return ASKED_TO_STOP

    def _save(self) -> None:
        learned = weight_tensors(self.policy.model) | optimizer_tensors(self.optimizers)
        tensors = {f"policy|{name}": tensor for name, tensor in learned.items()} | self.other_tensors()
        if self.round is not None:
            tensors |= {f"round|{name}": tensor for name, tensor in self.round.tensors().items()}
        facts = {"seen": self.objective.seen, **self.other_facts()}
        self.stage.save(Snapshot(self.step * self._updates_a_round() + self.n_updates, tensors, facts))

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
    if has_finished(config, name):
        return 0
    with open_stage(config, name) as stage:
        bundle = require_chat(load_bundle(config.path, stage.picked.device, context=config.context), config.path)
        assert bundle.chat is not None
        rewards = make_rewards(config.reward, bundle, stage.picked)
        least = least_ids(bundle.chat, bundle.tokenizer)
        room = prompt_room(config.longest(bundle), config.max_new_tokens, least)
        asked = prompt_ids(read_asked(config.data).train, bundle.chat, bundle.tokenizer, room)
        prompts = [list(ids) for ids in asked]
        learner = make(config, stage, bundle, Drawer(config, bundle, prompts, rewards))
        stage.look_back([base_at(config.path).sha256, *learner.models()], prompts)
        stage.begin(learner.resume())
        ended, figures = learner.run()
        if dist.is_first():
            save_bundle(config.out_dir / "bundle", bundle.model, bundle.tokenizer, {"stage": name}, bundle.chat)
        return stage.finish(ended, figures)
