"""Train a rung for hours: record metrics, save checkpoints, and resume bit for bit.

The folder has the layout of a `pretrain` run, so `plot`, the Train page and `verify-checkpoint` work on it. Its bundle
holds the production model with the rung's weights, for `sample`.
"""

import logging
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from groundling.bundle import save_bundle
from groundling.bundle.layout import CHECKPOINTS
from groundling.data.corpus import Corpus
from groundling.errors import CheckpointError, GroundlingError
from groundling.ladder.rungs import Rung
from groundling.ladder.runs.begin import begin
from groundling.ladder.runs.short_run import Trained
from groundling.ladder.s8_scaled import ScaledModel
from groundling.ladder.s9_production import production_gpt
from groundling.model.gpt import GPT
from groundling.system import hardware
from groundling.system.hardware import Peak
from groundling.system.metrics import read_records
from groundling.system.runtime import RuntimeConfig
from groundling.system.signals import ASKED_TO_STOP
from groundling.train.callbacks import Evaluate, Every, Record, Save, StopOnSignal, Throughput, final_figures
from groundling.train.checkpoints.checkpoint import Checkpoints, RunFacts, read_state, restore
from groundling.train.estimate import describe_seconds
from groundling.train.loop import train
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.run import open_run
from groundling.train.run_folder import RunSummary
from groundling.train.state import TrainState

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


@dataclass(frozen=True, kw_only=True)
class _RungConfig:
    """What identifies the run of a rung, and what to do with an earlier run."""

    out_dir: Path
    resume: bool
    overwrite: bool
    rung: str
    steps: int
    seed: int

    @property
    def runtime(self) -> RuntimeConfig:
        """As `begin` picks it."""
        return RuntimeConfig()


def train_recorded(run: LongRun, rung: Rung, corpus: Corpus, *, n_steps: int, seed: int) -> Trained:
    """Train a rung in its run folder, or resume it with the bits of an uninterrupted run.

    Raises:
        RungStoppedError: a signal stopped it; everything is saved.
        CheckpointError: there is nothing to resume, the settings differ, or another process uses the folder.
        ConfigError: the folder holds a run, and neither `resume` nor `overwrite` is set.
    """
    config = _RungConfig(
        out_dir=run.folder, resume=run.resume, overwrite=run.overwrite, rung=rung.name, steps=n_steps, seed=seed
    )
    with open_run(config, "ladder") as opened:
        checkpoint = opened.find_checkpoint()
        record = None if checkpoint is None else _read_own_state(checkpoint, config, corpus.fingerprint)

        state, picked = begin(rung, corpus, seed, None if record is None else bool(record["compiled"]))
        opened.picked = picked
        if checkpoint is not None and record is not None:
            restore(checkpoint, state)
            opened.continue_from(record["run_id"], state.progress.wall_s)
        facts = RunFacts(
            run_id=opened.run_id,
            config={"rung": rung.name, "seed": seed},
            data_fingerprint=corpus.fingerprint,
            compiled=picked.compile,
        )
        gpt = _as_gpt(state.model)
        as_gpt = None if gpt is state.model else _as_gpt
        checkpoints = Checkpoints(run.folder / CHECKPOINTS, as_gpt=as_gpt)

        def save(state: TrainState) -> None:
            state.progress.wall_s = opened.wall_s()
            checkpoints.save(state, gpt.config, corpus.tokenizer, facts)

        opened.show_progress(n_steps, state.progress.step, plain_every_s=2.0)
        for line in picked.lines():
            log.info(line)
        metrics = opened.begin(state.progress.step, preset=False)
        peak = Peak(hardware.measure_matmul_peak(picked.device, picked.compute_dtype))
        every, throughput = partial(Every, n_steps=n_steps), Throughput(gpt.flops_per_token(), peak)
        evaluations = every(max(1, n_steps // EVALUATIONS))
        reason = train(
            state,
            n_steps=n_steps,
            schedule=ScheduleConfig(kind="constant", warmup_steps=0),
            callbacks=[
                StopOnSignal(opened),
                Evaluate(evaluations, metrics, corpus.val.ids, corpus.train.ids, picked, opened.stop),
                # Also by the clock: a step takes ten seconds on one machine and a fifth of one on another.
                Save(every(n_steps), save, every_s=run.save_every_s),
                Record(every(1), metrics, throughput, picked.device, state),
            ],
        )
        if reason != ASKED_TO_STOP:
            save_bundle(run.folder / "bundle", _as_gpt(state.model), corpus.tokenizer, {"run_id": facts.run_id})
        summary = opened.finish(reason, final_figures(state, throughput, picked.device))
        if reason == ASKED_TO_STOP:
            raise RungStoppedError(_how_to_continue(config, summary), summary.exit_code)
    records = read_records(run.folder / "metrics.jsonl")
    losses, val_losses = (
        [(record["step"], record[kind]) for record in records if kind in record] for kind in ("loss", "val_loss")
    )
    return Trained(state, picked, losses, val_losses, summary.wall_s)


def _read_own_state(checkpoint: Path, config: _RungConfig, fingerprint: str) -> dict[str, Any]:
    """`state.json` of a checkpoint that belongs to this rung, seed and text."""
    record = read_state(checkpoint)
    found = {**record["config"], "data": record["data_fingerprint"]}
    asked = {"rung": config.rung, "seed": config.seed, "data": fingerprint}
    changed = [f"{name}: {found.get(name)} -> {asked[name]}" for name in asked if found.get(name) != asked[name]]
    if changed:
        raise CheckpointError(
            f"{config.out_dir} was trained with other settings ({'; '.join(changed)}); "
            "start a new run in another --out-dir"
        )
    return record


def _as_gpt(model: nn.Module) -> GPT:
    """Convert s8 or s9 to the production model without consuming random numbers, which dropout depends on."""
    if isinstance(model, GPT):
        return model
    assert isinstance(model, ScaledModel)
    with torch.random.fork_rng(devices=[]):
        return production_gpt(model)


def _how_to_continue(config: _RungConfig, summary: RunSummary) -> str:
    steps, trained = summary.figures["steps"], describe_seconds(summary.figures["train_s"])
    return (
        f"{config.rung} stopped after {steps:,} steps, {trained} of training; continue "
        f"with groundling ladder --rungs {config.rung} --steps {config.steps} --seed {config.seed} --resume "
        f"--out-dir {shlex.quote(str(config.out_dir.parent))}"
    )
