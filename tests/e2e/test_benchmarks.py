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


@pytest.mark.parametrize(
    ("int8", "code", "said"),
    [
        (0.0, 1, "NOT AHEAD: 11M, Groundling int8, tokens/s, 1 stream of 128: no token within the time; give a larger"),
        (2.5, 0, "compiled code is ahead of PyTorch in all jobs"),
        (1.0, 1, "NOT AHEAD: 11M, Groundling int8, tokens/s, 1 stream of 128: 1.00 times PyTorch's speed"),
    ],
)
def test_the_check_fails_where_compiled_code_is_not_ahead(tmp_path, monkeypatch, capsys, int8, code, said):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decode_check

    job = {"new": 128, "batch": 1, "prompt": 1, "parameters": 1, "how": "", "bandwidth_share": None, "stopped": False}
    speeds = {decode_check.TORCH: 1.0, "Groundling float32": 2.0, "Groundling int8": int8}
    records = [{**job, "name": name, "tokens_per_s": speed} for name, speed in speeds.items()]
    assert decode_check.check(["11M"], lambda size: records) == code
    assert said in capsys.readouterr().out
    nothing = [{**record, "tokens_per_s": 0.0} for record in records]
    assert decode_check.check(["11M"], lambda size: nothing) == 1
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path))
    assert decode_check.check(["11M"], lambda size: pytest.fail("there is nothing to measure")) == 1
    assert "NOT AHEAD: the decoding step could not be compiled by /bin/false" in capsys.readouterr().out


