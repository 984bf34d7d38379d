"""`groundling ladder`: rungs are trained by the production parts, and what came of them is written down."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from groundling.config import parse
from groundling.data import corpus as corpora
from groundling.data.batches import Batches
from groundling.errors import ConfigError, TrainingError
from groundling.evals.loss import whole_split_loss
from groundling.ladder import train as climb
from groundling.ladder.rungs import RUNGS, find_rung
from groundling.ladder.runs import chart
from groundling.ladder.runs.results import NOTE, table
from groundling.ladder.train import LadderConfig, train_rung, train_rungs
from groundling.model.loss import loss_sum
from groundling.system.processes import n_cores, side_by_side

SLEEP = """
import time
from groundling.system.processes import side_by_side
for _ in side_by_side(time.sleep, [0, 600, 600], 2):
    print("the first is done", flush=True)
"""

FIELDS = ["rung", "adds", "parameters", "val_loss", "val_loss_random_batches", "train_loss_random_batches"]
FIELDS += ["lecture_val_loss", "seconds", "sample"]


@pytest.fixture(scope="module")
def corpus(story):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
        return corpora.prepare(corpora.DataConfig(path=str(story)), block_size=8)


@pytest.mark.parametrize("name", ["s1", "s3", "s7"])
def test_a_rung_learns(name, corpus):
    result = train_rung(name, steps=60, corpus=corpus)
    steps, losses = zip(*result.val_losses, strict=True)
    assert steps == (0, 2, 7, 15, 27, 42, 60)
    assert losses[-1] < losses[0] - 0.2
    assert result.val_loss == losses[-1] == whole_split_loss(result.model, corpus.val.ids, 8)
    assert result.val_loss_random_batches == pytest.approx(result.val_loss, abs=0.1)
    assert result.val_loss_random_batches != result.val_loss
    whole = whole_split_loss(result.model, corpus.train.ids, 8)
    assert result.train_loss_random_batches == pytest.approx(whole, abs=0.1)
    assert result.train_loss_random_batches not in (whole, result.val_loss_random_batches)
    assert [step for step, _ in result.losses] == list(range(1, 61))
    assert result.losses[-1][1] < result.losses[0][1]
    assert len(result.sample) == 120
    assert 0 < result.seconds < 60


def test_the_losses_on_the_way_are_means_of_all_steps(corpus):
    result = train_rung("s1", steps=200, corpus=corpus)
    assert [step for step, _ in result.losses] == list(range(2, 201, 2))
    assert [step for step, _ in result.val_losses] == [0, 6, 22, 50, 89, 139, 200]


@pytest.mark.parametrize("name", ["s2", "s7"])
def test_it_is_the_lectures_own_loop(name, corpus):
    """PyTorch's AdamW as it comes, at a constant rate, no clipping, on the same batches: the same weights.

    Its decay takes 1e-5 of every tensor at each step, 5e-5 in all, of biases and norms too: ten times the tolerance.
    """
    rung = RUNGS[name]
    result = train_rung(name, steps=5, seed=3, corpus=corpus)
    torch.manual_seed(3)
    model = rung.build(corpus.tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rung.lr)
    batches = Batches(corpus.train.ids, block_size=8, batch_size=rung.batch_size, order="random", seed=3)
    for _ in range(5):
        (batch,) = batches.next_step()
        loss = loss_sum(model(batch.idx_BT), batch.targets_BT) / batch.n_targets
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (tensor, ours), lecture in zip(result.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, lecture, rtol=5e-6, atol=1e-6, msg=tensor)


def test_a_seed_determines_the_result_and_the_threads_are_restored(corpus):
    torch.set_num_threads(2)
    try:
        one, again, other = (train_rung("s3", steps=3, seed=seed, corpus=corpus) for seed in (1, 1, 2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (one.val_losses, one.sample) == (again.val_losses, again.sample)
    assert one.val_losses != other.val_losses


def test_one_step_is_enough_for_a_result(corpus):
    result = train_rung("s1", steps=1, corpus=corpus)
    assert [step for step, _ in result.val_losses] == [0, 1]
    assert len(result.losses) == 1


@pytest.mark.slow
def test_the_record_has_these_fields_and_the_chart_is_a_png(corpus, tmp_path):
    results = [train_rung(name, steps=3, corpus=corpus) for name in ("s1", "s2")]
    record = results[0].record()
    assert list(record) == FIELDS
    assert (record["rung"], record["lecture_val_loss"], record["adds"]) == ("s1", 2.5, RUNGS["s1"].adds)
    assert record["parameters"] == corpus.tokenizer.vocab_size**2
    assert json.loads(json.dumps(record)) == record
    chart.draw(results, tmp_path / "ladder.png")
    chart.draw(results[1:], tmp_path / "no_lecture.png")
    assert results[1].record()["lecture_val_loss"] is None
    for name in ("ladder.png", "no_lecture.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    rows = table(results)
    assert [column.header for column in rows.columns][0::3] == ["rung", "val_loss", "training loss"]
    assert rows.row_count == 2


@pytest.mark.slow
def test_parallel_equals_sequential(corpus, story, monkeypatch, capfd):
    monkeypatch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
    alone = {name: train_rung(name, steps=20, seed=5, corpus=corpus) for name in ("s1", "s3", "s7")}
    drawn = torch.get_rng_state()
    data = corpora.DataConfig(path=str(story))
    together = {done.rung: done for done in train_rungs(["s1", "s3", "s7"], steps=20, seed=5, data=data, at_once=2)}
    assert torch.equal(torch.get_rng_state(), drawn)
    assert together.keys() == alone.keys()
    for name, result in together.items():
        assert {**result.record(), "seconds": 0} == {**alone[name].record(), "seconds": 0}
        assert (result.losses, result.val_losses) == (alone[name].losses, alone[name].val_losses)
        weights, expected = result.model.state_dict(), alone[name].model.state_dict()
        assert list(weights) == list(expected)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
        assert whole_split_loss(result.model, corpus.val.ids, 8) == result.val_loss
    assert not multiprocessing.active_children()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "s7, s3, s1: 2 at a time ...\n")


def test_one_core_or_one_rung_needs_no_worker(corpus, story, monkeypatch, capsys):
    monkeypatch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
    data = corpora.DataConfig(path=str(story))
    one_by_one = [*train_rungs(["s1", "s2"], steps=3, data=data, at_once=1), *train_rungs(["s3"], steps=3, data=data)]
    assert [result.rung for result in one_by_one] == ["s1", "s2", "s3"]
    assert "at a time" not in capsys.readouterr().err
    assert one_by_one[1].val_losses == train_rung("s2", steps=3, corpus=corpus).val_losses
    with pytest.raises(ConfigError, match="'s0'"):
        next(train_rungs(["s1", "s0"], data=data))


def test_every_job_is_done_once():
    assert sorted(side_by_side(abs, [-3, -1, -4, -1, -5], 2)) == [1, 1, 3, 4, 5]
    assert list(side_by_side(abs, [-2], 8)) == [2]
    assert list(side_by_side(abs, [], 2)) == []
    assert 1 <= n_cores() <= os.cpu_count()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("work", "jobs", "error", "said"),
    [
        pytest.param(find_rung, ["s3", "s0"], ConfigError, "^no rung 's0'; the rungs are: .*s9$", id="of a user"),
        pytest.param(int, ["1", "x"], RuntimeError, r"(?s)Traceback.*ValueError: invalid literal", id="our own"),
        pytest.param(os._exit, [3], TrainingError, "^a worker process ended with exit code 3 and", id="killed"),
    ],
)
def test_an_error_in_a_worker_is_an_error_here(work, jobs, error, said, capfd):
    with pytest.raises(error, match=said):
        list(side_by_side(work, jobs, 2))
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == "", "said once, by whoever catches it"


def test_the_workers_end_when_the_caller_stops_waiting():
    results = side_by_side(abs, [-1, -2, -3], 2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert not multiprocessing.active_children()


def hears_ctrl_c() -> None:
    """For a child: a shell starts what it runs in the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "to_all", "n_tracebacks"),
    [
        pytest.param(signal.SIGINT, True, 1, id="Ctrl-C, which goes to all"),
        pytest.param(signal.SIGTERM, False, 0, id="SIGTERM"),
        pytest.param(signal.SIGKILL, False, 0, id="SIGKILL"),
    ],
)
def test_no_worker_outlives_its_parent(number, to_all, n_tracebacks):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )
    assert process.stdout.readline() == "the first is done\n"
    (os.killpg if to_all else os.kill)(process.pid, number)
    # Nothing more comes only when the last process has ended that could write: the workers have the same pipes.
    _, said = process.communicate(timeout=60)
    assert process.returncode == -number
    assert said.count("Traceback") == n_tracebacks, said


