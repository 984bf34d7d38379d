"""The benchmarks run, and write what their README promises; how fast anything is, is not asked here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, BENCHMARKS / name, *words]
    env = {**os.environ, **environ}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=280, env=env)


@pytest.fixture(scope="module")
def tiny_race(tmp_path_factory) -> tuple[str, dict]:
    """One layer, without nanoGPT and, since compiling takes a minute, where no compiler is found."""
    out = tmp_path_factory.mktemp("speed") / "speed.json"
    words = ("--layers", "1", "--batch-size", "2", "--micro-batch-size", "1", "--rounds", "2", "--no-sweep")
    done = run("train_speed.py", *words, "--json", str(out), PATH=str(Path(sys.executable).parent), CXX="")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text("utf-8"))


@pytest.mark.slow
def test_train_speed_prints_ours_and_says_that_nanogpt_is_missing(tiny_race):
    said, whole = tiny_race
    assert "nanoGPT was not measured" in said
    assert "x nanoGPT's best" not in said
    for records in whole["races"]:
        for record in records:
            assert f"| {record['name']} | {record['tokens_per_s']:,.0f} |" in said
    compared = [bar for bar in whole["bars"] if "x nanoGPT" in bar["bar"] or "nanoGPT's" in bar["bar"]]
    assert len(compared) == 4
    assert all(bar["met"] is None and f"- {bar['bar']}: not measured" in said for bar in compared)


@pytest.mark.slow
def test_train_speed_writes_the_keys_that_its_readme_describes(tiny_race):
    _, whole = tiny_race
    described = set(
        re.findall(r"`(\w+)`", (BENCHMARKS / "README.md").read_text("utf-8").partition("writes one object")[2])
    )
    written = {
        *whole,
        *whole["memory"],
        *whole["bars"][0],
        *(key for race in whole["races"] for r in race for key in r),
    }
    assert written | {"flops_per_token"} == described
    assert whole["recipe"]["flops_per_token"] > 6 * 12 * 384**2


@pytest.mark.slow
def test_train_speeds_figures_follow_from_what_was_measured(tiny_race):
    _, whole = tiny_race
    for record in (record for race in whole["races"] for record in race):
        assert len(record["seconds"]) == len(record["losses"]) == len(record["peaks_flops_per_s"]) == 2
        assert record["tokens_per_s"] == pytest.approx(record["tokens_per_step"] / median(record["seconds"]))
        assert record["flops_per_s"] == pytest.approx(record["tokens_per_s"] * whole["recipe"]["flops_per_token"])
        assert record["utilisation"] == pytest.approx(record["flops_per_s"] / median(record["peaks_flops_per_s"]))
        assert not record["compiled"]
        assert record["notes"] == []


@pytest.mark.slow
def test_every_contestant_trains_the_same(tiny_race):
    """The same weights, tokens and dropout: another precision moves the losses by less than a thousandth."""
    _, whole = tiny_race
    recipe, plain = whole["races"]
    assert all(record["losses"] == pytest.approx(recipe[0]["losses"], abs=0.001) for record in recipe)
    assert {record["dropout"] for record in recipe} == {0.2}
    assert {record["dropout"] for record in plain} == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--nanogpt", "no/such/checkout"), "--nanogpt no/such/checkout has no model.py; give a checkout of"),
        (("--micro-batch-size", "7"), "--micro-batch-size 7 does not divide the batch of 64"),
    ],
)
def test_train_speed_refuses_in_a_line(words, says):
    done = run("train_speed.py", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_ladder_seeds_prints_a_row_for_each_rung_and_tells_a_rung_that_is_too_far(tmp_path):
    out = tmp_path / "ladder.json"
    done = run("ladder_seeds.py", "--steps", "20", "--seeds", "1", "--json", str(out))
    assert done.returncode == 1, done.stderr  # after 20 steps no rung is where the lecture's ended
    whole = json.loads(out.read_text("utf-8"))
    assert whole.keys() == {"environment", "rungs"}
    rungs = [row["rung"] for row in whole["rungs"]]
    assert rungs == ["s1", "s2", "s3", "s4", "s5", "s6", "s7"]
    assert all(len(row["results"]) == 1 and f"| {row['rung']} |" in done.stdout for row in whole["rungs"])
