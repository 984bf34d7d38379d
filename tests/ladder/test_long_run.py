"""A rung that takes hours is resumed where it was stopped, and ends with the bits of one that was not."""

import dataclasses
import itertools
import json
import shlex
import signal

import pytest
import torch

from groundling.bundle import load_bundle
from groundling.data import corpus as corpora
from groundling.errors import CheckpointError, ConfigError
from groundling.evals.loss import whole_split_loss
from groundling.ladder import s8_scaled
from groundling.ladder import train as climb
from groundling.ladder.rungs import RUNGS
from groundling.ladder.runs.begin import begin
from groundling.ladder.runs.long_run import LongRun, RungStoppedError
from groundling.ladder.train import train_rung
from groundling.model.dropout import MaskedDropout
from groundling.storage import atomic
from groundling.system import hardware, runtime
from groundling.system.metrics import read_records
from groundling.system.runtime import RuntimeConfig
from groundling.tools import plot
from groundling.tools.verify import main as verify

STEPS = 12


@pytest.fixture(scope="module")
def corpus(story):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
        return corpora.prepare(corpora.DataConfig(path=str(story)), block_size=8)


@pytest.fixture(autouse=True)
def small_s8(monkeypatch):
    """s8 with its dropout, in sizes that train in milliseconds, and no measurement of the machine."""

    def build(vocab_size: int) -> s8_scaled.ScaledModel:
        return s8_scaled.ScaledModel(vocab_size, block_size=16, n_embd=96, n_head=3, n_layer=2)

    monkeypatch.setattr(s8_scaled, "Small", build, raising=False)
    monkeypatch.setitem(RUNGS, "s8", dataclasses.replace(RUNGS["s8"], model="Small", batch_size=4))
    monkeypatch.setattr(hardware, "measure_matmul_peak", lambda *_: 1e10)
    monkeypatch.setattr(runtime, "find_compiler", lambda: "")  # compiling its dropout takes longer than training it
    picks = runtime.pick
    monkeypatch.setattr(runtime, "pick", lambda config, *_: picks(dataclasses.replace(config, tune_allocator=False)))
    yield
    atomic.observers.clear()


def stop_at_record(number, how=signal.SIGTERM):
    """Be sent a signal as soon as this many records are written."""
    count = itertools.count(1)

    def watch(operation, path):
        if operation == "append" and path.name == "metrics.jsonl" and next(count) == number:
            signal.raise_signal(how)

    atomic.observers[:] = [watch]


def stopped(run, corpus, number, how=signal.SIGTERM):
    stop_at_record(number, how)
    with pytest.raises(RungStoppedError, match=r"^s8 stopped after \d steps, .*; continue with groundling") as refused:
        train_rung("s8", steps=STEPS, corpus=corpus, run=run)
    atomic.observers.clear()
    return refused.value


def assert_same(one, other):
    assert (one.losses, one.val_losses, one.sample) == (other.losses, other.val_losses, other.sample)
    assert one.val_loss_random_batches == other.val_loss_random_batches
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save_every_s", "compiler"),
    [(0.0, ""), (3600.0, ""), pytest.param(0.0, "g++", marks=pytest.mark.slow)],
    ids=["a checkpoint at each step", "only when stopped", "dropout compiled"],
)
def test_stopped_twice_and_resumed_equals_uninterrupted(save_every_s, compiler, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "find_compiler", lambda: compiler)
    whole = train_rung("s8", steps=STEPS, corpus=corpus, run=LongRun(folder=tmp_path / "whole"))
    run = LongRun(folder=tmp_path / "pieces", save_every_s=save_every_s)
    assert stopped(run, corpus, 4).exit_code == 143
    again = dataclasses.replace(run, resume=True)
    assert stopped(again, corpus, 5, signal.SIGINT).exit_code == 130
    assert_same(train_rung("s8", steps=STEPS, corpus=corpus, run=again), whole)
    # Resumed once more, it has nothing left to do.
    assert_same(train_rung("s8", steps=STEPS, corpus=corpus, run=again), whole)


@pytest.mark.slow
def test_recorded_or_not_the_weights_are_the_same(corpus, tmp_path):
    plain = train_rung("s8", steps=STEPS, corpus=corpus)
    recorded = train_rung("s8", steps=STEPS, corpus=corpus, run=LongRun(folder=tmp_path / "run", save_every_s=0.0))
    mine, theirs = recorded.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (recorded.val_loss, recorded.sample) == (plain.val_loss, plain.sample)
    assert recorded.losses == plain.losses


