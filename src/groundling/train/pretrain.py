"""`groundling pretrain`: from a text to a run folder with checkpoints, records and a bundle that speaks."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from groundling import atomicio, dist, runtime
from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.config import differences, parse, require, to_dict, to_toml
from groundling.data.batches import Batches, Order
from groundling.data.corpus import Corpus, DataConfig, prepare
from groundling.errors import CheckpointError, TrainingError
from groundling.log import ConsoleSink, JsonlSink, Sink, optional_sinks
from groundling.model.gpt import GPT, GPTConfig
from groundling.runtime import Runtime, RuntimeConfig
from groundling.sample.generate import SamplingConfig, generate
from groundling.train import rundir
from groundling.train.average import WeightAverage
from groundling.train.checkpoint import Checkpoints, RunFacts, read_state, restore
from groundling.train.estimate import describe_seconds, estimate, total_flops
from groundling.train.loop import train
from groundling.train.optim import OptimConfig, Optimizers
from groundling.train.schedule import ScheduleConfig
from groundling.train.signals import StopRequest, stop_on_signals
from groundling.train.state import TrainState
from groundling.train.step import Objective
from groundling.train.watch import Plan, RunWatcher, make_deterministic

DEFAULT_PRESET = "shakespeare_char.toml"

WORTH_COMPILING_FLOPS = 2e13
"""A run of less work than this takes about a minute on two cores, and compiling takes half of that."""

MAY_CHANGE = (
    "out_dir",
    "resume",
    "overwrite",
    "n_steps",
    "micro_batch_size",
    "eval_every",
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
)
"""On resume these may differ from the run's own config; all else would make another run of it. The text itself is
compared by its content, wherever it lies."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a GPT: groundling pretrain [PRESET.toml] [--field value ...]. Without a preset, shakespeare_char.toml."""

    out_dir: Path = Path("runs/pretrain")
    """The run's folder."""
    resume: bool = False
    """Go on from the newest good checkpoint in out_dir."""
    overwrite: bool = False
    """Remove the run that is in out_dir."""
    seed: int = 1337
    """Of the initial weights, the batches and dropout."""
    n_steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 64
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: int | None = None
    """Sequences per forward pass on one rank; less needs less memory and changes nothing else. None: all at once."""
    order: Order = "epochs"
    """random: offsets drawn with replacement, as in the lecture; epochs: shuffled, each window once an epoch."""
    grad_clip: float | None = 1.0
    """The gradient's greatest length; None: as it comes."""
    average_decay: float | None = None
    """Evaluate, save and sample an exponential moving average of the weights, for example 0.999; None: the weights."""
    eval_every: int | None = 250
    """Steps between evaluations on the whole validation split; None: never."""
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
    sinks: tuple[str, ...] = ()
    """Besides metrics.jsonl and the console: tensorboard, wandb."""
    data: DataConfig = field(default_factory=DataConfig)
    model: GPTConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "log_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("micro_batch_size", "eval_every", "save_every", "sample_every", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; it must be at least 1, or None")
        require(self.grad_clip is None or self.grad_clip > 0, f"grad_clip is {self.grad_clip}; it must be positive")
        decay = self.average_decay
        require(decay is None or 0 < decay < 1, f"average_decay is {decay}; it must be between 0 and 1, or None")
        require(self.patience is None or self.eval_every is not None, "patience needs eval_every")
        require(not (self.resume and self.overwrite), "resume goes on with a run and overwrite removes it; choose one")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be at least 0 and below 2**63")


@dataclass(frozen=True)
class RunSummary:
    """What `summary.json` says of a run, and `pretrain` returns."""

    reason: str
    """"finished", or why it ended before."""
    exit_code: int
    steps: int
    tokens: int
    train_s: float
    wall_s: float
    val_loss: float | None
    best_val_loss: float | None
    best_step: int | None
    parameters: int
    tokens_per_s: float | None
    utilisation: float | None
    memory_mb: float


