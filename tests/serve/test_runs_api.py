"""Training runs over HTTP: found by name alone, read in pieces that add up, and shown in a bounded number of points."""

import http.client
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling.serve.runs.curves import (
    MAX_POINTS,
    MAX_SAMPLES,
    MAX_SERIES,
    DownsampledSeries,
    MetricsDelta,
    last_values,
    read_delta,
)
from groundling.serve.runs.folders import RunFolder, find_runs, ladder_of, run_info
from groundling.train.pretrain import pretrain
from servekit import Served, serving

URL = "/v1/groundling/runs"


def line(step: int, **values: Any) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def write_run(folder: Path, n: int = 5, stage: str | None = None, summary: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(line(step, loss=1 / step) for step in range(1, n + 1)))
    (folder / "env.json").write_text(json.dumps({} if stage is None else {"stage": stage}))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def steps_of(news: MetricsDelta, name: str = "loss") -> list[float]:
    return news.points().get(name, ([], []))[0]


# Reading.


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 4000), max_size=12),
    rows=st.lists(
        st.one_of(
            st.builds(
                lambda step, loss: line(step, loss=loss, kl=-loss),
                st.integers(0, 99),
                st.floats(-9, 9),
            ),
            st.sampled_from(["\n", "no json\n", "[1]\n", '{"loss": 1}\n', '{"step": true, "loss": 1}\n', "\xff\n"]),
        ),
        max_size=40,
    ),
)
def test_pieces_add_up_to_the_whole(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], rows: list[str]) -> None:
    """Wherever a file that grows is looked at, also in the middle of a line, each row comes once and in its turn."""
    data = "".join(rows).encode("latin-1")
    path = tmp_path_factory.mktemp("grows") / "metrics.jsonl"
    after, mark, found = 0, None, []
    for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        path.write_bytes(data[:cut])
        news = read_delta(path, after, mark)
        assert not news.restarted
        after, mark = news.after, news.mark
        found += list(zip(*news.points().get("loss", ([], [])), strict=True))
    good = [json.loads(row) for row in rows if row.startswith('{"step": ') and "true" not in row]
    assert found == [(row["step"], row["loss"]) for row in good]
    assert after == len(data)


def test_an_incomplete_last_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, loss=1) + '{"step": 2, "lo')
    first = read_delta(path, 0)
    assert (steps_of(first), first.after) == ([1], len(line(1, loss=1)))
    path.write_text(line(1, loss=1) + line(2, loss=2))
    assert steps_of(read_delta(path, first.after, first.mark)) == [2]


