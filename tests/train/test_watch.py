"""What happens around the updates of a run: when, how often, and what is written down."""

import json
import math
import signal
from dataclasses import replace

import pytest

from groundling.bundle import load_bundle
from groundling.data.corpus import prepare
from groundling.errors import ConfigError, TrainingError
from groundling.evals.loss import train_loss_estimate, whole_split_loss
from groundling.storage import atomic
from groundling.storage.manifest import read_manifest
from groundling.system import hardware
from groundling.system.metrics import read_records
from groundling.train import run_folder
from groundling.train.callbacks import Every
from groundling.train.checkpoints.checkpoint import Checkpoints
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.pretrain import pretrain

AT_ONCE = ScheduleConfig(kind="constant", warmup_steps=0)


def days(every: int | None, n_steps: int = 10) -> list[int]:
    return [step for step in range(n_steps + 1) if Every(every, n_steps).due(step)]


def test_callbacks_are_due_at_intervals_and_at_the_end_but_not_at_step_0():
    assert days(None) == []
    assert days(1) == list(range(1, 11))
    assert days(4) == [4, 8, 10]
    assert days(5) == [5, 10]
    assert days(100) == [10]


def records(config) -> list[dict]:
    return read_records(config.out_dir / "metrics.jsonl")


def test_the_record_of_a_run(tiny_config, capsys):
    config = tiny_config(steps=10, eval_every=4, save_every=5, log_every=3, sample_every=5, keep_checkpoints=9)
    summary = pretrain(config)
    trained = [r for r in records(config) if "loss" in r]
    assert [r["step"] for r in trained] == [1, 3, 6, 9, 10]
    assert [r["n_tokens"] for r in trained] == [64 * step for step in (1, 3, 6, 9, 10)]
    names = "step loss grad_norm n_tokens train_s tokens_per_s utilisation memory_mb eta_s lr_factor"
    assert all(list(r) == names.split() for r in trained)
    assert all(r["tokens_per_s"] > 0 and r["utilisation"] > 0 and r["eta_s"] >= 0 for r in trained)
    assert trained[-1]["eta_s"] == 0
    evaluated = [r for r in records(config) if "val_loss" in r]
    assert [r["step"] for r in evaluated] == [4, 8, 10]
    lowest = [min(r["val_loss"] for r in evaluated[: i + 1]) for i in range(3)]
    assert [r["best_val_loss"] for r in evaluated] == lowest
    saved = Checkpoints(config.out_dir / "checkpoints").finished()
    assert [path.name for path in saved] == ["step-00000005", "step-00000010"]
    assert [read_manifest(path)["val_loss"] for path in saved] == [None, evaluated[-1]["val_loss"]]
    assert (summary.figures["steps"], summary.reason, summary.exit_code) == (10, "finished", 0)
    assert summary.figures["val_loss"] == evaluated[-1]["val_loss"]
    assert summary.figures["best_val_loss"] == lowest[-1]
    err = capsys.readouterr().err
    assert "step 4: validation loss" in err
    assert "done: 10 steps, 640 tokens" in err


def test_the_loss_that_is_written_down_is_that_of_the_saved_weights_on_the_whole_split(tiny_config):
    config = tiny_config(steps=4, eval_every=2, save_every=2, average_decay=0.5, keep_checkpoints=9)
    pretrain(config)
    val = prepare(config.data, config.model.block_size).val.ids
    for step in (2, 4):
        model = load_bundle(config.out_dir, checkpoint=step).model
        (written,) = (r["val_loss"] for r in records(config) if r["step"] == step and "val_loss" in r)
        assert whole_split_loss(model, val, 16) == pytest.approx(written, rel=1e-6)


