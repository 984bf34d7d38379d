"""All settings of `groundling pretrain`, and which of them may change when a run goes on."""

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
"""On resume these may differ from the run's own config, and what differs is said; all else would make another run of
it. The text itself, and the models that teach, are compared by their content, wherever they lie."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a GPT: groundling pretrain [PRESET.toml] [--field value ...]. Without a preset, shakespeare_char.toml."""

    out_dir: Path = Path("runs/pretrain")
    """The run's folder."""
    resume: bool | Literal["if-present"] = False
    """Go on from the newest good checkpoint in out_dir; `--resume if-present` starts the run where there is none."""
    init_from: str | None = None
    """A bundle, a checkpoint or a run whose weights, model settings and tokenizer a new run begins with."""
    overwrite: bool = False
    """Remove the run that is in out_dir."""
    seed: int = 1337
    """Of the initial weights, the batches and dropout."""
    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 64
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: int | None = None
    """Sequences per forward pass on one rank, to save memory; nothing else but dropout's draws changes. None: all."""
    order: Order = "epochs"
    """random: offsets drawn with replacement, as in the lecture; epochs: shuffled, each window once an epoch."""
    zero_init: bool = False
    """Start with blocks that change nothing: their projections into the stream are zero."""
    grad_clip: float | None = 1.0
    """The gradient's greatest length; None: as it comes."""
    average_decay: float | None = None
    """Evaluate, save and sample an exponential moving average of the weights, for example 0.999; None: the weights."""
    eval_every: int | None = 250
    """Steps between evaluations on the whole validation split; None: never."""
    estimate_train_loss: bool = True
    """At each evaluation, also estimate the training loss, on at most 512 random windows of the training text."""
    save_every: int | None = 250
    """Steps between checkpoints; None: none, not even at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay, besides the best."""
    patience: int | None = None
    """Stop after this many evaluations without a better one; None: never."""
    log_every: int = 10
    """Steps between records of the training loss."""
    sample_every: int | None = None
    """Steps between samples; None: none."""
    sample_prompt: str = ""
    """What the samples go on from; empty: the beginning of a line."""
    sample_tokens: int = 200
    """Tokens in a sample."""
    sinks: tuple[SinkName, ...] = ()
    """Besides metrics.jsonl and the console: tensorboard, wandb."""
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
        require(not (self.resume and self.overwrite), "resume goes on with a run and overwrite removes it; choose one")
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
