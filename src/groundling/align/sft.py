"""`groundling sft`: supervised fine-tuning, from a base model to a chat model.

The loss is that of pretraining, summed over the assistant's tokens only (InstructGPT, arXiv:2203.02155, section 3.5).
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from groundling.align.arguments import parse_stage
from groundling.align.chat_vocab import with_chat
from groundling.align.data import ChatDataConfig, Conversations, encode_prompts, prepare_conversations
from groundling.align.example_loader import ExampleFeed
from groundling.align.example_training import learn
from groundling.align.lora import LoraConfig, adapt, adapter_of, merged_state
from groundling.align.replies import ReplySampler
from groundling.align.stage import ExamplesConfig, Stage, open_stage
from groundling.bundle import ChatBundle, load_bundle, save_adapter, save_bundle
from groundling.bundle.adapter import Base, base_at
from groundling.bundle.layout import require_language_model
from groundling.data.examples.encoding import Encoded
from groundling.errors import require
from groundling.model.gpt import GPT
from groundling.model.loss import IGNORE, loss_sum
from groundling.model.packer import Packer
from groundling.model.packing import Layout, logits_at, pack
from groundling.model.uninitialized import blank_gpt
from groundling.system import distributed
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig

log = logging.getLogger(__name__)

REPLY_TOKENS = 200
"""Length limit of the replies that measure how many end."""


@dataclass(frozen=True, kw_only=True)
class SftConfig(ExamplesConfig):
    """Fine-tune a model on conversations: groundling sft BUNDLE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """Bundle, checkpoint or run folder."""
    out_dir: Path = Path("runs/sft")
    """Run folder."""
    n_replies: int = 64
    """Replies sampled before and after training to measure the fraction that ends with an end token."""
    data: ChatDataConfig = field(default_factory=ChatDataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-4, weight_decay=0.01, betas=(0.9, 0.95)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="linear", warmup_steps=20))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_replies >= 0, f"n_replies is {self.n_replies}; it must be at least 0")


@dataclass(frozen=True)
class SftBatch:
    """Packed conversations; targets are the assistant's tokens."""

    idx_BT: Tensor
    layout: Layout
    targets_BT: Tensor
    n_targets: int

    def to(self, device: torch.device) -> "SftBatch":
        """Copy to another device."""
        tensors = (self.idx_BT.to(device), self.layout.to(device), self.targets_BT.to(device))
        return SftBatch(*tensors, self.n_targets)


class SftObjective(nn.Module):
    """Cross-entropy in nats, summed over the assistant's tokens."""

    def __init__(self, model: GPT, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, batch: SftBatch) -> Tensor:
        """The loss of a batch."""
        is_reply_BT = batch.targets_BT != IGNORE
        with self.autocast():
            logits_NV = logits_at(self.model, batch.idx_BT, batch.layout, is_reply_BT)
        return loss_sum(logits_NV, batch.targets_BT[is_reply_BT])


def main(argv: Sequence[str]) -> int:
    """The verb `sft`."""
    return sft(parse_stage(SftConfig, argv, "groundling sft"))


def sft(config: SftConfig) -> int:
    """Run the stage; return the exit code.

    Raises:
        GroundlingError: any subclass.
    """
    with open_stage(config, "sft") as stage:
        if stage.has_finished():
            return 0
        require_language_model(config.path)
        base = base_at(config.path)
        bundle = with_chat(load_bundle(config.path, stage.picked.device, context=config.context))
        packer = Packer(config.longest(bundle), config.micro_batch_rows)
        data = prepare_conversations(config.data, bundle, packer.max_length)
        for line in data.lines():
            log.info(line)
        adapt(bundle.model, config.lora, bundle.tokenizer.vocab_size, config.seed)
        feed = conversation_feed(data.train, packer, config)
        stage.find_checkpoint([base.sha256], data.train)
        objective = SftObjective(bundle.model, stage.picked.autocast)
        measure = _SftMetrics(config, stage, bundle, sft_batches(data.val, packer), data, objective)
        ended, figures = learn(stage, config, bundle.model, objective, feed, measure)
        if distributed.is_first():
            _save(config, base, bundle, figures)
        return stage.finish(ended, figures)


def conversation_feed(examples: Sequence[Encoded], packer: Packer, config: ExamplesConfig) -> ExampleFeed:
    """A feed of packed conversations."""

    def make(numbers: list[int]) -> list[SftBatch]:
        return sft_batches([examples[number] for number in numbers], packer)

    return ExampleFeed(len(examples), config.batch_size, make, config.seed)


def sft_batches(examples: Sequence[Encoded], packer: Packer) -> list[SftBatch]:
    """Pack conversations into micro-batches, in order."""
    groups = packer.group_sequences([len(example.ids) for example in examples])
    return [_batch([examples[number] for number in group], width) for group, width in groups]


def _batch(examples: Sequence[Encoded], width: int) -> SftBatch:
    rows = pack([example.ids for example in examples], width)
    targets_BT = rows.masked_targets([example.loss_mask for example in examples])
    return SftBatch(rows.idx_BT, rows.layout, targets_BT, int((targets_BT != IGNORE).sum()))


class _SftMetrics:
    """Validation loss, and the share of replies that end."""

    def __init__(
        self,
        config: SftConfig,
        stage: Stage,
        bundle: ChatBundle,
        batches: Sequence[SftBatch],
        data: Conversations,
        objective: SftObjective,
    ) -> None:
        self._config, self._stage, self._bundle, self._objective = config, stage, bundle, objective
        block_size = bundle.config.block_size
        self._batches = batches
        room = block_size - min(REPLY_TOKENS, block_size // 2)
        prompts = data.prompts.val[: config.n_replies]
        self._prompts = [list(ids) for ids in encode_prompts(prompts, bundle, room)] if prompts else []

    @torch.inference_mode()
    def __call__(self) -> dict[str, float]:
        device = self._stage.picked.device
        figures = {}
        if self._batches:
            nats = sum(float(self._objective(batch.to(device))) for batch in self._batches)
            figures["val_loss"] = nats / max(1, sum(batch.n_targets for batch in self._batches))
        if self._prompts:
            sampler = ReplySampler(self._bundle, max_new_tokens=REPLY_TOKENS)
            replies = [reply for (reply,) in sampler.reply(self._prompts, self._config.seed)]
            figures["replies_ended"] = sum(reply.ended for reply in replies) / len(replies)
            figures["reply_tokens"] = sum(len(reply.ids) for reply in replies) / len(replies)
        return figures


def _save(config: SftConfig, base: Base, bundle: ChatBundle, figures: dict[str, float]) -> None:
    folder, facts = config.out_dir / "bundle", {"stage": "sft", **figures}
    if config.lora.keep:
        save_adapter(folder, adapter_of(bundle.model, config.lora), base, bundle, facts)
        return
    model = blank_gpt(bundle.config)
    model.load_state_dict({name: tensor.cpu() for name, tensor in merged_state(bundle.model).items()}, strict=False)
    save_bundle(folder, model, bundle.tokenizer, facts, bundle.chat)