@pytest.mark.slow
def test_the_training_loss_is_estimated_on_the_same_windows_at_each_evaluation(tiny_config, capsys):
    config = tiny_config(steps=4, eval_every=2, save_every=2, average_decay=0.5, keep_checkpoints=9)
    summary = pretrain(config)
    corpus = prepare(config.data, config.model.block_size)
    n_windows = math.ceil((len(corpus.val.ids) - 1) / 16)
    for step in (2, 4):
        model = load_bundle(config.out_dir, checkpoint=step).model
        (record,) = (r for r in records(config) if r["step"] == step and "val_loss" in r)
        expected = train_loss_estimate(model, corpus.train.ids, 16, n_windows)
        assert record["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert summary.figures["train_loss"] == record["train_loss"] != summary.figures["val_loss"]
    assert f"), training loss {record['train_loss']:.4f}" in capsys.readouterr().err
    plain = pretrain(replace(tiny_config("plain", steps=2, eval_every=1), estimate_train_loss=False))
    assert plain.figures["train_loss"] is None
    assert not any("train_loss" in r for r in read_records(config.out_dir.parent / "plain" / "metrics.jsonl"))


def test_no_share_of_a_peak_is_above_all_of_it(tiny_config, monkeypatch):
    """The peak was measured while something else ran: what is reached after that was possible all the time."""
    monkeypatch.setattr(hardware, "measure_matmul_peak", lambda *_: 1.0)
    config = tiny_config(steps=6, log_every=1)
    summary = pretrain(config)
    shares = [r["utilisation"] for r in records(config) if "utilisation" in r]
    assert shares[0] == 1.0
    assert all(0 < share <= 1 for share in (*shares, summary.figures["utilisation"]))
    speeds = [r["tokens_per_s"] for r in records(config) if "utilisation" in r]
    assert shares == pytest.approx([s / max(speeds[: n + 1]) for n, s in enumerate(speeds)], abs=2e-4)


@pytest.mark.slow
def test_early_stopping_ends_after_patience_and_keeps_the_best(tiny_config, capsys):
    """A learning rate that throws the weights about: after the first evaluations it only gets worse."""
    config = tiny_config(
        steps=60, eval_every=2, save_every=None, patience=3, optim=OptimConfig(lr=3.0), schedule=AT_ONCE
    )
    summary = pretrain(config)
    losses = [r["val_loss"] for r in records(config) if "val_loss" in r]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3
    assert summary.reason == "no better validation loss in 3 evaluations"
    assert summary.figures["steps"] == 2 * len(losses) < 60
    assert (summary.exit_code, summary.figures["best_step"]) == (0, 2 * (best + 1))
    assert "no better validation loss in 3 evaluations" in capsys.readouterr().err


def test_a_diverging_run_names_the_step_and_keeps_its_checkpoints(tiny_config, capsys):
    config = tiny_config(steps=50, eval_every=None, save_every=1, optim=OptimConfig(lr=1e38), schedule=AT_ONCE)
    with pytest.raises(TrainingError, match=r"stopped at step \d+: .*try lower learning rates, .*--optim.lr 1e\+37"):
        pretrain(config)
    path, skipped = Checkpoints(config.out_dir / "checkpoints").newest_good()
    assert skipped == []
    last = max(r["step"] for r in records(config))
    assert path.name == f"step-{last:08d}"
    assert not (config.out_dir / "summary.json").exists()


def test_the_bundle_of_a_run_is_its_best_checkpoint(tiny_config):
    config = tiny_config(steps=8, eval_every=2, save_every=2, keep_checkpoints=1, optim=OptimConfig(lr=0.3))
    pretrain(config)
    evaluated = {r["step"]: r["val_loss"] for r in records(config) if "val_loss" in r}
    best = min(evaluated, key=evaluated.__getitem__)
    assert read_manifest(config.out_dir / "bundle")["checkpoint"] == f"step-{best:08d}"
    kept = [path.name for path in Checkpoints(config.out_dir / "checkpoints").finished()]
    assert kept == sorted({f"step-{best:08d}", "step-00000008"})


def test_samples_are_logged_and_begin_with_the_prompt(tiny_config, capsys):
    pretrain(tiny_config(steps=2, eval_every=None, save_every=None, sample_every=1, sample_prompt="the king"))
    samples = [line for line in capsys.readouterr().err.splitlines() if line.startswith("the king")]
    assert len(samples) == 2


def samples(config) -> list[tuple[int, str]]:
    return [(r["step"], r["sample"]) for r in records(config) if "sample" in r]


@pytest.mark.slow
def test_a_resumed_run_logs_each_sample_once(tiny_config, monkeypatch, capsys):
    """Stopped by a signal just where a sample is due: it is neither lost nor said twice."""
    often = {"eval_every": None, "save_every": 4, "sample_every": 2}
    whole, pieces = tiny_config("whole", steps=8, **often), tiny_config("pieces", steps=8, **often)
    pretrain(whole)
    assert [step for step, _ in samples(whole)] == [2, 4, 6, 8]
    said = capsys.readouterr().err
    assert all(text.strip() in said for _, text in samples(whole))
    assert not [line for line in said.splitlines() if line.endswith(": ")], "a sample has no figures"
    n_lines: list[int] = []

    def stop_at_the_fourth_step(operation: str, path) -> None:
        n_lines.append(1) if operation == "append" and path.name == "metrics.jsonl" else None
        if len(n_lines) == 5:  # four losses and the sample of step 2
            n_lines.append(1)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(atomic, "observers", [stop_at_the_fourth_step])
    assert pretrain(pieces).figures["steps"] == 4
    assert [step for step, _ in samples(pieces)] == [2]
    monkeypatch.setattr(atomic, "observers", [])
    for _ in range(2):  # the second time there is nothing left to do
        pretrain(replace(pieces, resume=True))
        assert samples(pieces) == samples(whole)


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_trained_over_by_accident(tiny_config, capsys):
    config = tiny_config(steps=2, eval_every=None, save_every=2)
    pretrain(config)
    with pytest.raises(ConfigError, match="--overwrite"):
        pretrain(config)
    assert run_folder.read_summary(config.out_dir)["steps"] == 2
    pretrain(tiny_config(steps=3, eval_every=None, save_every=None, overwrite=True))
    assert run_folder.read_summary(config.out_dir)["steps"] == 3
    assert not (config.out_dir / "checkpoints").exists()
    assert run_folder.read_summary(config.out_dir.parent) == {}


def test_the_summary_and_the_environment_are_plain_json(tiny_config):
    config = tiny_config(steps=2, eval_every=None, save_every=None)
    summary = pretrain(config)
    written = json.loads((config.out_dir / "summary.json").read_text("utf-8"))
    assert written == summary.to_json()
    assert (written["val_loss"], written["best_val_loss"], written["best_step"]) == (None, None, None)
    assert 0 < written["train_s"] < written["wall_s"] or math.isclose(written["train_s"], written["wall_s"])
    about = json.loads((config.out_dir / "env.json").read_text("utf-8"))
    assert {"run_id", "python", "torch", "processor", "device", "threads", "precision", "compile"} <= about.keys()
