"""Row 14: a checkpoint of another model, text or tokenizer is refused with what differs, and nothing is changed."""

import pytest
import torch

from groundling.errors import CheckpointError, ConfigError
from groundling.storage import atomic
from groundling.storage.manifest import write_manifest
from groundling.train.checkpoints.checkpoint import Checkpoints, read_state


@pytest.fixture
def text(finished_run):
    return {"path": str(finished_run.parent / "text.txt")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"n_embd": 64}}, ["model.n_embd: 32 -> 64"]),
        ({"model": {"n_layer": 3, "n_head": 4}}, ["model.n_layer: 2 -> 3", "model.n_head: 2 -> 4"]),
        ({"model": {"dropout": 0.1}}, ["model.dropout: 0.2 -> 0.1"]),
        ({"model": {"norm": "rmsnorm"}}, ["model.norm: layernorm -> rmsnorm"]),
        ({"seed": 1}, ["seed: 1337 -> 1"]),
        ({"batch_size": 8}, ["batch_size: 4 -> 8"]),
        ({"order": "random"}, ["order: epochs -> random"]),
        ({"average_decay": 0.9}, ["average_decay: None -> 0.9"]),
        ({"optim": {"kind": "muon"}}, ["optim.kind: adamw -> muon"]),
        ({"optim": {"betas": (0.9, 0.95)}}, ["optim.betas: [0.9, 0.99] -> [0.9, 0.95]"]),
        ({"optim": {"eps": 1e-6}}, ["optim.eps: 1e-08 -> 1e-06"]),
        ({"optim": {"lr": 1e-3, "muon_momentum": 0.9}}, ["optim.muon_momentum: 0.95 -> 0.9"]),
        ({"zero_init": True}, ["zero_init: False -> True"]),
        ({"grad_clip": None}, ["grad_clip: 1.0 -> None"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_and_listed(tiny, a_copy, text, changes, said, snapshot):
    before = snapshot(a_copy)
    with pytest.raises(CheckpointError) as caught:
        tiny.pretrain(a_copy, resume=True, steps=15, data=text, **changes)
    message = str(caught.value)
    assert f"{a_copy} was trained with other settings" in message
    assert f"({'; '.join(said)})" in message, "all of what differs, and only that"
    assert "run.toml" in message
    assert snapshot(a_copy) == before


@pytest.mark.parametrize("kind", ["other letters", "other order", "other split"])
def test_another_text_is_refused(tiny, a_copy, text, tmp_path, kind, snapshot):
    """Other letters are another vocabulary; the same letters in another order are only another text."""
    original = tiny.text.read_text(encoding="utf-8")
    other = tmp_path / "other.txt"
    changed = {"other letters": original.replace("a", "x"), "other order": original[::-1], "other split": original}
    other.write_text(changed[kind], encoding="utf-8")
    data = {"path": str(other), "val_fraction": 0.2 if kind == "other split" else 0.1}
    before = snapshot(a_copy)
    said = "val_fraction: 0.1 -> 0.2" if kind == "other split" else "the text or its tokenizer is not the one"
    with pytest.raises(CheckpointError, match=said):
        tiny.pretrain(a_copy, resume=True, steps=15, data=data)
    assert snapshot(a_copy) == before


def test_the_same_text_elsewhere_is_the_same(tiny, a_copy, tmp_path):
    moved = tmp_path / "moved.txt"
    moved.write_bytes(tiny.text.read_bytes())
    assert tiny.pretrain(a_copy, resume=True, steps=12, data={"path": str(moved)}).figures["steps"] == 12


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 13},
        {"micro_batch_size": 1, "steps": 12},
        {"eval_every": 2, "save_every": 3, "keep_checkpoints": 1, "log_every": 4, "steps": 12},
        {"sample_every": 1, "sample_tokens": 3, "patience": 5, "steps": 12},
    ],
    ids=str,
)
def test_what_does_not_change_the_mathematics_may_change(tiny, a_copy, text, changes):
    assert tiny.pretrain(a_copy, resume=True, data=text, **changes).figures["steps"] == changes["steps"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim": {"lr": 1e-3}}, "optim.lr: 0.003 -> 0.001"),
        ({"optim": {"weight_decay": 0.0}}, "optim.weight_decay: 0.1 -> 0.0"),
        ({"optim": {"muon_lr": 0.01, "muon_weight_decay": 0.1}}, "optim.muon_lr: 0.02 -> 0.01; optim.muon_weight_"),
        ({"schedule": {"kind": "cosine", "final_fraction": 0.0}}, "schedule.kind: constant -> cosine; schedule.final_"),
        ({"log_every": 3, "steps": 15}, "steps: 10 -> 15; log_every: 1 -> 3"),
    ],
    ids=str,
)
def test_learning_rates_decay_schedule_and_steps_may_change_and_changes_are_logged(
    tiny, a_copy, text, changes, said, capsys
):
    tiny.pretrain(a_copy, resume=True, data=text, **{"steps": 13, **changes})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed ")]
    assert said in line
    assert "out_dir" not in line
    newest = Checkpoints(a_copy / "checkpoints").finished()[-1]
    for name, value in ((name, value) for name, value in changes.items() if isinstance(value, dict)):
        assert read_state(newest)["config"][name].items() >= value.items(), "the next resumption compares with these"


