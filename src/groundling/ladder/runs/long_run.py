"""Train a rung for hours: record metrics, save checkpoints, and resume bit for bit.

The folder has the layout of a `pretrain` run, so `plot`, the Train page and `verify-checkpoint` work on it. Its bundle
holds the production model with the rung's weights, for `sample`.
"""

import dataclasses
import logging
import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from groundling.bundle import save_bundle
from groundling.data.corpus import Corpus
from groundling.errors import CheckpointError, GroundlingError
from groundling.ladder.rungs import Rung
from groundling.ladder.runs.begin import begin
from groundling.ladder.runs.short_run import Trained
from groundling.ladder.s8_scaled import ScaledModel
from groundling.ladder.s9_production import production_gpt
from groundling.model.gpt import GPT
from groundling.storage import atomic
from groundling.system import hardware
from groundling.system.console import ConsoleSink
from groundling.system.hardware import Peak
from groundling.system.metrics import JsonlSink, Sink, read_records
from groundling.system.runtime import Runtime
from groundling.system.signals import ASKED_TO_STOP, StopRequest, stop_on_signals
from groundling.train import run_folder
from groundling.train.callbacks import Plan, RunWatcher
from groundling.train.checkpoints.checkpoint import Checkpoints, RunFacts, read_state, restore
from groundling.train.estimate import describe_seconds
from groundling.train.loop import train
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import TrainState
from groundling.train.summary import RunSummary

log = logging.getLogger(__name__)

EVALUATIONS = 10
"""As in the lecture: every 500 of 5,000 steps."""


class RungStoppedError(GroundlingError):
    """A signal stopped training after a checkpoint was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """Run folder of a rung, and how to treat an existing run in it."""

    folder: Path
    resume: bool = False
    """Continue it."""
    overwrite: bool = False
    """Remove it."""
    save_every_s: float = 120.0
    """Seconds between checkpoints."""


def train_recorded(run: LongRun, rung: Rung, corpus: Corpus, *, n_steps: int, seed: int) -> Trained:
    """Train a rung in its run folder, or resume it with the bits of an uninterrupted run.

    Raises:
        RungStoppedError: a signal stopped it; everything is saved.
        CheckpointError: there is nothing to resume, the settings differ, or another process holds the folder.
        ConfigError: the folder has a run, and neither `resume` nor `overwrite` is set.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        if not run.resume:
            run_folder.require_room(run.folder, overwrite=run.overwrite)
        stack.enter_context(run_folder.locked(run.folder))
        checkpoint = _checkpoint(run, rung, seed, corpus.fingerprint)
        before = None if checkpoint is None else read_state(checkpoint)
        state, picked = begin(rung, corpus, seed, None if before is None else bool(before["compiled"]))
        if checkpoint is None:
            stack.enter_context(run_folder.new_run(run.folder, stop))
        else:
            restore(checkpoint, state)
        facts = RunFacts(
            run_id=run_folder.new_run_id() if before is None else before["run_id"],
            config={"rung": rung.name, "seed": seed},
            data_fingerprint=corpus.fingerprint,
            compiled=picked.compile,
        )
        watcher = _RungWatcher(run, n_steps, state, picked, corpus, facts, stop, started)
        try:
            reason = train(
                state, n_steps=n_steps, schedule=ScheduleConfig(kind="constant", warmup_steps=0), watcher=watcher
            )
        finally:
            watcher.close()
        return watcher.finish(state, reason)


def _checkpoint(run: LongRun, rung: Rung, seed: int, fingerprint: str) -> Path | None:
    """Return the checkpoint to resume from; None for a new run."""
    if not run.resume:
        return None
    path, _ = run_folder.find_resumable(run.folder)
    record = read_state(path)
    found = {**record["config"], "data": record["data_fingerprint"]}
    asked = {"rung": rung.name, "seed": seed, "data": fingerprint}
    changed = [f"{name}: {found.get(name)} -> {asked[name]}" for name in asked if found.get(name) != asked[name]]
    if changed:
        raise CheckpointError(
            f"{run.folder} was trained with other settings ({'; '.join(changed)}); start a new run in another --out-dir"
        )
    return path


