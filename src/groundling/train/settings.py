"""The settings of `groundling pretrain`, and which of them may change on resume."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from groundling.data.batches import Order
from groundling.data.corpus import DataConfig
from groundling.errors import require
from groundling.model.config import GPTConfig
from groundling.system.metrics import SinkName
from groundling.system.runtime import RuntimeConfig
from groundling.train.distill.table import TeacherConfig
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig

MAY_CHANGE = (
    "out_dir",
    "resume",
    "overwrite",
    "steps",
    "micro_batch_size",
    "eval_every",
    "estimate_train_loss",
    "save_every",
    "keep_checkpoints",
    "patience",
    "log_every",
    "sample_every",
    "sample_prompt",
    "sample_tokens",
    "sinks",
    "runtime",
    "model.vocab_size",
    "data.name",
    "data.path",
    "teacher.models",
    "teacher.recipes",
    "optim.lr",
    "optim.weight_decay",
    "optim.muon_lr",
    "optim.muon_weight_decay",
    "schedule",
)
"""Settings that may differ on resume; the differences are logged. The text and the teachers are compared by content,
not by path."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a GPT: groundling pretrain [PRESET.toml] [--field value ...]. Default preset: shakespeare_char.toml."""

    out_dir: Path = Path("runs/pretrain")
    """Run folder."""
    resume: bool | Literal["if-present"] = False
    """Resume from the newest valid checkpoint in out_dir; `--resume if-present` starts a new run if there is none."""
    init_from: str | None = None
    """Initialize from a bundle, checkpoint or run: weights, model settings and tokenizer."""
    overwrite: bool = False
    """Remove an existing run in out_dir."""
    seed: int = 1337
    """Seed of the initial weights, the batches and dropout."""
    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 64
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: int | None = None
    """Sequences per forward pass and rank, to save memory; only dropout masks depend on it. None: all."""
    order: Order = "epochs"
    """random: windows drawn with replacement, as in the lecture; epochs: shuffled, each window once per epoch."""
    zero_init: bool = False
    """Zero-initialize the output projections of the blocks, so that each block starts as the identity."""
    grad_clip: float | None = 1.0
    """Maximum gradient norm; None: no clipping."""
    average_decay: float | None = None
    """Decay of an exponential moving average of the weights, used to evaluate, save and sample, for example 0.999;
    None: off."""
    eval_every: int | None = 250
    """Steps between evaluations on the whole validation split; None: never."""
    estimate_train_loss: bool = True
    """Also estimate the training loss at each evaluation, on up to 512 random windows of the training split."""
    save_every: int | None = 250
    """Steps between checkpoints; None: never, not even at the end."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, besides the best."""
    patience: int | None = None
    """Stop after this many evaluations without improvement; None: never."""
    log_every: int = 10
    """Steps between records of the training loss."""
    sample_every: int | None = None
    """Steps between samples; None: never."""
    sample_prompt: str = ""
    """Prompt of the samples; empty: the beginning of a line."""
    sample_tokens: int = 200
    """Length of a sample in tokens."""
    sinks: tuple[SinkName, ...] = ()
    """Metrics sinks besides metrics.jsonl and the console: tensorboard, wandb."""
    data: DataConfig = field(default_factory=DataConfig)
    model: GPTConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.sample_tokens >= 0, f"sample_tokens is {self.sample_tokens}; it must be at least 0")
        for name in ("micro_batch_size", "eval_every", "save_every", "sample_every", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; it must be at least 1, or None")
        require(self.grad_clip is None or self.grad_clip > 0, f"grad_clip is {self.grad_clip}; it must be positive")
        decay = self.average_decay
        require(decay is None or 0 < decay < 1, f"average_decay is {decay}; it must be between 0 and 1, or None")
        require(self.patience is None or self.eval_every is not None, "patience needs eval_every")
        require(not (self.resume and self.overwrite), "resume continues a run and overwrite removes it; choose one")
        require(self.init_from != "", "init_from is empty; give a bundle, a checkpoint or a run, or leave it out")
        require(
            self.init_from is None or not self.zero_init,
            "zero_init is for new weights, and init_from brings trained ones; choose one",
        )
        for model in self.teacher.models:
            inside = Path(model).resolve().is_relative_to(self.out_dir.resolve())
            require(not inside, f"teacher.models names {model}, inside of out_dir; a run cannot teach itself")
        for sink in self.sinks:
            require(sink in get_args(SinkName), f"no sink {sink!r}; it can be {' or '.join(get_args(SinkName))}")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be at least 0 and below 2**63")
