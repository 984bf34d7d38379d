"""`groundling speedrun`: each seed in a process of its own, and a report that says what `pretrain` says."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from groundling import cli
from groundling.bundle import load_bundle
from groundling.config import to_toml
from groundling.errors import ConfigError
from groundling.system.metrics import read_records
from groundling.train.distill.table import TeacherConfig
from groundling.train.pretrain import pretrain
from groundling.train.speedrun import run as speedrun
from groundling.train.speedrun.recipes import Recipes
from groundling.train.speedrun.report import SeedResult, table
from groundling.train.speedrun.run import SpeedrunConfig

FIELDS = ["seed", "wall_s", "train_s", "tokens", "val_loss", "tokens_per_s", "utilisation"]


@pytest.fixture
def preset(tiny_config, tmp_path):
    """The path of a preset that takes a second, and the config in it."""

    def write(**changes):
        config = tiny_config("alone", **{"steps": 4, "eval_every": 2, "patience": 1, **changes})
        path = tmp_path / "tiny.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        return path, config

    return write


@pytest.mark.slow
def test_every_seed_gets_a_line_and_the_first_ones_bundle_stays(preset, tmp_path, capfd):
    path, config = preset()
    out = tmp_path / "out"
    words = ["speedrun", str(path), "--seeds", "5", "3", f"--out-dir={out}"]
    assert cli.main(words) == 0
    results = json.loads((out / "speedrun.json").read_text("utf-8"))
    assert [list(result) for result in results] == [FIELDS] * 2
    assert [result["seed"] for result in results] == [5, 3]
    for result in results:
        assert 0 < result["train_s"] < result["wall_s"] < 120
        assert result["tokens"] == 4 * 4 * 16
        assert result["tokens_per_s"] == pytest.approx(result["tokens"] / result["train_s"], rel=0.1)
        assert 0 < result["utilisation"] < 1
    records = read_records(out / "seed-5" / "metrics.jsonl")
    assert [record["step"] for record in records if "val_loss" in record] == [4], "it is evaluated once, at the end"
    alone = pretrain(dataclasses.replace(config, seed=5, eval_every=4, patience=None))
    assert results[0]["val_loss"] == alone.figures["val_loss"]
    assert results[1]["val_loss"] != alone.figures["val_loss"]
    bundle, first = load_bundle(out / "bundle"), load_bundle(out / "seed-5" / "bundle")
    assert all(bundle.model.state_dict()[name].equal(value) for name, value in first.model.state_dict().items())
    said = capfd.readouterr().out
    assert "mean" in said
    assert "worst" in said
    assert f"{max(result['val_loss'] for result in results):.4f}" in said

    assert cli.main(words) == 2
    assert "is there already; remove it (--overwrite)" in capfd.readouterr().err
    assert json.loads((out / "speedrun.json").read_text("utf-8")) == results


@pytest.mark.slow
def test_teachers_are_trained_first_and_belong_to_the_cost(preset, tmp_path, capfd):
    others = [tmp_path / "third.toml", tmp_path / "second.toml"]
    how = TeacherConfig(weight=0.5, fades=False, temperature=1.5, recipes=tuple(str(other) for other in others))
    own, config = preset(teacher=how)
    for other, steps in zip(others, (3, 2), strict=True):
        other.write_text(to_toml(dataclasses.replace(config, steps=steps, teacher=TeacherConfig())), encoding="utf-8")
    out = tmp_path / "out"
    words = ["--seeds=7", f"--out-dir={out}"]
    assert cli.main(["speedrun", str(own), *words]) == 0
    runs = [out / name for name in ("seed-7-teacher-1", "seed-7-teacher-2", "seed-7")]
    summaries = [json.loads((run / "summary.json").read_text("utf-8")) for run in runs]
    (result,) = json.loads((out / "speedrun.json").read_text("utf-8"))
    assert [summary["steps"] for summary in summaries] == [3, 2, 4]
    assert result["seed"] == 7
    assert result["tokens"] == (3 + 2 + 4) * 4 * 16
    assert result["train_s"] == pytest.approx(sum(summary["train_s"] for summary in summaries), abs=1e-3)
    assert result["wall_s"] > result["train_s"], "of all three processes"
    assert result["val_loss"] == summaries[-1]["val_loss"]
    assert min(s["utilisation"] for s in summaries) <= result["utilisation"] <= max(s["utilisation"] for s in summaries)
    by_hand = dataclasses.replace(
        config,
        seed=7,
        eval_every=4,
        patience=None,
        teacher=dataclasses.replace(how, recipes=(), models=tuple(str(run) for run in runs[:2])),
    )
    assert pretrain(by_hand).figures["val_loss"] == result["val_loss"]
    assert (out / "bundle" / "model.safetensors").read_bytes() == (
        runs[2] / "bundle" / "model.safetensors"
    ).read_bytes()
    assert f"seed-7-teacher-2, {others[1]}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"weight": 1.0, "recipes": ("fast",)}, "no preset 'fast.toml'"),
        ({"weight": 1.0, "recipes": ("best.toml",)}, "best.toml, a teacher of .*, has teacher.recipes of its own"),
        ({"weight": 1.0, "recipes": ("speedrun",)}, "speedrun.toml, a teacher of .*, has other settings of data"),
        ({"weight": 1.0, "models": ("runs/a",)}, "tiny.toml has teacher.models, whose cost is not known"),
    ],
)
def test_invalid_teachers_are_refused_before_any_run(how, said, preset, tmp_path, capfd):
    path, _ = preset(teacher=TeacherConfig(**how))
    assert cli.main(["speedrun", str(path), f"--out-dir={tmp_path / 'out'}"]) == 2
    assert re.search(said, capfd.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_recipe_with_teachers_defaults_to_one_seed():
    assert Recipes.of("speedrun").default_seeds == (1337, 1338, 1339)
    assert Recipes.of("best").default_seeds == (1337,)


def test_no_two_seeds_share_a_teacher(tmp_path):
    jobs = [job for seed in (1337, 1338) for job in Recipes.of("best").jobs(seed, tmp_path)]
    assert len({job.seed for job in jobs}) == len({job.run for job in jobs}) == 2 * 5


@pytest.mark.slow
def test_existing_files_are_kept_without_overwrite(preset, tmp_path, capfd):
    path, config = preset()
    out = tmp_path / "out"
    words = ["speedrun", str(path), "--seeds=5", f"--out-dir={out}", "--no-cold"]
    stale = out / "seed-4-teacher-1" / "summary.json"  # of one that was stopped: there is no report
    stale.parent.mkdir(parents=True)
    stale.write_text("{}", encoding="utf-8")
    (out / "seed-corpus").mkdir()  # no run of ours
    assert cli.main(words) == 2
    assert f"{stale.parent} is there already; remove it (--overwrite)" in capfd.readouterr().err
    assert stale.exists()
    assert cli.main([*words, "--overwrite"]) == 0
    assert not stale.exists()
    assert (out / "seed-corpus").exists()
    assert load_bundle(out).config == load_bundle(out / "seed-5").config
    pretrain(config)
    before = (config.out_dir / "bundle" / "model.safetensors").read_bytes()
    words[3] = f"--out-dir={config.out_dir}"
    assert cli.main([*words, "--overwrite"]) == 2
    assert "holds a run of `groundling pretrain`" in capfd.readouterr().err
    assert (config.out_dir / "bundle" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_failed_run_ends_the_speedrun_with_its_error(preset, tmp_path, capfd):
    path, config = preset()
    path.write_text(path.read_text("utf-8").replace(str(config.data.path), "nothing.txt"), encoding="utf-8")
    assert cli.main(["speedrun", f"--preset={path}", f"--out-dir={tmp_path / 'out'}"]) == 1
    said = capfd.readouterr().err
    assert "nothing.txt" in said
    assert "seed-1337 ended with exit code 1" in said
    assert not (tmp_path / "out" / "speedrun.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_stops_the_run_gracefully_and_a_second_at_once(times, preset, tmp_path):
    path, _ = preset(steps=100_000, eval_every=None, save_every=None, patience=None)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "groundling", "speedrun", f"--preset={path}", f"--out-dir={out}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    metrics = out / "seed-1337" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped as asked in seed-1337" in said
    assert times == 2 or not (out / "seed-1337" / ".lock.pid").exists(), "its own end has taken the lock away"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_after_a_late_signal_no_other_run_starts(number, code):
    """The run itself ends well: it was saving already, or Ctrl-C went to us alone."""
    threading.Timer(0.3, lambda: os.kill(os.getpid(), number)).start()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1)"
    _, ended_with = speedrun._run_in_a_process([sys.executable, "-c", deaf], cold=False)
    assert ended_with == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "fast"], "no preset 'fast.toml'"),
        (["--preset=fast.toml"], "no preset 'fast.toml'"),
        (["--seeds", "1", "1"], "names one twice"),
        (["--seeds=-1"], "seed -1 is out of range"),
        (["--sedes", "1"], "did you mean --seeds"),
    ],
)
def test_invalid_recipes_are_refused_before_any_run(words, said, tmp_path, capsys):
    assert cli.main(["speedrun", *words, f"--out-dir={tmp_path / 'out'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_seeds_are_refused():
    with pytest.raises(ConfigError, match="seeds is empty"):
        SpeedrunConfig(seeds=())


def test_the_table_shows_the_mean_and_the_worst_of_each_column():
    results = [
        SeedResult(seed=1, wall_s=10, train_s=8, tokens=100, val_loss=1.5, tokens_per_s=12, utilisation=0.5),
        SeedResult(seed=2, wall_s=20, train_s=9, tokens=100, val_loss=1.4, tokens_per_s=11, utilisation=0.25),
    ]
    columns = [list(column.cells) for column in table(results).columns]
    assert [column[2:] for column in columns] == [
        ["mean", "worst"],
        ["1.4500", "1.5000"],
        ["15.0", "20.0"],
        ["8.5", "9.0"],
        ["100", "100"],
        ["12", "11"],
        ["37.5%", "25.0%"],
    ]
    assert len(list(table(results[:1]).columns[0].cells)) == 1