def _as_gpt(model: nn.Module) -> GPT:
    """Convert s8 or s9 to the production model without consuming random numbers, which dropout depends on."""
    if isinstance(model, GPT):
        return model
    assert isinstance(model, ScaledModel)
    with torch.random.fork_rng(devices=[]):
        return production_gpt(model)


class _RungWatcher(RunWatcher):
    """The watcher of `pretrain` with checkpoints by time: a step takes between 0.2 and 10 seconds."""

    def __init__(
        self,
        run: LongRun,
        n_steps: int,
        state: TrainState,
        picked: Runtime,
        corpus: Corpus,
        facts: RunFacts,
        stop: StopRequest,
        started: float,
    ) -> None:
        self._run, self._facts, self._tokenizer = run, facts, corpus.tokenizer
        gpt = _as_gpt(state.model)
        self._config = gpt.config
        self._checkpoints = Checkpoints(run.folder / "checkpoints", as_gpt=None if gpt is state.model else _as_gpt)
        self._started = started - state.progress.wall_s
        self._saved_s = time.perf_counter()
        self._console = ConsoleSink(n_steps, state.progress.step, plain_every_s=2.0)
        super().__init__(
            plan=Plan(
                n_steps=n_steps,
                eval_every=max(1, n_steps // EVALUATIONS),
                save_every=n_steps,
                log_every=1,
                sample_every=None,
                patience=None,
            ),
            picked=picked,
            val_tokens=corpus.val.ids,
            train_tokens=corpus.train.ids,
            save=self._write,
            sample_text=str,
            sinks=self._make_sinks(state, picked),
            stop=stop,
            flops_per_token=gpt.flops_per_token(),
            peak=Peak(hardware.measure_matmul_peak(picked.device, picked.compute_dtype)),
        )
        self.resume_at(state)
        for line in picked.lines():
            log.info(line)

    def before_step(self, state: TrainState) -> None:
        """Do what `pretrain` does, and save a checkpoint if the last one is too old."""
        super().before_step(state)
        if time.perf_counter() - self._saved_s >= self._run.save_every_s:
            self._save_once(state)
            self._saved_s = time.perf_counter()

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.close()

    def finish(self, state: TrainState, reason: str) -> Trained:
        """Write bundle and summary, and read the curves back from metrics.jsonl.

        Raises:
            RungStoppedError: a signal stopped the run.
        """
        folder, summary = self._run.folder, self.summary(state, reason, time.perf_counter() - self._started)
        if reason == ASKED_TO_STOP:
            raise RungStoppedError(self._how_to_continue(summary), summary.exit_code)
        save_bundle(folder / "bundle", _as_gpt(state.model), self._tokenizer, {"run_id": self._facts.run_id})
        atomic.write_json(folder / "summary.json", dataclasses.asdict(summary))
        records = read_records(folder / "metrics.jsonl")
        losses, val_losses = (
            [(record["step"], record[kind]) for record in records if kind in record] for kind in ("loss", "val_loss")
        )
        return Trained(state, self.picked, losses, val_losses, summary.wall_s)

    def _how_to_continue(self, summary: RunSummary) -> str:
        rung, seed = self._facts.config["rung"], self._facts.config["seed"]
        return (
            f"{rung} stopped after {summary.steps:,} steps, {describe_seconds(summary.train_s)} of training; continue "
            f"with groundling ladder --rungs {rung} --steps {self.plan.n_steps} --seed {seed} --resume "
            f"--out-dir {shlex.quote(str(self._run.folder.parent))}"
        )

    def _make_sinks(self, state: TrainState, picked: Runtime) -> list[Sink]:
        folder, step = self._run.folder, state.progress.step
        about = {"run_id": self._facts.run_id, "stage": "ladder", **hardware.environment(), **picked.reasons}
        atomic.write_json(folder / "env.json", about)
        atomic.remove(folder / "summary.json")
        return [JsonlSink(folder / "metrics.jsonl", resumed_at=step if self._run.resume else None), self._console]

    def _write(self, state: TrainState) -> None:
        state.progress.wall_s = time.perf_counter() - self._started
        self._checkpoints.save(state, self._config, self._tokenizer, self._facts)