def test_a_replaced_file_is_detected(tmp_path: Path) -> None:
    """Shorter, as long, or longer; and one that a run was resumed in goes on as if nothing had been."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, loss=step) for step in range(10)))
    seen = read_delta(path, 0)
    for n in (3, 10, 30):
        path.write_text("".join(line(step, loss=step + 0.5) for step in range(n)))
        news = read_delta(path, seen.after, seen.mark)
        assert news.restarted
        assert steps_of(news) == list(range(n))
    assert read_delta(path, path.stat().st_size + 1).restarted, "too short, also where a client bears no mark"
    path.unlink()
    gone = read_delta(path, seen.after, seen.mark)
    assert (gone.restarted, gone.after, gone.series) == (True, 0, {})
    path.write_text("".join(line(step, loss=step) for step in range(15)))
    resumed = read_delta(path, seen.after, seen.mark)
    assert (resumed.restarted, steps_of(resumed)) == (False, list(range(10, 15)))


def test_non_finite_numbers_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        line(1, loss=math.nan)
        + line(2, loss=math.inf, ok=True, name="x")
        + line(3, loss=1.5)
        + '{"step": NaN, "loss": 1}\n'
    )
    news = read_delta(path, 0)
    assert news.points() == {"loss": ([3], [1.5])}
    assert news.n_not_finite == 2


def test_samples_come_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, sample=f"<b>{step}</b>" * 2000) for step in range(50)))
    news = read_delta(path, 0)
    assert [sample["step"] for sample in news.samples] == list(range(50 - MAX_SAMPLES, 50))
    assert all(len(sample["text"]) == 4000 for sample in news.samples)


def test_records_of_a_live_run_are_returned(tiny_config) -> None:
    config = tiny_config(sample_every=3, sample_prompt="the king")
    pretrain(config)
    first, last = read_delta(config.out_dir / "metrics.jsonl", 0).samples
    assert (first["step"], last["step"]) == (3, 6)
    assert first["text"].startswith("the king")
    assert len(last["text"]) == len("the king") + config.sample_tokens
    told = run_info(RunFolder("run", config.out_dir))
    assert told["last"].keys() >= {"loss", "val_loss"}, "a sample hides no figures"


@pytest.mark.parametrize("n", [1, 2, 1999, 2000, 2001, 4001, 100_000])
def test_a_long_series_keeps_its_shape(n: int) -> None:
    """The lowest, the highest, the first and the newest value are there, in order, in a bounded number of points."""
    values = [math.sin(step / 50) for step in range(n)]
    values[n // 3], values[n // 2] = 7.0, -7.0
    if n > MAX_POINTS:  # the newest is neither the lowest nor the highest of its stretch
        values[-1] = (values[-2] + values[-3]) / 2
    thinned = DownsampledSeries()
    for step, value in enumerate(values):
        thinned.add(step, value)
    steps, found = thinned.points()
    assert len(steps) == (n if n < MAX_POINTS else len(steps)) <= MAX_POINTS
    assert len(steps) >= min(n, MAX_POINTS / 5)
    assert steps == sorted(steps)
    assert steps[-1] == n - 1
    assert {min(values), max(values)} <= set(found)
    assert all(values[int(step)] == value for step, value in zip(steps, found, strict=True))


@pytest.mark.parametrize("n", [1, 1999, 2000, 4001, 9973])
def test_the_means_of_a_long_series_add_up_to_it(n: int) -> None:
    """The lowest and the highest of each stretch do not: of rare peaks they make half of all."""
    values = [100.0 if step % 50 == 0 else 1.0 for step in range(n)]
    thinned = DownsampledSeries()
    for step, value in enumerate(values):
        thinned.add(step, value)
    steps, means, counts = thinned.means()
    assert thinned.is_whole == (n < MAX_POINTS)
    assert sum(counts) == n
    assert sum(mean * count for mean, count in zip(means, counts, strict=True)) == pytest.approx(sum(values))
    assert steps == [sum(counts[: place + 1]) - 1 for place in range(len(counts))]
    shown = thinned.points()[1]
    assert thinned.is_whole or sum(shown) / len(shown) > 2 * sum(values) / n


@pytest.mark.slow
def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """In several answers, each of a bounded size; also where a line has no end, and where a row has too many names."""
    path = tmp_path / "metrics.jsonl"
    row = line(1, loss=1.0, text="x" * 300).encode()
    n = 100_000
    with path.open("wb") as file:
        file.write(line(1, **{f"name {k}": k for k in range(1000)}).encode())
        for _ in range(100):
            file.write(row * (n // 100))
        file.write(b'{"step": 2, "loss": "' + b"y" * 3_000_000 + b'"}\n' + line(3, loss=3).encode())
    tracemalloc.start()
    after, mark, n_rows, n_answers, more, points = 0, None, 0, 0, True, []
    while more:
        news = read_delta(path, after, mark, most_bytes=8 << 20)
        assert len(news.series) <= MAX_SERIES
        points = news.points().get("loss", ([], []))[0] or points
        assert len(points) <= MAX_POINTS
        after, mark, more = news.after, news.mark, news.more
        n_rows, n_answers = n_rows + news.n_rows, n_answers + 1
    assert tracemalloc.get_traced_memory()[1] < 12e6
    tracemalloc.stop()
    assert (n_rows, after, points[-1]) == (n + 2, path.stat().st_size, 3)
    assert n_answers >= 4


def test_the_newest_values_are_read_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(line(step, loss=step, pad="x" * 500) for step in range(1000)) + line(1000, kl=4) + '{"step": 10'
    )
    assert last_values(path) == {"step": 1000, "loss": 999, "kl": 4}
    path.write_text(line(1, loss=2))
    assert last_values(path) == {"step": 1, "loss": 2}
    assert last_values(tmp_path / "none") == {}


# Finding.


def test_only_runs_are_found_and_no_link_is_followed(tmp_path: Path) -> None:
    runs, outside = tmp_path / "runs", write_run(tmp_path / "outside")
    for name in ("ppo-10", "ppo-2", "nested/deep/run", "ppo-2/checkpoints/250", ".hidden"):
        write_run(runs / name)
    (runs / "empty").mkdir()
    (runs / "linked").symlink_to(outside)
    (runs / "half").mkdir()
    (runs / "half/metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    write_run(runs / "a/b/c/d/too-deep")
    (runs / "ladder").mkdir()
    (runs / "ladder/ladder.json").write_text("{}")
    found = find_runs(runs, {"bard": runs / "ppo-2", "fool": outside / "bundle", "none": tmp_path / "nowhere"})
    assert list(found) == ["ladder", "nested/deep/run", "ppo-2", "ppo-10", "served:fool"]
    assert found["ppo-2"].served == ("bard",)
    assert found["served:fool"].path == outside
    for path in (runs / "ppo-2", runs / "ppo-10"):  # the newest is not the first
        os.utime(path / "metrics.jsonl")
    assert list(find_runs(runs, {})) == list(found)[:-1]
    assert find_runs(tmp_path / "none", {}) == {}


def test_the_scan_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        write_run(tmp_path / f"run-{number}", n=1)
    monkeypatch.setattr("groundling.serve.runs.folders.MAX_RUNS", 7)
    assert len(find_runs(tmp_path, {})) == 7
    monkeypatch.setattr("groundling.serve.runs.folders.MAX_FOLDERS", 4)
    assert len(find_runs(tmp_path, {})) == 4


def test_a_run_is_live_while_its_process_is(tmp_path: Path) -> None:
    """Whatever its files' times are: by the process that its lock names."""
    path = write_run(tmp_path / "run", stage="reward")
    run = RunFolder("run", path)
    assert (run_info(run)["state"], run_info(run)["kind"], run_info(run)["step"]) == ("broken off", "reward", 5)
    sleeping = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (path / ".lock.pid").write_text(f"{sleeping.pid}\n")
    assert run_info(run)["state"] == "live"
    sleeping.communicate()
    assert run_info(run)["state"] == "broken off"
    for word in ("", "x", "0", "-1", "9" * 30):
        (path / ".lock.pid").write_text(word)
        assert run_info(run)["state"] == "broken off", word
    (path / "summary.json").write_text('{"ended": "the KL went beyond 8.5"}')
    assert (run_info(run)["state"], run_info(run)["ended"]) == ("ended", "the KL went beyond 8.5")
    (path / "summary.json").write_text("no json")
    assert run_info(run)["state"] == "broken off"