@pytest.mark.slow
def test_an_interrupted_ladder_keeps_what_is_done(tmp_path):
    words = ["ladder", "--rungs", "s1,s7", "--steps", "1500", "--at-once", "2", "--out-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "groundling", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )
    heard = [process.stderr.readline(), process.stderr.readline()]
    assert heard[0] == "s7, s1: 2 at a time ...\n"
    assert heard[1].startswith("s1: validation loss 2.")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "groundling: interrupted\n")
    assert [rung["rung"] for rung in json.loads((tmp_path / "ladder.json").read_text("utf-8"))["rungs"]] == ["s1"]


@pytest.mark.slow
def test_the_verb_on_tiny_shakespeare(tmp_path, capsys):
    words = ["--rungs", "s2, s1", "--steps", "30", "--at-once", "2", "--out-dir", str(tmp_path)]
    assert climb.main(words) == 0
    said = capsys.readouterr()
    written = json.loads((tmp_path / "ladder.json").read_text("utf-8"))
    assert list(written) == ["rungs"]
    assert [list(rung) for rung in written["rungs"]] == [FIELDS, FIELDS]
    assert [rung["rung"] for rung in written["rungs"]] == ["s1", "s2"], "in the ladder's order"
    assert [rung["parameters"] for rung in written["rungs"]] == [65 * 65, 65 * 32 + 8 * 32 + 32 * 65 + 65]
    assert all(2.0 < rung["val_loss"] < math.log(65) + 0.5 for rung in written["rungs"])
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert "The ladder" in said.out
    assert NOTE in said.out
    assert "s2, s1: 2 at a time ..." in said.err
    assert "s1: validation loss " in said.err


def test_show_is_a_sub_command(capsys):
    assert climb.main(["show", "s1"]) == 0
    assert "class BigramModel" in capsys.readouterr().out


def test_which_rungs():
    assert LadderConfig().names() == ["s1", "s2", "s3", "s4", "s5", "s6", "s7"]
    assert LadderConfig(scaled=True).names()[-1] == "s8"
    assert LadderConfig(rungs=" s4,s3 ,s4,").names() == ["s3", "s4"]
    assert LadderConfig(rungs="s9", scaled=True).names() == ["s8", "s9"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rungs", "s3,s10"], r"no rung 's10'; the rungs are: s1, s2, .*s9"),
        (["--rungs", ","], "rungs is empty; name some, for example s3,s4"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--at-once", "0"], "at_once is 0; it must be at least 1, or None"),
        (["show", "s0"], "s0"),
    ],
)
def test_invalid_settings(words, said):
    with pytest.raises(ConfigError, match=said) as refused:
        climb.main(words)
    assert "\n" not in str(refused.value)


def test_an_unknown_rung(corpus):
    with pytest.raises(ConfigError, match="'s0'"):
        train_rung("s0", corpus=corpus)
    assert parse(LadderConfig, [], "groundling ladder") == LadderConfig()
