"""`groundling dpo`: direct preference optimisation, without a reward model or sampling.

sigmoid (arXiv:2305.18290, equation 7): -log sigmoid(beta * (gain(chosen) - gain(rejected))), where a reply's gain is
log p(reply) - log p_ref(reply). With label smoothing e, a preference is wrong with probability e (Mitchell 2023, "A
note on DPO with noisy preferences"). ipo (arXiv:2310.12036, equation 17): (gap - 1 / (2 beta))^2, with mean gains per
token. Training starts with the policy equal to the reference, where the sigmoid loss is ln 2.

Shapes: N replies, P pairs.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from groundling.align.arguments import parse_stage
from groundling.align.checkpoint import Snapshot
from groundling.align.data import split
from groundling.align.example_loader import ExampleFeed
from groundling.align.example_training import learn
from groundling.align.logprobs import Policy, Scored, score_rows
from groundling.align.preferences.judgement import Judgement
from groundling.align.preferences.store import Rankings
from groundling.align.stage import ExamplesConfig, open_stage
from groundling.bundle import ChatBundle, load_chat_bundle, save_bundle
from groundling.bundle.adapter import base_at
from groundling.data.examples.conversations import Preference, read_preferences
from groundling.data.examples.encoding import EncodedPair, EncodingCounts, encode_preference
from groundling.data.examples.messages import Messages
from groundling.errors import CheckpointError, DataError, require
from groundling.model.packer import Packer
from groundling.model.packing import Exchange
from groundling.system import distributed
from groundling.system.progress import Progress
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig

log = logging.getLogger(__name__)

Kind = Literal["sigmoid", "ipo"]
REFERENCE = "reference"
"""Name in checkpoints of the reference log-probabilities of each pair."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig(ExamplesConfig):
    """Train on preferences with DPO: groundling dpo BUNDLE --rankings FILE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """Initial and reference model, usually fine-tuned with SFT."""
    rankings: Path | None = None
    """Rankings file (SQLite)."""
    preferences: Path | None = None
    """Alternatively, a JSONL file of prompt, chosen and rejected."""
    out_dir: Path = Path("runs/dpo")
    """Run folder."""
    epochs: float = 1.0
    """Passes over the preference pairs."""
    loss: Kind = "sigmoid"
    """Loss: sigmoid (DPO) or ipo."""
    beta: float = 0.1
    """Strength of the KL penalty against the reference model."""
    label_smoothing: float = 0.0
    """Probability that a preference label is wrong; sigmoid only."""
    pairs_per_answer: int = 1
    """Pairs taken from an answer that ranks several replies, those furthest apart first."""
    batch_size: int = 32
    """Pairs per optimizer step, over all ranks."""
    held_out: float = 0.05
    """Fraction of the prompts held out for evaluation."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0, betas=(0.9, 0.95)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="linear", warmup_steps=5))

    def __post_init__(self) -> None:
        super().__post_init__()
        require((self.rankings is None) != (self.preferences is None), "give either --rankings or --preferences")
        require(self.beta > 0, f"beta is {self.beta}; it must be positive")
        require(0 <= self.label_smoothing < 0.5, f"label_smoothing is {self.label_smoothing}; it must be in [0, 0.5)")
        require(self.loss == "sigmoid" or self.label_smoothing == 0, "label_smoothing is for the sigmoid loss")
        require(self.pairs_per_answer >= 1, f"pairs_per_answer is {self.pairs_per_answer}; it must be at least 1")
        require(0 <= self.held_out < 1, f"held_out is {self.held_out}; it must be in [0, 1)")


@dataclass(frozen=True)
class Pair:
    """Two replies to a prompt, and their log-probabilities under the reference."""

    chosen: Exchange
    rejected: Exchange
    messages: Messages = ()
    """The prompt before shortening."""
    reference: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class DpoBatch:
    """Packed pairs: chosen and rejected replies alternate."""

    scored: Scored
    reference_N: Tensor
    lengths_N: Tensor
    n_targets: int

    def to(self, device: torch.device) -> "DpoBatch":
        """Copy to another device."""
        scored = self.scored.to(device)
        return DpoBatch(scored, self.reference_N.to(device), self.lengths_N.to(device), self.n_targets)