def test_no_share_of_a_bandwidth_is_above_all_of_it(monkeypatch):
    """What was read at first came from a cache that something else had emptied."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decode_report

    run = {"tokens": 100, "seconds": 1.0, "how": "", "right": 0, "guessed": 0}
    record = {"runs": [run], "bandwidths": [{"bytes": 10, "bytes_per_s": 500.0}], "new": 100, "batch": 1}
    assert decode_report.conclude(record)["bandwidth_share"] == 1.0
    record["bandwidths"].append({"bytes": 10, "bytes_per_s": 4000.0})
    assert decode_report.conclude(record)["bandwidth_share"] == 0.25


def test_no_share_of_a_matrix_product_peak_is_above_all_of_it(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train_speed

    worker = train_speed.Worker.__new__(train_speed.Worker)
    recipe = train_speed.Recipe(n_layer=1)
    worker.contestant = train_speed.Contestant(whose="Groundling", dtype="float32", compiled=False, recipe=recipe)
    step = {"seconds": 1.0, "loss": 4.0, "memory_mb": 1.0}
    worker.ready, worker.steps = {"parameters": 1, "first_step": step, "notes": []}, [step]
    for peak, share in ((1.0, 1.0), (4 * recipe.tokens_per_step() * recipe.flops_per_token(), 0.25)):
        worker.peaks = [peak]
        assert worker.record()["utilisation"] == share


@pytest.fixture(scope="module")
def tiny_race(tmp_path_factory) -> tuple[str, dict]:
    """One layer, without nanoGPT and, since compiling takes a minute, where no compiler is found."""
    out = tmp_path_factory.mktemp("speed") / "speed.json"
    words = ("--layers", "1", "--batch-size", "2", "--micro-batch-size", "1", "--rounds", "2", "--no-sweep")
    done = run("train_speed.py", *words, "--json", str(out), PATH=str(Path(sys.executable).parent), CXX="")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text("utf-8"))


@pytest.mark.slow
def test_train_speed_prints_ours_and_reports_missing_nanogpt(tiny_race):
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
def test_train_speeds_figures_follow_from_its_measurements(tiny_race):
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
def test_train_speed_refuses_invalid_options_in_one_line(words, says):
    done = run("train_speed.py", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_ladder_seeds_prints_a_row_per_rung_and_fails_if_one_is_too_far(tmp_path):
    out = tmp_path / "ladder.json"
    done = run("ladder_seeds.py", "--steps", "20", "--seeds", "1", "--json", str(out))
    assert done.returncode == 1, done.stderr  # after 20 steps no rung is where the lecture's ended
    whole = json.loads(out.read_text("utf-8"))
    assert whole.keys() == {"environment", "rungs"}
    rungs = [row["rung"] for row in whole["rungs"]]
    assert rungs == ["s1", "s2", "s3", "s4", "s5", "s6", "s7"]
    assert all(len(row["results"]) == 1 and f"| {row['rung']} |" in done.stdout for row in whole["rungs"])


@pytest.fixture(scope="module")
def tiny_decoding(tmp_path_factory, story, finished_run) -> tuple[str, dict]:
    """One narrow layer and a run of six steps, beside transformers alone."""
    out = tmp_path_factory.mktemp("decoding") / "speed.json"
    words = ["--sizes", "tiny", "--rounds", "2", "--new", "8", "--batches", "1", "2", "16", "--threads", "1"]
    words += ["--bundle", str(finished_run), "--draft", str(finished_run), "--prompt", "the king", "--text", str(story)]
    done = run("decode_speed.py", *words, "--json", str(out), GROUNDLING_CACHE=str(story.parent / "cache"))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text("utf-8"))


@pytest.mark.slow
def test_decode_speed_prints_all_measurements_and_names_missing_contestants(tiny_decoding):
    said, whole = tiny_decoding
    assert "nanoGPT was not measured: give a checkout" in said
    assert "llama.cpp was not measured: give a Python" in said
    jobs = ["1 stream of 8", "2 streams of 8", "16 streams of 8", "ms to the first token of 200"]
    assert all(job in said for job in jobs)
    rows = {}
    for line in said.splitlines():
        rows.setdefault(line.partition(" | ")[0].removeprefix("| "), line)  # the first table of a contestant has all
    for record in whole["decoding"]:
        shown = f"{record['tokens_per_s']:,.0f}" if record["new"] > 1 else f"{1e3 / record['tokens_per_s']:.1f}"
        assert f" {shown} " in rows[record["name"]]
    for weights, loss in whole["losses"].items():
        assert f"| {weights} | {loss:.5f} |" in said


@pytest.mark.slow
def test_decode_speed_writes_the_keys_that_its_readme_describes(tiny_decoding):
    _, whole = tiny_decoding
    section = (BENCHMARKS / "README.md").read_text("utf-8").partition("## `decode_speed.py`")[2].partition("\n## ")[0]
    described = set(re.findall(r"`(\w+)`", section.partition("`--json FILE`")[2]))
    records = [*whole["decoding"], *whole["guessing"]]
    written = {*whole, *whole["bars"][0], *(key for record in records for key in record)}
    written |= {key for record in records for key in (*record["runs"][0], *(record["bandwidths"] or [{}])[0])}
    assert written == described


@pytest.mark.slow
def test_decode_speeds_figures_follow_from_its_measurements(tiny_decoding):
    _, whole = tiny_decoding
    assert len(whole["decoding"]) == 5 * 4  # contestants and jobs
    for record in whole["decoding"]:
        assert len(record["runs"]) == (6 if record["new"] == 1 else 2)
        assert {run["tokens"] for run in record["runs"]} == {record["new"] * record["batch"]}
        assert not record["stopped"]
        fastest = min(run["seconds"] for run in record["runs"])
        assert record["tokens_per_s"] == pytest.approx(record["new"] * record["batch"] / fastest)
        assert record["block_size"] == 256
        if record["whose"] == "Groundling" and record["batch"] == 1 < record["new"]:
            peak = max(each["bytes_per_s"] for each in record["bandwidths"])
            read = record["bandwidths"][0]["bytes"]
            assert record["bandwidth_share"] == pytest.approx(read * record["tokens_per_s"] / peak)
        else:
            assert record["bandwidth_share"] is None


@pytest.mark.slow
def test_decode_speed_counts_the_bytes_read_per_token(tiny_decoding):
    """12 C^2 and V C weights, and the keys and values (C each) of the 1 + 4 tokens that stand before one of eight."""
    _, whole = tiny_decoding
    weights, keys = 12 * 32**2 + 65 * 32, 2 * 32 * 5
    read = {
        record["name"].removeprefix("Groundling "): record["bandwidths"][0]["bytes"]
        for record in whole["decoding"]
        if record["bandwidths"] and record["new"] == 8
    }
    assert read == {
        "float32": 4 * weights + 4 * keys,
        "bfloat16": 2 * weights + 2 * keys,
        "int8": weights + 2 * keys,
        "float32, PyTorch only": 4 * weights + 4 * keys,
    }


@pytest.mark.slow
def test_decode_speed_evaluates_only_measured_targets(tiny_decoding):
    said, whole = tiny_decoding
    speeds = {(r["name"], r["new"], r["batch"]): r["tokens_per_s"] for r in whole["decoding"]}
    bars = {bar["bar"]: bar for bar in whole["bars"]}
    alone = speeds["Groundling float32", 8, 1]
    expected = {
        ">= 4 x transformers, tiny, 1 stream of 8": (alone / speeds["transformers", 8, 1], 4),
        "16 streams >= 8 x one, float32, tiny": (speeds["Groundling float32", 8, 16] / alone, 8),
    }
    for text, (value, least) in expected.items():
        assert bars[text]["value"] == pytest.approx(value)
        assert bars[text]["met"] == (value >= least)
    assert bars["cold start < 3 s"]["value"] == sorted(whole["cold_starts_s"])[1]
    missing = [bar for text, bar in bars.items() if "nanoGPT" in text or "llama.cpp" in text]
    assert len(missing) == 7
    assert all(bar["met"] is None and f"- {bar['bar']}: not measured" in said for bar in missing)


@pytest.mark.slow
def test_a_draft_equal_to_the_model_is_always_accepted(tiny_decoding):
    _, whole = tiny_decoding
    plain, _, drafted = whole["guessing"]
    assert plain["right_share"] is None
    assert drafted["right_share"] > 0.9


@pytest.mark.slow
def test_decode_speed_stops_a_job_at_its_time_limit(tmp_path):
    out = tmp_path / "speed.json"
    words = ("--sizes", "tiny", "--rounds", "1", "--new", "20000", "--batches", "1", "--budget", "0.01")
    done = run("decode_speed.py", *words, "--json", str(out))
    assert done.returncode == 0, done.stderr
    for record in json.loads(out.read_text("utf-8"))["decoding"]:
        if record["new"] > 1:
            assert record["stopped"]
            assert record["runs"][0]["tokens"] < 20_000
            assert f"{record['tokens_per_s']:,.0f}*" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--nanogpt", "no/such/checkout"), "--nanogpt no/such/checkout has no model.py; give a checkout of"),
        (("--llama-cpp", "no/such/python"), "--llama-cpp no/such/python cannot import llama_cpp; install"),
        (("--draft", "a/run"), "--draft needs a trained model; give it with --bundle RUN"),
        (("--new", "1"), "--new must be at least 2"),
    ],
)
def test_decode_speed_refuses_invalid_options_in_one_line(words, says):
    done = run("decode_speed.py", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]
