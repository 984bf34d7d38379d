"""Row 2: a run that was stopped and resumed is, to the bit, the run that was not: weights, optimizer, losses."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from groundling.storage import atomic
from groundling.storage.manifest import write_manifest
from groundling.system.runtime import find_compiler
from groundling.train.checkpoints.checkpoint import Checkpoints

VARIANTS = {
    "adamw": {},
    "muon, averaged": {"optim": {"kind": "muon"}, "average_decay": 0.9},
    "normuon": {"optim": {"kind": "muon", "muon_momentum": 0.9, "muon_neuron_beta": 0.95}, "zero_init": True},
    "random order, micro-batches": {"order": "random", "micro_batch_size": 2},
    "bfloat16": {"runtime": {"dtype": "bfloat16"}},
}
SLOW_VARIANTS = {
    "compiled": {"runtime": {"compile": "on"}},
    "compiled muon in bfloat16, averaged": {
        "runtime": {"compile": "on", "dtype": "bfloat16"},
        "optim": {"kind": "muon"},
        "average_decay": 0.9,
    },
}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def stop_at():
    """Send this process a signal as soon as the loss of a step is recorded."""

    def arrange(step):
        seen = []

        def watch(operation, path):
            if operation == "append" and path.name == "metrics.jsonl":
                seen.append(path)
                if len(seen) == step:
                    signal.raise_signal(signal.SIGTERM)

        atomic.observers[:] = [watch]

    return arrange


@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_steps_and_ten_more_are_twenty(tiny, tmp_path, variant, last_tensors, losses):
    check_halves(tiny, tmp_path, VARIANTS[variant], last_tensors, losses)


@pytest.mark.slow
@pytest.mark.skipif(not find_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("variant", SLOW_VARIANTS)
def test_ten_steps_and_ten_more_are_twenty_when_compiled(tiny, tmp_path, variant, last_tensors, losses, capsys):
    check_halves(tiny, tmp_path, SLOW_VARIANTS[variant], last_tensors, losses)
    said = capsys.readouterr().err
    assert said.count("compile: on") == 3
    assert "compilation failed" not in said


def check_halves(tiny, tmp_path, how, last_tensors, losses):
    tiny.pretrain(tmp_path / "whole", **how)
    tiny.pretrain(tmp_path / "halves", **how, steps=10)
    tiny.pretrain(tmp_path / "halves", **how, resume=True)
    whole = last_tensors(tmp_path / "whole")
    assert any(name.startswith("optimizer|") for name in whole)
    assert equal(whole, last_tensors(tmp_path / "halves"))
    assert len(losses(tmp_path / "whole")) == 20 + 20 + 4
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")


def test_stopped_twice_in_the_middle_of_a_schedule(tiny, tmp_path, stop_at, last_tensors, losses):
    """Neither stop is at a step where a checkpoint was due, and one is in the warm-up."""
    how = {"schedule": {"kind": "cosine", "warmup_steps": 5}, "optim": {"kind": "muon"}}
    tiny.pretrain(tmp_path / "whole", **how)
    stop_at(3)
    first = tiny.pretrain(tmp_path / "pieces", **how)
    stop_at(10)  # records: steps 4 to 12, and the evaluations at 5 and 10 among them
    second = tiny.pretrain(tmp_path / "pieces", **how, resume=True)
    atomic.observers.clear()
    last = tiny.pretrain(tmp_path / "pieces", **how, resume=True)
    assert [run.figures["steps"] for run in (first, second, last)] == [3, 11, 20]
    assert [run.exit_code for run in (first, second, last)] == [143, 143, 0]
    assert equal(last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "pieces"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "pieces")


def forget_dropout(tensors, record):
    tensors["generator|0|cpu"] = torch.Generator().manual_seed(99).get_state()


def forget_the_optimizer(tensors, record):
    for name in list(tensors):
        if name.startswith("optimizer|") and name.endswith("exp_avg"):
            tensors[name].zero_()


def forget_the_bias_correction(tensors, record):
    for name in list(tensors):
        if name.endswith("|step"):
            tensors[name].fill_(1.0)


def forget_the_place_in_the_data(tensors, record):
    record["batches"]["next_sample"] = 0


def forget_nothing(tensors, record):
    pass


@pytest.mark.parametrize(
    "forget",
    [forget_nothing, forget_dropout, forget_the_optimizer, forget_the_bias_correction, forget_the_place_in_the_data],
)
def test_a_checkpoint_without_one_of_its_parts_would_be_noticed(
    tiny, a_copy, finished_run, forget, last_tensors, facts_of
):
    """The comparison above is one that fails: each part of the state matters."""
    checkpoint = Checkpoints(a_copy / "checkpoints").finished()[-1]
    facts = facts_of(checkpoint)
    tensors = load_file(checkpoint / "training.safetensors")
    record = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    forget(tensors, record)
    save_file(tensors, checkpoint / "training.safetensors")
    atomic.write_json(checkpoint / "state.json", record)
    write_manifest(checkpoint, {name: facts[name] for name in ("run_id", "step", "val_loss")})
    tiny.pretrain(a_copy, resume=True, steps=12, data={"path": str(finished_run.parent / "text.txt")})
    tiny.pretrain(a_copy.parent / "whole", steps=12)
    same = equal(last_tensors(a_copy), last_tensors(a_copy.parent / "whole"))
    assert same == (forget is forget_nothing)


@pytest.mark.parametrize(
    "often",
    [
        {"eval_every": None, "save_every": 20},
        {"eval_every": 3, "save_every": 2, "sample_every": 4, "sample_tokens": 5},
        {"eval_every": 1, "keep_checkpoints": 5, "log_every": 7},
    ],
    ids=["never", "often, with samples", "always"],
)
@pytest.mark.parametrize("decay", [None, 0.9], ids=["plain", "averaged"])
def test_the_evaluation_interval_changes_nothing(tiny, tmp_path, often, decay, last_tensors):
    tiny.pretrain(tmp_path / "usual", average_decay=decay)
    tiny.pretrain(tmp_path / "other", **often, average_decay=decay)
    assert equal(last_tensors(tmp_path / "usual"), last_tensors(tmp_path / "other"))