class DpoObjective(nn.Module):
    """The loss summed over pairs."""

    def __init__(self, policy: Policy, kind: Kind, beta: float, label_smoothing: float) -> None:
        super().__init__()
        self.policy, self.kind, self.beta, self.label_smoothing = policy, kind, beta, label_smoothing

    def forward(self, batch: DpoBatch) -> Tensor:
        """The loss of a batch."""
        scored = batch.scored
        logprobs_N = scored.sums(self.policy(scored.idx_BT, scored.layout, scored.targets_BT))
        gains_N = logprobs_N - batch.reference_N
        if self.kind == "ipo":
            gains_N = gains_N / batch.lengths_N
        return dpo_loss(gains_N[0::2] - gains_N[1::2], self.kind, self.beta, self.label_smoothing).sum()


def dpo_loss(gaps_P: Tensor, kind: Kind, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each pair (P) from the gap between the gains of the chosen and the rejected reply."""
    if kind == "ipo":
        return (gaps_P - 1 / (2 * beta)).square()
    e = label_smoothing
    return -(1 - e) * F.logsigmoid(beta * gaps_P) - e * F.logsigmoid(-beta * gaps_P)


def main(argv: Sequence[str]) -> int:
    """The verb `dpo`."""
    return dpo(parse_stage(DpoConfig, argv, "groundling dpo"))


def dpo(config: DpoConfig) -> int:
    """Run the stage; return the exit code.

    Raises:
        GroundlingError: any subclass.
    """
    with open_stage(config, "dpo") as stage:
        if stage.has_finished():
            return 0
        bundle = load_chat_bundle(config.path, stage.picked.device, context=config.context)
        packer = Packer(config.longest(bundle), config.micro_batch_rows)
        pairs, counts = _read_pairs(config, bundle, packer.max_length)
        log.info(f"pairs       {counts}")
        if not pairs:
            raise DataError(f"there is no pair to train on: {counts}")
        policy = Policy(bundle.model, bundle.n_ids, stage.picked.autocast)
        earlier = stage.find_checkpoint([base_at(config.path).sha256], pairs)
        pairs = with_reference(policy, pairs, packer) if earlier is None else restore_reference(pairs, earlier)
        train, measured = split(pairs, config.held_out)
        feed = ExampleFeed(
            len(train),
            config.batch_size,
            lambda numbers: dpo_batches([train[i] for i in numbers], packer),
            config.seed,
        )
        objective = DpoObjective(policy, config.loss, config.beta, config.label_smoothing)
        measure = _DpoMetrics(policy, dpo_batches(measured, packer) if measured else [])
        keep = {REFERENCE: torch.tensor([pair.reference for pair in pairs])}
        ended, figures = learn(stage, config, bundle.model, objective, feed, measure, keep)
        if distributed.is_first():
            save_bundle(config.out_dir / "bundle", bundle.model, bundle.tokenizer, {"stage": "dpo"}, bundle.chat)
        return stage.finish(ended, figures)


def pairs_from_rankings(
    judgements: Iterable[Judgement], bundle: ChatBundle, max_ids: int, most: int
) -> tuple[list[Pair], str]:
    """Up to `most` pairs per answer, those furthest apart in rank first, and a line about what was kept."""
    pairs: list[Pair] = []
    counts, n_without = EncodingCounts(), 0
    for judgement in judgements:
        place = {id(judgement.candidates[n]): rank for rank, group in enumerate(judgement.choice) for n in group}
        last = len(judgement.choice)
        found = [comparison for comparison in judgement.comparisons() if not comparison.tie]
        found.sort(key=lambda c: place.get(id(c.better), last) - place.get(id(c.worse), last))
        n_without += not found
        for better, worse in [(comparison.better.text, comparison.worse.text) for comparison in found[:most]]:
            preference = Preference(judgement.messages, better, worse, f"the answer {judgement.key}")
            if (encoded := encode_preference(preference, bundle.chat, bundle.tokenizer, max_ids, counts)) is not None:
                pairs.append(_as_pair(encoded, preference))
    without = f"; {n_without:,} answers without a preference" if n_without else ""
    return pairs, counts.line() + without


def _as_pair(encoded: EncodedPair, preference: Preference) -> Pair:
    return Pair((encoded.prompt, encoded.chosen), (encoded.prompt, encoded.rejected), preference.prompt)


def _read_pairs(config: DpoConfig, bundle: ChatBundle, max_ids: int) -> tuple[list[Pair], str]:
    if config.rankings is not None:
        with Rankings(config.rankings, must_exist=True) as rankings:
            return pairs_from_rankings(rankings, bundle, max_ids, config.pairs_per_answer)
    assert config.preferences is not None
    counts = EncodingCounts()
    preferences = read_preferences(config.preferences)
    with Progress("encoding the preferences", len(preferences)) as progress:
        pairs = []
        for preference in preferences:
            encoded = encode_preference(preference, bundle.chat, bundle.tokenizer, max_ids, counts)
            pairs += [] if encoded is None else [_as_pair(encoded, preference)]
            progress.advance(1)
    return pairs, counts.line()


def with_reference(policy: Policy, pairs: Sequence[Pair], packer: Packer) -> list[Pair]:
    """The pairs with their log-probabilities under the untrained policy.

    The score of a reply does not depend on the rows it is packed in, so the first loss is ln 2.
    """
    done: list[Pair] = []
    with Progress("scoring the pairs before the first step", len(pairs)) as progress:
        for batch in dpo_batches(pairs, packer):
            totals = batch.scored.sums(policy.score(batch.scored)).tolist()
            for chosen, rejected in zip(totals[0::2], totals[1::2], strict=True):
                done.append(dataclasses.replace(pairs[len(done)], reference=(chosen, rejected)))
            progress.done = len(done)
    return done


def restore_reference(pairs: Sequence[Pair], snapshot: Snapshot) -> list[Pair]:
    """The pairs with their reference log-probabilities from a checkpoint.

    Raises:
        CheckpointError: it is of other pairs.
    """
    reference = snapshot.tensors.get(REFERENCE)
    if (
        reference is None
        or reference.shape != (len(pairs), 2)
        or reference.dtype != torch.float32
        or not bool(reference.isfinite().all())
    ):
        raise CheckpointError(f"the checkpoint has no reference log-probabilities of these {len(pairs):,} pairs")
    scored = zip(pairs, reference.tolist(), strict=True)
    return [dataclasses.replace(pair, reference=tuple(values)) for pair, values in scored]


def dpo_batches(pairs: Sequence[Pair], packer: Packer) -> list[DpoBatch]:
    """Pack pairs into micro-batches, in order."""
    groups = packer.group_comparisons([(pair.chosen, pair.rejected) for pair in pairs])
    return [_batch([pairs[number] for number in group], width) for group, width in groups]


def _batch(pairs: Sequence[Pair], width: int) -> DpoBatch:
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    reference = [value for pair in pairs for value in pair.reference]
    lengths = [float(len(reply)) for _, reply in sides]
    return DpoBatch(score_rows(sides, width), torch.tensor(reference), torch.tensor(lengths), len(pairs))


class _DpoMetrics:
    """Accuracy and margin on held-out pairs."""

    def __init__(self, policy: Policy, batches: Sequence[DpoBatch]) -> None:
        self._policy, self._batches = policy, batches

    def __call__(self) -> dict[str, float]:
        gaps: list[float] = []
        chosen: list[float] = []
        for batch in self._batches:
            gains_N = batch.scored.sums(self._policy.score(batch.scored)) - batch.reference_N
            gaps += (gains_N[0::2] - gains_N[1::2]).tolist()
            chosen += gains_N[0::2].tolist()
        if not gaps:
            return {}
        right = sum(gap > 0 for gap in gaps) + 0.5 * sum(gap == 0 for gap in gaps)
        return {
            "accuracy": right / len(gaps),
            "margin": math.fsum(gaps) / len(gaps),
            "chosen_gain": math.fsum(chosen) / len(chosen),
        }