def test_only_known_fields_of_a_ladder_are_returned(tmp_path: Path) -> None:
    good = {
        "rung": "s1",
        "adds": "a table",
        "parameters": 4,
        "val_loss": 2.5,
        "lecture_val_loss": None,
        "sample": "x" * 9000,
    }
    rungs = [good, "no rung", {"rung": 5}, {"rung": "s2", "val_loss": math.nan, "path": "/etc"}]
    (tmp_path / "ladder.json").write_text(json.dumps({"rungs": rungs}))
    first, second = ladder_of(RunFolder("ladder", tmp_path))
    assert (first["val_loss"], first["lecture_val_loss"], len(first["sample"])) == (2.5, None, 4000)
    assert (second["val_loss"], "path" in second) == (None, False)
    (tmp_path / "ladder.json").write_text("[]")
    assert ladder_of(RunFolder("ladder", tmp_path)) == []


# Over HTTP.


@pytest.fixture(scope="module")
def house(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("house")
    write_run(folder / "runs/a b/ü#?%2e", stage="sft", summary={"ended": "finished"})
    write_run(folder / "outside")
    (folder / "runs/ladder").mkdir()
    (folder / "runs/ladder/ladder.json").write_text(json.dumps({"rungs": [{"rung": "s1", "val_loss": 2.5}]}))
    with serving(models["base"], "--runs", folder / "runs", "--rankings", folder / "r.sqlite") as served:
        served.folder = folder  # type: ignore[attr-defined]
        yield served


@pytest.mark.slow
def test_a_run_is_listed_and_followed_over_http(house: Served) -> None:
    status, told, _ = house.ask("GET", URL)
    assert status == 200
    (run, ladder) = told["data"]
    assert (run["name"], run["kind"], run["state"], run["step"]) == ("a b/ü#?%2e", "sft", "ended", 5)
    assert run["last"] == {"loss": 0.2}
    assert (ladder["name"], ladder["kind"], ladder["has_ladder"]) == ("ladder", "ladder", True)
    address = f"{URL}/a%20b/%C3%BC%23%3F%252e/metrics"
    status, first, _ = house.ask("GET", address)
    assert (status, first["series"]["loss"]["step"]) == (200, [1, 2, 3, 4, 5])
    path = house.folder / "runs/a b/ü#?%2e/metrics.jsonl"  # type: ignore[attr-defined]
    with path.open("a") as file:
        file.write(line(6, loss=math.nan, kl=0.5) + line(7, loss=0.1)[:5])
    status, news, _ = house.ask("GET", f"{address}?after={first['next']}&mark={first['mark']}")
    assert (status, news["series"]) == (200, {"kl": {"step": [6], "value": [0.5]}})
    assert (news["restarted"], news["not_finite"], news["rows"]) == (False, 1, 1)
    assert house.ask("GET", f"{address}?after={first['next']}&mark=wrong")[1]["restarted"] is True
    assert "mean" not in first["series"]["loss"], "every value is there"
    assert house.ask("GET", f"{address}?after=-1")[0] == 400
    assert house.ask("GET", f"{URL}/ladder/ladder")[1]["rungs"][0]["val_loss"] == 2.5


WAYS_OUT = (
    *("../outside", "..%2Foutside", "a%20b/../../outside", "%2Fetc", "/etc", ".", "..", "a%00b", "a%20b", "outside"),
    *("%5C..%5C", "served%3Abase", "%FF"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS_OUT)
def test_names_from_clients_never_become_paths(house: Served, name: str) -> None:
    for what in ("metrics", "ladder"):
        connection = http.client.HTTPConnection("127.0.0.1", house.port)
        connection.request("GET", f"{URL}/{name}/{what}")
        response = connection.getresponse()
        told = json.loads(response.read())
        connection.close()
        assert response.status == 404
        assert told["error"]["code"] in ("no_run", "not_found")
        assert str(house.folder) not in json.dumps(told)  # type: ignore[attr-defined]