@pytest.mark.slow
def test_a_crash_loses_only_the_steps_after_the_last_checkpoint(corpus, tmp_path):
    """As after `kill -9`: nothing more is saved. The record's lines after the checkpoint go."""

    class Crash(BaseException):
        pass

    def crash(operation, path):
        if operation == "append" and path.name == "metrics.jsonl" and len(read_records(path)) == 7:
            raise Crash

    whole = train_rung("s8", steps=STEPS, corpus=corpus, run=LongRun(folder=tmp_path / "whole"))
    run = LongRun(folder=tmp_path / "run", save_every_s=0.0)
    atomic.observers[:] = [crash]
    with pytest.raises(Crash):
        train_rung("s8", steps=STEPS, corpus=corpus, run=run)
    atomic.observers.clear()
    assert_same(train_rung("s8", steps=STEPS, corpus=corpus, run=dataclasses.replace(run, resume=True)), whole)


def test_other_verbs_read_the_run_folder(corpus, tmp_path, capsys):
    run = LongRun(folder=tmp_path / "run")
    result = train_rung("s8", steps=STEPS, corpus=corpus, run=run)
    assert [step for step, _ in result.losses] == list(range(1, STEPS + 1))
    assert [step for step, _ in result.val_losses] == list(range(1, STEPS + 1))
    bundle = load_bundle(run.folder)
    autocast = runtime.pick(RuntimeConfig(compile="off")).autocast
    assert whole_split_loss(bundle.model, corpus.val.ids, 16, autocast) == pytest.approx(result.val_loss, abs=5e-3)
    summary = json.loads((run.folder / "summary.json").read_text("utf-8"))
    assert (summary["steps"], summary["reason"]) == (STEPS, "finished")
    assert summary["tokens"] == STEPS * 4 * 16
    assert json.loads((run.folder / "env.json").read_text("utf-8"))["stage"] == "ladder"
    assert verify([str(run.folder)]) == 0
    assert plot.main([str(run.folder), "--out", str(tmp_path / "losses.png")]) == 0
    said = capsys.readouterr().err
    assert "step 1: loss" in said
    assert "ETA" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "seed", "error", "said"),
    [
        ({}, 1, ConfigError, r"already holds a run; resume it \(--resume\), remove it \(--overwrite\)"),
        ({"resume": True}, 2, CheckpointError, r"other settings \(seed: 1 -> 2\); start a new run in another"),
        ({"resume": True, "folder": "empty"}, 1, CheckpointError, "no finished checkpoint to resume from"),
    ],
)
def test_an_existing_run_is_neither_overwritten_nor_mixed(changes, seed, error, said, corpus, tmp_path):
    run = LongRun(folder=tmp_path / "run")
    train_rung("s8", steps=2, seed=1, corpus=corpus, run=run)
    kept = {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    if "folder" in changes:
        changes["folder"] = tmp_path / changes["folder"]
    with pytest.raises(error, match=said):
        train_rung("s8", steps=2, seed=seed, corpus=corpus, run=dataclasses.replace(run, **changes))
    assert kept == {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    train_rung("s8", steps=1, seed=2, corpus=corpus, run=dataclasses.replace(run, folder=tmp_path / "another"))
    train_rung("s8", steps=1, seed=2, corpus=corpus, run=dataclasses.replace(run, overwrite=True))


@pytest.mark.slow
def test_the_verb_resumes(story, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
    monkeypatch.setattr(climb, "DataConfig", lambda: corpora.DataConfig(path=str(story)))
    tmp_path /= "the user's"
    words = ["--rungs", "s1,s8", "--steps", str(STEPS), "--out-dir", str(tmp_path), "--at-once", "1"]
    stop_at_record(5)
    assert climb.main(words) == 143
    atomic.observers.clear()
    advice = shlex.split(capsys.readouterr().err.rpartition("continue with groundling ladder ")[2])
    assert [rung["rung"] for rung in json.loads((tmp_path / "ladder.json").read_text("utf-8"))["rungs"]] == ["s1"]
    stop_at_record(3)
    assert climb.main(advice) == 143
    atomic.observers.clear()
    assert climb.main([*words, "--resume"]) == 0
    rungs = json.loads((tmp_path / "ladder.json").read_text("utf-8"))["rungs"]
    assert [rung["rung"] for rung in rungs] == ["s1", "s8"]
    assert read_records(tmp_path / "s8" / "metrics.jsonl")[-1]["step"] == STEPS


@pytest.mark.parametrize("compiler", [True, False])
def test_only_dropout_is_compiled_and_only_where_there_is_a_compiler(compiler, corpus, monkeypatch):
    monkeypatch.setattr(runtime, "find_compiler", lambda: "g++" * compiler)
    monkeypatch.setattr(runtime, "pick_device", lambda _: torch.device("cpu"))
    state, picked = begin(RUNGS["s8"], corpus, 1)
    drops = {type(module) for module in state.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert drops == {MaskedDropout if compiler else torch.nn.Dropout}
    assert picked.reasons["compile"].endswith("dropout only") == compiler
    assert "forward" not in vars(state.objective)  # the objective's own, not a compiled one