def main(argv: Sequence[str]) -> int:
    """The verb `pretrain`: returns 0, or 128 + a signal's number when one asked it to stop."""
    config = parse(PretrainConfig, argv, "groundling pretrain", default_preset=DEFAULT_PRESET)
    return pretrain(config).exit_code


def pretrain(config: PretrainConfig) -> RunSummary:
    """Train as the config says, alone or as one of torchrun's ranks.

    Raises:
        GroundlingError: one of its kinds, in one line; what was saved before is still there.
    """
    started = time.perf_counter() - runtime.process_age_s()
    device = runtime.pick_device(config.runtime.device)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        stack.enter_context(dist.process_group(device))
        if dist.is_first():
            stack.enter_context(rundir.locked(config.out_dir))
        dist.barrier()
        return _Run(config, stop, started, stack).run()


class _Run:
    """One run, from its config to its end. Its parts are made in the order in which they need each other."""

    def __init__(self, config: PretrainConfig, stop: StopRequest, started: float, stack: ExitStack) -> None:
        self.config, self.stop, self.started = config, stop, started
        self.console = ConsoleSink(config.n_steps) if dist.is_first() else None
        if self.console is not None:
            stack.callback(self.console.close)
        self.resume_from = self._find_checkpoint()
        self.corpus = self._prepare_data()
        vocab_size = self.corpus.tokenizer.vocab_size
        self.model_config = dataclasses.replace(config.model, vocab_size=vocab_size)
        torch.manual_seed(config.seed)
        self.model = GPT(self.model_config)
        self.picked = self._pick_runtime()
        self.model = self.model.to(self.picked.device, self.picked.weight_dtype)
        self.facts = self._facts()
        self.checkpoints = Checkpoints(config.out_dir / "checkpoints", config.keep_checkpoints)

    def run(self) -> RunSummary:
        """Train, and write down what came of it."""
        config = self.config
        self._say_estimate()
        # Before the state: it draws random numbers, and a resumed run's generators have to stay where they were.
        peak = runtime.measure_matmul_peak(self.picked.device, self.picked.compute_dtype)
        state = self._state()
        if self.resume_from is not None:
            restore(self.resume_from, state)
        self.wall_before = state.progress.wall_s
        watcher = self._watcher(state, peak)
        try:
            reason = train(
                state, n_steps=config.n_steps, schedule=config.schedule, max_norm=config.grad_clip, watcher=watcher
            )
        except TrainingError as error:
            raise TrainingError(
                f"stopped at step {state.progress.step + 1}: {error}; the checkpoints are as they were, "
                "lower the learning rate and --resume, or start anew"
            ) from error
        finally:
            for sink in watcher.sinks:
                sink.close()
        return self._finish(state, reason, peak)

    def say(self, text: str) -> None:
        """Print a line; only the first rank does."""
        if self.console is not None:
            self.console.say(text)

    def _find_checkpoint(self) -> Path | None:
        """What to go on from, on all ranks the same; or make room for a new run."""
        config = self.config
        if not config.resume:
            if dist.is_first():
                rundir.make_room(config.out_dir, overwrite=config.overwrite)
            dist.barrier()
            return None
        if dist.is_first():
            path, passed_over = rundir.find_resumable(config.out_dir)
            for why in passed_over:
                self.say(f"passed over: {why}")
        dist.barrier()
        path, _ = Checkpoints(config.out_dir / "checkpoints").newest_good()
        self.say(f"resuming from {path}")
        return path

    def _prepare_data(self) -> Corpus:
        """The first rank prepares the token files, the others then find them."""
        config = self.config
        if dist.is_first():
            corpus = prepare(config.data, config.model.block_size)
        dist.barrier()
        if not dist.is_first():
            corpus = prepare(config.data, config.model.block_size)
        return corpus

    def _pick_runtime(self) -> Runtime:
        """Compilation is decided by the work of the whole run, so that a resumed run decides as the first one did."""
        config = self.config
        if self.resume_from is not None:
            worth_compiling = bool(read_state(self.resume_from)["compiled"])
        else:
            work = total_flops(self.model, config.n_steps, config.batch_size)
            worth_compiling = work > WORTH_COMPILING_FLOPS
        picked = runtime.pick(config.runtime, worth_compiling)
        make_deterministic(picked.device)
        for line in picked.lines():
            self.say(line)
        return picked

    def _facts(self) -> RunFacts:
        """Who this run is: as its checkpoint says, when it goes on, and the config must agree with it."""
        plain = to_dict(dataclasses.replace(self.config, model=self.model_config))
        run_id = rundir.new_run_id()
        if self.resume_from is not None:
            record = read_state(self.resume_from)
            run_id = record["run_id"]
            self._require_same_run(record, plain)
        return RunFacts(
            run_id=run_id, config=plain, data_fingerprint=self.corpus.fingerprint, compiled=self.picked.compile
        )

    def _require_same_run(self, record: dict[str, Any], plain: dict[str, Any]) -> None:
        changed = [
            line
            for line in differences(record["config"], plain)
            if not any(line.startswith((f"{name}:", f"{name}.")) for name in MAY_CHANGE)
        ]
        if changed:
            raise CheckpointError(
                f"{self.config.out_dir} was trained with other settings ({'; '.join(changed)}); "
                "resume with its own, which are in its run.toml, or start a new run in another --out-dir"
            )
        if record["data_fingerprint"] != self.corpus.fingerprint:
            raise CheckpointError(
                f"the text or its tokenizer is not the one that {self.config.out_dir} was trained on; "
                "resume with that text, or start a new run in another --out-dir"
            )

    def _say_estimate(self) -> None:
        config = self.config
        share = config.batch_size // dist.world_size()
        cost = estimate(
            self.model,
            self.picked,
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            micro_batch_size=min(config.micro_batch_size or share, max(1, share)),
            n_train_tokens=len(self.corpus.train),
        )
        for line in cost.lines():
            self.say(line)

    def _state(self) -> TrainState:
        config, picked = self.config, self.picked
        objective = Objective(self.model, autocast=picked.autocast)
        say = self.say if dist.is_first() else lambda _: None
        objective.forward = runtime.compile_or_fall_back(objective.forward, picked, say)  # type: ignore[method-assign]
        optimizers = Optimizers(self.model, config.optim, picked.compute_dtype)
        batches = Batches(
            self.corpus.train.ids,
            block_size=config.model.block_size,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            order=config.order,
            seed=config.seed,
            rank=dist.rank(),
            world_size=dist.world_size(),
        )
        average = None if config.average_decay is None else WeightAverage(self.model, config.average_decay)
        torch.manual_seed(config.seed + dist.rank())  # from here on, dropout: other ranks drop other numbers
        return TrainState(self.model, dist.wrap(objective), optimizers, batches, average)

    def _watcher(self, state: TrainState, peak: float) -> RunWatcher:
        config = self.config
        watcher = RunWatcher(
            plan=Plan(
                n_steps=config.n_steps,
                eval_every=config.eval_every,
                save_every=config.save_every,
                log_every=config.log_every,
                sample_every=config.sample_every,
                patience=config.patience,
            ),
            picked=self.picked,
            val_tokens=self.corpus.val.ids,
            save=self._save,
            speak=self._speak,
            sinks=self._sinks(state.progress.step),
            stop=self.stop,
            flops_per_token=self.model.flops_per_token(),
            peak_flops=peak * dist.world_size(),
            say=self.say,
        )
        watcher.resume_at(state)
        return watcher

    def _sinks(self, step: int) -> list[Sink]:
        """The record and its views; only the first rank has any."""
        config = self.config
        if self.console is None:
            return []
        run = config.out_dir
        atomicio.write_text(run / "run.toml", to_toml(dataclasses.replace(config, resume=False, overwrite=False)))
        about = {"run_id": self.facts.run_id, **runtime.environment(), **self.picked.reasons}
        atomicio.write_json(run / "env.json", about)
        (run / "summary.json").unlink(missing_ok=True)
        record = JsonlSink(run / "metrics.jsonl", resumed_at=step if config.resume else None)
        more = optional_sinks(config.sinks, run, self.facts.config, self.facts.run_id)
        return [record, self.console, *more]

    def _save(self, state: TrainState) -> None:
        state.progress.wall_s = self._wall_s()
        self.checkpoints.save(state, self.model_config, self.corpus.tokenizer, self.facts)

    def _speak(self) -> str:
        bundle = Bundle(self.model_config, self.model, self.corpus.tokenizer)
        config = self.config
        how = SamplingConfig(max_new_tokens=config.sample_tokens, seed=config.seed)
        return config.sample_prompt + generate(bundle, config.sample_prompt, how)

    def _wall_s(self) -> float:
        return self.wall_before + time.perf_counter() - self.started

    def _finish(self, state: TrainState, reason: str, peak: float) -> RunSummary:
        """Leave the best model as the run's bundle, and the summary last: where it is, the run is over."""
        progress, run = state.progress, self.config.out_dir
        interrupted = bool(self.stop) and reason != "finished"
        speed = progress.n_tokens / progress.train_s if progress.train_s else None
        if dist.is_first() and not interrupted:
            self._leave_bundle(state)
        summary = RunSummary(
            reason=reason,
            exit_code=self.stop.exit_code if interrupted else 0,
            steps=progress.step,
            tokens=progress.n_tokens,
            train_s=round(progress.train_s, 3),
            wall_s=round(self._wall_s(), 3),
            val_loss=progress.val_loss,
            best_val_loss=None if progress.best_step is None else progress.best_val_loss,
            best_step=progress.best_step,
            parameters=self.model.n_parameters(),
            tokens_per_s=None if speed is None else round(speed, 1),
            utilisation=None
            if speed is None
            else round(speed * self.model.flops_per_token() / (peak * dist.world_size()), 4),
            memory_mb=round(runtime.peak_memory_bytes(self.picked.device) / 1e6, 1),
        )
        if dist.is_first():
            if not interrupted:
                atomicio.write_json(run / "summary.json", dataclasses.asdict(summary))
            self.say(_last_words(summary, run))
        return summary

    def _leave_bundle(self, state: TrainState) -> None:
        """The best checkpoint's bundle, or without checkpoints the model as it is now, becomes the run's."""
        folder, about = self.config.out_dir / "bundle", {"run_id": self.facts.run_id}
        for best in self.checkpoints.by_loss(self.facts.run_id):
            try:
                bundle = load_bundle(best, dtype=self.picked.weight_dtype)
            except CheckpointError as error:
                self.say(f"passed over: {error}")
                continue
            save_bundle(folder, bundle.model, bundle.tokenizer, {**about, "checkpoint": best.name})
            return
        with state.ready_to_judge():
            save_bundle(folder, self.model, self.corpus.tokenizer, about)


def _last_words(summary: RunSummary, run: Path) -> str:
    """The end of a run in one line."""
    done = f"{summary.steps:,} steps, {summary.tokens:,} tokens in {describe_seconds(summary.train_s)} of training"
    if summary.exit_code and not summary.steps:
        return f"stopped as asked before the first step; nothing was saved, start anew with --overwrite --out-dir {run}"
    if summary.exit_code:
        return f"stopped as asked after {done}; go on with --resume --out-dir {run}"
    loss = "" if summary.best_val_loss is None else f"; best validation loss {summary.best_val_loss:.4f}"
    why = "" if summary.reason == "finished" else f" ({summary.reason})"
    return f"done{why}: {done}{loss}; let it speak: groundling sample {run}"
