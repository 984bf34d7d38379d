"""Sample replies of each model to held-out prompts, and evaluate them against the fine-tuned model's."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from groundling.align.chat_vocab import reads_the_same, with_chat
from groundling.align.data import encode_prompts, prompt_room, read_prompt_splits
from groundling.align.logprobs import Policy, exchanges_of
from groundling.align.preferences.measures import measure_by_name
from groundling.align.replies import Reply, reproducible_sampler
from groundling.align.report.collect import read_rounds
from groundling.align.report.config import ReportConfig
from groundling.align.report.evaluate import best_of_kl, best_of_n, evaluate_replies
from groundling.align.report.schema import BestOf, Row
from groundling.align.reward.model import load_reward_model, scores_of
from groundling.align.rl.rollout import reply_logprobs
from groundling.align.rl.rounds import nats_per_reply
from groundling.bundle import Bundle, ChatBundle, load_bundle, load_chat_bundle
from groundling.bundle.context import contexts
from groundling.data.examples.encoding import least_ids
from groundling.errors import ConfigError
from groundling.model.packer import Packer
from groundling.system.progress import Progress

BASELINE_SEED_OFFSET = 1_000_003
"""Added to the seeds of the baseline replies, so that the fine-tuned model is not compared with its own replies."""


class Evaluated(NamedTuple):
    """A row, and the replies of its first seed."""

    row: Row
    replies: list[Reply]


class PolicyEvaluator:
    """Samples replies to the held-out prompts with several seeds, and evaluates them.

    Shapes: S seeds.

    Raises:
        GroundlingError: a model cannot be read, or the reward model is of another family.
    """

    def __init__(self, config: ReportConfig) -> None:
        self.config, self.measure = config, measure_by_name(config.gold)
        self.sft = load_chat_bundle(config.path, context=config.context)
        self.reward_model, its_bundle = load_reward_model(config.reward)
        require_same_ids(its_bundle, self.sft, config.reward)
        least = least_ids(self.sft.chat, self.sft.tokenizer)
        room = prompt_room(self.sft.config.block_size, config.max_new_tokens, least)
        prompts = encode_prompts(read_prompt_splits(config.data).val, self.sft, room)
        self.prompts = [list(ids) for ids in prompts][: config.prompts]
        self.reference = self._policy(self.sft)
        self.baseline_S = [
            [reply for (reply,) in self._sample(self.sft, seed + BASELINE_SEED_OFFSET, 1)] for seed in config.seeds
        ]
        self.best_of: list[BestOf] = []
        """Filled in by `fine_tuned`."""

    def _context(self, path: Path | str) -> int | None:
        """The context of another model, which may be shorter than the fine-tuned one's."""
        return contexts([self.config.path, path], self.config.context)[1]

    def text(self, ids: Sequence[int]) -> str:
        """A prompt as readable text."""
        return " / ".join(message.content for message in self.sft.decode_chat(ids) if message.content)

    def base(self, path: str) -> Evaluated:
        """The model before fine-tuning. It has no KL, which is meaningless for a model that knows no chat template."""
        bundle = with_chat(load_bundle(path, context=self._context(path)))
        require_same_ids(bundle, self.sft, path)
        replies_S = [[reply for (reply,) in self._sample(bundle, seed, 1)] for seed in self.config.seeds]
        return self._evaluate("base", replies_S, None, None)

    def fine_tuned(self, seconds: float | None) -> list[Evaluated]:
        """The fine-tuned model, and best-of-n sampling from it with the reward model."""
        largest = max(self.config.best_of, default=1)
        groups_S = [self._sample(self.sft, seed, largest) for seed in self.config.seeds]
        rewards_S = []
        for groups in groups_S:
            values = iter(self._rewards([reply for group in groups for reply in group]))
            rewards_S.append([[next(values) for _ in group] for group in groups])
        found = [self._evaluate("SFT", [[group[0] for group in groups] for groups in groups_S], 0.0, seconds)]
        for n in sorted({*_powers_of_two(largest), *self.config.best_of}):
            picked_S = [
                [group[place] for group, place in zip(groups, best_of_n(n, groups, rewards), strict=True)]
                for groups, rewards in zip(groups_S, rewards_S, strict=True)
            ]
            each = self._evaluate(f"best of {n}", picked_S, best_of_kl(n), None)
            self.best_of.append(BestOf(n, best_of_kl(n), each.row.metrics.gold, each.row.metrics.proxy))
            if n in self.config.best_of:
                found.append(each)
        return found

    def runs(self, name: str, runs: Sequence[tuple[Path, dict[str, Any]]]) -> Evaluated:
        """Trained policies: one per seed, or one for all seeds.

        Args:
            name: of the row.
            runs: run folders and their summaries.
        """
        if len(runs) not in (1, len(self.config.seeds)):
            raise ConfigError(
                f"{name} has {len(runs)} runs, and seeds are {len(self.config.seeds)}; give one run, or one for each"
            )
        replies_S, kls = [], []
        for number, seed in enumerate(self.config.seeds):
            folder = runs[number % len(runs)][0]
            bundle = load_chat_bundle(folder, context=self._context(folder))
            require_same_ids(bundle, self.sft, str(folder))
            replies = [reply for (reply,) in self._sample(bundle, seed, 1)]
            replies_S.append(replies)
            kls.append(self._kl(bundle, replies))
        seconds = math.fsum(float(summary["wall_s"]) for _, summary in runs) / len(runs)
        paths = [[(r["kl"], r["gold"]) for r in read_rounds(folder) if "gold" in r] for folder, _ in runs]
        return self._evaluate(name, replies_S, math.fsum(kls) / len(kls), seconds, [path for path in paths if path])

    def _evaluate(
        self,
        name: str,
        replies_S: list[list[Reply]],
        kl: float | None,
        seconds: float | None,
        trajectories: list[list[tuple[float, float]]] | None = None,
    ) -> Evaluated:
        with Progress(f"evaluating {name}"):
            rewards_S = [self._rewards(replies) for replies in replies_S]
            metrics = evaluate_replies(replies_S, self.baseline_S, self.measure, rewards_S, kl)
        return Evaluated(Row(name, metrics, seconds, trajectories or []), replies_S[0])

    def _sample(self, bundle: ChatBundle, seed: int, each: int) -> list[list[Reply]]:
        """`each` replies to every prompt."""
        sampler = reproducible_sampler(bundle, max_new_tokens=self.config.max_new_tokens)
        with Progress("sampling replies", len(self.prompts)) as progress:
            groups = []
            for _, group in sampler.stream(enumerate(self.prompts), seed, each):
                groups.append(group)
                progress.advance(1)
            return groups

    def _rewards(self, replies: Sequence[Reply]) -> list[float]:
        return scores_of(self.reward_model, exchanges_of(replies), nullcontext)

    def _kl(self, bundle: ChatBundle, replies: Sequence[Reply]) -> float:
        packer = Packer(self.sft.config.block_size, max_rows=16)
        new = reply_logprobs(self._policy(bundle), replies, packer)
        old = reply_logprobs(self.reference, replies, packer)
        return nats_per_reply(new, old)

    @staticmethod
    def _policy(bundle: ChatBundle) -> Policy:
        return Policy(bundle.model, bundle.n_ids, nullcontext)


def require_same_ids(bundle: Bundle, other: Bundle, name: str) -> None:
    """Check that two bundles share tokenizer and chat template, and that `bundle`'s context is long enough.

    Raises:
        ConfigError: they do not.
    """
    if not reads_the_same(bundle, other):
        raise ConfigError(f"{name} has another tokenizer, chat template or context than the fine-tuned model; compare "
                          "models of one family")  # fmt: skip


def _powers_of_two(largest: int) -> list[int]:
    return [2**k for k in range(1, largest.bit_length()) if 2**k <= largest]