def test_without_changes_nothing_is_logged(tiny, a_copy, text, capsys):
    tiny.pretrain(a_copy, resume=True, data=text, steps=10)
    assert not [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed")]


def test_the_new_learning_rate_is_the_one_that_is_used(tiny, a_copy, text, last_tensors):
    """Weights after a resumption at a rate of almost nothing are those of the checkpoint."""
    before = last_tensors(a_copy)
    tiny.pretrain(a_copy, resume=True, data=text, steps=12, optim={"lr": 1e-30, "weight_decay": 0.0})
    after = last_tensors(a_copy)
    names = [name for name in before if not name.startswith(("optimizer|", "generator|"))]
    assert len(names) > 10
    assert all(torch.equal(before[name], after[name]) for name in names)


@pytest.mark.parametrize("steps", [1, 9])
def test_fewer_steps_than_were_made_are_refused(tiny, a_copy, text, steps, snapshot):
    before = snapshot(a_copy)
    with pytest.raises(ConfigError, match=rf"steps is {steps}, and .* has made 10 already; give --steps 10 or more"):
        tiny.pretrain(a_copy, resume=True, data=text, steps=steps)
    assert snapshot(a_copy) == before


def test_a_run_from_before_a_new_setting_is_resumed(tiny, a_copy, text, facts_of):
    newest = Checkpoints(a_copy / "checkpoints").finished()[-1]
    facts, record = facts_of(newest), read_state(newest)
    del record["config"]["teacher"], record["config"]["zero_init"], record["config"]["optim"]["muon_neuron_beta"]
    atomic.write_json(newest / "state.json", record)
    write_manifest(newest, {name: facts[name] for name in ("run_id", "step", "val_loss")})
    with pytest.raises(CheckpointError, match=r"\(zero_init: False -> True\)"):
        tiny.pretrain(a_copy, resume=True, steps=12, data=text, zero_init=True)
    assert tiny.pretrain(a_copy, resume=True, steps=12, data=text).figures["steps"] == 12


def test_a_checkpoint_of_another_format_is_not_guessed_at(tiny, a_copy, text, facts_of, snapshot):
    newest = Checkpoints(a_copy / "checkpoints").finished()[-1]
    facts = facts_of(newest)
    atomic.write_json(newest / "state.json", {**read_state(newest), "format": 2})
    write_manifest(newest, {name: facts[name] for name in ("run_id", "step", "val_loss")})
    before = snapshot(a_copy)
    with pytest.raises(CheckpointError, match="has format 2, and this version reads format 1"):
        tiny.pretrain(a_copy, resume=True, steps=15, data=text)
    assert snapshot(a_copy) == before


def test_a_checkpoint_holds_its_run_id(a_copy):
    record = read_state(Checkpoints(a_copy / "checkpoints").finished()[-1])
    assert {"run_id", "config", "tokenizer", "data_fingerprint", "torch", "world_size", "format"} <= record.keys()
    assert record["config"]["model"]["vocab_size"] == 10, "as resolved, not as asked"
