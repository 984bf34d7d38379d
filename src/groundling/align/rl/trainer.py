"""The rounds of PPO and GRPO: sample, score, update, record."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from torch import Tensor

from groundling.align.checkpoint import Snapshot, require_steps_left, restoring
from groundling.align.data import encode_prompts, prompt_room, read_prompt_splits
from groundling.align.logprobs import Policy
from groundling.align.reward.functions import make_rewards, reward_fingerprint
from groundling.align.rl.objective import CallMetrics, ClippedObjective
from groundling.align.rl.rollout import RolloutConfig, RolloutSampler, minibatches_of, policy_batches
from groundling.align.rl.rounds import Round, figures_of
from groundling.align.stage import Stage, open_stage
from groundling.bundle import ChatBundle, load_chat_bundle, save_bundle
from groundling.bundle.adapter import base_at
from groundling.data.batches import MicroBatch
from groundling.data.examples.encoding import least_ids
from groundling.errors import TrainingError
from groundling.model.packer import Packer
from groundling.system import distributed
from groundling.system.signals import ASKED_TO_STOP
from groundling.train.checkpoints.tensors import learned_tensors, restore_learned, with_prefix
from groundling.train.loop import FINISHED
from groundling.train.optim.optimizers import Optimizers
from groundling.train.step import train_step

C = TypeVar("C", bound=RolloutConfig)


class PolicyTrainer(ABC, Generic[C]):
    """Trains a policy on its own replies. A subclass computes the advantage of each id.

    Args:
        config: settings.
        stage: the running stage.
        bundle: the policy; a copy of it is the reference.
        sampler: samples and scores replies.
        kl_coef: weight of the KL in the loss.
        each: replies per prompt.
    """

    def __init__(
        self,
        config: C,
        stage: Stage,
        bundle: ChatBundle,
        sampler: RolloutSampler,
        *,
        kl_coef: float = 0.0,
        each: int = 1,
    ) -> None:
        self.config, self.stage, self.sampler, self.each = config, stage, sampler, each
        self.packer = sampler.packer
        n_reply_ids, autocast = bundle.n_ids, stage.picked.autocast
        self.policy = Policy(bundle.model, n_reply_ids, autocast, config.temperature)
        frozen = copy.deepcopy(bundle.model).requires_grad_(False)
        self.reference = Policy(frozen, n_reply_ids, autocast, config.temperature)
        self.objective = ClippedObjective(self.policy, config.clip, kl_coef)
        self.optimizers = Optimizers(bundle.model, config.optim, stage.picked.compute_dtype)
        self.step = self.n_updates = 0
        """Completed rounds, and updates of the current one."""
        self.round: Round | None = None
        """The current round, once it is sampled."""
        self.figures = dict[str, Any]()
        """Metrics of the last completed round."""

    @abstractmethod
    def compute_advantages(self, round_: Round) -> None:
        """Set the round's advantages."""

    def models(self) -> list[str]:
        """Fingerprints of all models that training depends on, except the initial one."""
        return [reward_fingerprint(self.config.reward)]

    def update_other_models(self, round_: Round, numbers: Sequence[int], step: int) -> None:
        """Train other models on a minibatch of replies."""

    def other_figures(self) -> dict[str, float]:
        """More metrics of a round."""
        return {}

    def end_round(self, round_: Round) -> None:
        """Hook at the end of a round."""

    def other_tensors(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint besides policy and round."""
        return {}

    def other_facts(self) -> dict[str, Any]:
        """More plain data of a checkpoint."""
        return {}

    def restore_others(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Restore `other_tensors` and `other_facts`, after the round."""

    def resume(self) -> int:
        """Restore the stage's checkpoint, if any; return the number of completed rounds."""
        if self.stage.found is None:
            return 0
        with restoring(self.stage.found) as snapshot:
            tensors, facts = snapshot.tensors, snapshot.facts
            restore_learned(self.policy.model, self.optimizers, tensors, "policy|")
            self.step, self.n_updates = divmod(snapshot.step, self._updates_per_round())
            self.objective.seen = msgspec.convert(facts["seen"], list[CallMetrics])
            self.figures = msgspec.convert(facts["figures"], dict[str, float])
            drawn = with_prefix(tensors, "round|")
            if drawn or self.n_updates:
                self.round = self.sampler.round_of(drawn)
            self.restore_others(tensors, facts)
        require_steps_left(self.step + bool(self.n_updates), self.config.steps, self.config.out_dir, "steps")
        return self.step

    def run(self) -> tuple[str, dict[str, Any]]:
        """Run the remaining rounds; return the reason for the end and the metrics of the last round."""
        while self.step < self.config.steps:
            started = time.perf_counter()
            if self.stage.asked_to_stop() or (self.round is None and not self._draw()):
                return self._stop(), self.figures
            round_, limit = self.round, self.config.stop_kl
            assert round_ is not None
            if limit is not None and round_.kl() > limit:
                self._save()
                self._record(figures_of(round_, started, self.config.gold))  # metrics of the policy that is saved
                return f"the KL went beyond {limit}", self.figures
            try:
                if not self._learn_from(round_):
                    return self._stop(), self.figures
            except TrainingError as error:
                return self.stage.fail(self.step + 1, error), self.figures
            seen = {**self.objective.pop_metrics(), **self.other_figures()}
            self._record({**figures_of(round_, started, self.config.gold), **seen})
            self.end_round(round_)
            self.step, self.round, self.n_updates = self.step + 1, None, 0
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self._save()
        return FINISHED, self.figures

    def _record(self, figures: dict[str, Any]) -> None:
        self.figures = figures
        self.stage.record({"step": self.step + 1, **figures})

    def _draw(self) -> bool:
        """Sample and score a round; False if a signal interrupted it."""
        # With several ranks, all sample the same replies; if one stopped early, the others would wait forever.
        stop = (lambda: bool(self.stage.stop)) if distributed.world_size() == 1 else None
        round_ = self.sampler.draw(self.policy, self.reference, self.step, self.each, stop)
        if round_ is None:
            return False
        self.compute_advantages(round_)
        self.round = round_
        return True

    def _learn_from(self, round_: Round) -> bool:
        """Make the remaining updates of a round; False if a signal interrupted them."""
        config = self.config
        for update in range(self.n_updates, self._updates_per_round()):
            if update and self.stage.asked_to_stop():
                return False
            epoch, place = divmod(update, config.minibatches)
            parts = minibatches_of(len(round_.replies), config.minibatches, config.seed, self.step, epoch, self.each)
            batches = policy_batches(round_, parts[place], self.packer)
            self.update(self.objective, batches, self.optimizers, self.step)
            self.update_other_models(round_, parts[place], self.step)
            self.n_updates = update + 1
        return True

    def _updates_per_round(self) -> int:
        return self.config.passes * self.config.minibatches

    def _stop(self) -> str:
        self._save()
        return ASKED_TO_STOP

    def _save(self) -> None:
        tensors = learned_tensors(self.policy.model, self.optimizers, "policy|") | self.other_tensors()
        if self.round is not None:
            tensors |= {f"round|{name}": tensor for name, tensor in self.round.tensors().items()}
        facts = {"seen": self.objective.seen, "figures": self.figures, **self.other_facts()}
        self.stage.save(Snapshot(self.step * self._updates_per_round() + self.n_updates, tensors, facts))

    def update(self, objective: Any, batches: Sequence[MicroBatch], optimizers: Optimizers, step: int) -> None:
        """Make one optimizer step at the learning rate of a round."""
        config = self.config
        factor = config.schedule.factor(step, config.steps)
        train_step(objective, batches, optimizers, lr_factor=factor, max_norm=config.grad_clip)


def optimise(config: C, name: str, make: Callable[[C, Stage, ChatBundle, RolloutSampler], PolicyTrainer[C]]) -> int:
    """Run a PPO or GRPO stage; return the exit code.

    Raises:
        GroundlingError: any subclass.
    """
    with open_stage(config, name) as stage:
        if stage.has_finished():
            return 0
        bundle = load_chat_bundle(config.path, stage.picked.device, context=config.context)
        rewards = make_rewards(config.reward, bundle, stage.picked)
        least = least_ids(bundle.chat, bundle.tokenizer)
        packer = Packer(config.longest(bundle), config.micro_batch_rows)
        room = prompt_room(packer.max_length, config.max_new_tokens, least)
        encoded = encode_prompts(read_prompt_splits(config.data).train, bundle, room)
        prompts = [list(ids) for ids in encoded]
        trainer = make(config, stage, bundle, RolloutSampler(config, bundle, prompts, rewards, packer))
        stage.find_checkpoint([base_at(config.path).sha256, *trainer.models()], prompts)
        stage.begin(trainer.resume())
        ended, figures = trainer.run()
        if distributed.is_first():
            save_bundle(config.out_dir / "bundle", bundle.model, bundle.tokenizer, {"stage": name}, bundle.chat)
        return stage.finish(ended, figures)
