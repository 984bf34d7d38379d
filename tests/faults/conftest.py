"""Tiny runs, in this process and in others, and tiny states to save: what the tests of faults in training share."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from groundling.config import to_toml
from groundling.data.batches import Batches
from groundling.data.corpus import DataConfig
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.storage import atomic
from groundling.system import hardware
from groundling.system.logs import Record
from groundling.system.metrics import read_records
from groundling.system.runtime import RuntimeConfig
from groundling.text.char import CharTokenizer
from groundling.train.checkpoints.checkpoint import Checkpoints, RunFacts
from groundling.train.optim.ema import WeightAverage
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.pretrain import pretrain
from groundling.train.run_folder import RunSummary
from groundling.train.settings import PretrainConfig
from groundling.train.state import TrainState
from groundling.train.step import Objective, train_step

MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.2)
WEIGHTS, TRAINING = "bundle/model.safetensors", "training.safetensors"


def write_text(path: Path, n_chars: int, letters: str = "abcdefgh \n", seed: int = 0) -> Path:
    """A text of letters that follow each other in no order."""
    path.write_text("".join(random.Random(seed).choices(letters, k=n_chars)), encoding="utf-8")
    return path


class TinyRuns:
    """Runs of a second or two, on a text of their own, each in a folder under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = write_text(folder / "text.txt", 4000)
        self._processes: list[subprocess.Popen[str]] = []

    def config(self, out_dir: Path, **changes: Any) -> PretrainConfig:
        """Dropout on, every loss recorded, a checkpoint every five steps; `changes` win, nested as dictionaries."""
        config = PretrainConfig(
            out_dir=out_dir,
            steps=20,
            batch_size=4,
            eval_every=5,
            save_every=5,
            log_every=1,
            data=DataConfig(path=str(self.text)),
            model=MODEL,
            schedule=ScheduleConfig(kind="constant", warmup_steps=3),
            optim=OptimConfig(lr=3e-3),
            runtime=RuntimeConfig(device="cpu", dtype="float32", compile="off", tune_allocator=False),
        )
        nested = {
            name: dataclasses.replace(getattr(config, name), **value)
            for name, value in changes.items()
            if isinstance(value, dict)
        }
        return dataclasses.replace(config, **{**changes, **nested})

    def pretrain(self, out_dir: Path, **changes: Any) -> RunSummary:
        """Train in this process."""
        return pretrain(self.config(out_dir, **changes))

    def command(self, config: PretrainConfig, *flags: str) -> list[str]:
        """What a user would type, settings in a preset."""
        preset = self.folder / f"preset-{len(list(self.folder.glob('preset-*')))}.toml"
        preset.write_text(to_toml(config), encoding="utf-8")
        return [sys.executable, "-m", "groundling", "pretrain", str(preset), *flags]

    def start(
        self, config: PretrainConfig, *flags: str, env: dict[str, str] | None = None, n_ranks: int = 0, **popen: Any
    ) -> subprocess.Popen[str]:
        """Start a run in a process of its own (or under torchrun), which does not outlive the test."""
        command = self.command(config, *flags)
        if n_ranks:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
            command[1:1] = torchrun
        process = subprocess.Popen(
            command,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **popen,
        )
        self._processes.append(process)
        return process

    def finish(self, config: PretrainConfig, *flags: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run in a process of its own, to its end."""
        process = self.start(config, *flags, **how)
        out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def stop_all(self) -> None:
        """End what is still running, with all its children."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    # A state to save, without a run around it

    def state(self, step: int, val_loss: float | None = None, decay: float | None = None) -> TrainState:
        """A state whose weights and optimizers follow from `step` alone."""
        generator_state = torch.get_rng_state()
        torch.manual_seed(step)
        model = GPT(dataclasses.replace(MODEL, n_embd=16, vocab_size=5))
        state = TrainState(
            model,
            Objective(model),
            Optimizers(model, OptimConfig()),
            Batches(np.arange(200, dtype=np.uint16) % 5, block_size=16, batch_size=2, seed=3),
            None if decay is None else WeightAverage(model, decay),
        )
        train_step(state.objective, state.batches.next_step(), state.optimizers)
        state.progress.step = step
        if val_loss is not None:
            state.progress.record_evaluation(val_loss)
        torch.set_rng_state(generator_state)
        return state

    def save(self, checkpoints: Checkpoints, state: TrainState, run_id: str = "ours") -> Path:
        """Save a state as a checkpoint of a run."""
        facts = RunFacts(run_id=run_id, config={}, data_fingerprint="", compiled=False)
        return checkpoints.save(state, state.model.config, CharTokenizer("\nabcd"), facts)


@pytest.fixture(scope="session")
def _token_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _hasten(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Token files of their own, and no measurement of the machine before each run, which takes half of its time."""
    patch.setenv("GROUNDLING_CACHE", str(cache))
    patch.setattr(hardware, "measure_matmul_peak", _peak_at_once)


def _peak_at_once(device: torch.device, dtype: torch.dtype) -> float:
    """Draws random numbers, as the real measurement does: a resumed run must not notice."""
    torch.randn(8, 8, device=device)
    return 1e10


@pytest.fixture
def tiny(tmp_path, monkeypatch, _token_cache):
    """Makes tiny runs."""
    _hasten(monkeypatch, _token_cache)
    runs = TinyRuns(tmp_path)
    yield runs
    runs.stop_all()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, _token_cache):
    """A finished run of 10 steps with checkpoints at 5 and 10; tests work on copies of it (`a_copy`)."""
    with pytest.MonkeyPatch.context() as patch:
        _hasten(patch, _token_cache)
        folder = tmp_path_factory.mktemp("finished")
        TinyRuns(folder).pretrain(folder / "run", steps=10)
    return folder / "run"


@pytest.fixture
def a_copy(finished_run, tmp_path):
    """The finished run, to be spoilt."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _no_observers_left():
    yield
    atomic.observers.clear()


@pytest.fixture
def last_tensors() -> Callable[[Path], dict[str, Tensor]]:
    """All tensors of a run's last checkpoint: weights, optimizer, generators."""

    def read(run: Path) -> dict[str, Tensor]:
        last = Checkpoints(run / "checkpoints").finished()[-1]
        return {**load_file(last / WEIGHTS), **load_file(last / TRAINING)}

    return read


@pytest.fixture
def last_bytes() -> Callable[[Path], dict[str, bytes]]:
    """The files of a run's last checkpoint that hold tensors, byte for byte."""

    def read(run: Path) -> dict[str, bytes]:
        last = Checkpoints(run / "checkpoints").finished()[-1]
        return {"step": last.name.encode(), **{name: (last / name).read_bytes() for name in (WEIGHTS, TRAINING)}}

    return read


@pytest.fixture
def losses() -> Callable[[Path], list[tuple[int, str, float]]]:
    """What a run's record says about losses: (step, which, nats)."""

    def read(run: Path) -> list[tuple[int, str, float]]:
        records: list[Record] = read_records(run / "metrics.jsonl")
        return [(r["step"], kind, r[kind]) for r in records for kind in ("loss", "grad_norm", "val_loss") if kind in r]

    return read


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """All that lies in a folder, but for its lock, which a refused process may touch."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
            for path in sorted(folder.rglob("*"))
            if not path.name.startswith(".lock")
        }

    return read


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Wait until something holds; fail loudly when it does not come, or when the process ends before."""

    def wait(holds: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < until, "it did not come in time"
            if process is not None and process.poll() is not None:
                pytest.fail(f"the process ended with {process.returncode}: {process.communicate()[1]}")
            time.sleep(0.002)

    return wait


@pytest.fixture
def steps_recorded() -> Callable[[Path], int]:
    """The last step whose loss is in a run's record; 0 before there is any."""

    def read(run: Path) -> int:
        return max((r["step"] for r in read_records(run / "metrics.jsonl") if "loss" in r), default=0)

    return read


@pytest.fixture
def facts_of() -> Callable[[Path], dict[str, Any]]:
    """What a checkpoint's manifest says, unchecked."""

    def read(checkpoint: Path) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        return facts

    return read
