"""`groundling ladder`: rungs are trained by the production parts, and what came of them is written down."""

import json
import math

import pytest
import torch

from groundling.config import parse
from groundling.data import corpus as corpora
from groundling.errors import ConfigError
from groundling.evals.loss import whole_split_loss
from groundling.ladder import chart, climb
from groundling.ladder.climb import LadderConfig, train_rung
from groundling.ladder.rungs import RUNGS
from groundling.model.loss import loss_sum

FIELDS = ["rung", "adds", "parameters", "val_loss", "val_loss_random_batches", "lecture_val_loss", "seconds", "sample"]


@pytest.fixture(scope="module")
def corpus(story):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
        return corpora.prepare(corpora.DataConfig(path=str(story)), block_size=8)


@pytest.mark.parametrize("name", ["s1", "s3", "s7"])
def test_a_rung_learns(name, corpus):
    result = train_rung(name, steps=60, corpus=corpus)
    steps, losses = zip(*result.val_losses, strict=True)
    assert steps == tuple(range(0, 61, 6))
    assert losses[-1] < losses[0] - 0.2
    assert result.val_loss == losses[-1] == whole_split_loss(result.model, corpus.val.ids, 8)
    assert result.val_loss_random_batches == pytest.approx(result.val_loss, abs=0.1)
    assert result.val_loss_random_batches != result.val_loss
    assert [step for step, _ in result.losses] == list(range(1, 61))
    assert result.losses[-1][1] < result.losses[0][1]
    assert len(result.sample) == 120
    assert 0 < result.seconds < 60


def test_the_losses_on_the_way_are_means_of_all_steps(corpus):
    result = train_rung("s1", steps=200, corpus=corpus)
    assert [step for step, _ in result.losses] == list(range(2, 201, 2))
    assert [step for step, _ in result.val_losses] == list(range(0, 201, 20))


def test_it_is_the_lectures_own_loop(corpus):
    """PyTorch's AdamW as it comes, at a constant rate, no clipping, on the same batches: the same weights."""
    rung = RUNGS["s2"]
    result = train_rung("s2", steps=5, seed=3, corpus=corpus)
    torch.manual_seed(3)
    model = rung.build(corpus.tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rung.lr)
    batches = climb.Batches(corpus.train.ids, block_size=8, batch_size=rung.batch_size, order="random", seed=3)
    for _ in range(5):
        (batch,) = batches.next_step()
        loss = loss_sum(model(batch.idx_BT), batch.targets_BT) / batch.n_targets
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, ours), lecture in zip(result.model.named_parameters(), model.parameters(), strict=True):
        # The lecture's AdamW decays biases too, by 1e-5 of them a step.
        torch.testing.assert_close(ours, lecture, rtol=1e-4, atol=1e-6, msg=name)


def test_a_seed_is_a_result_and_the_threads_are_given_back(corpus):
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
    rows = climb.table(results)
    assert [column.header for column in rows.columns][0::3] == ["rung", "val_loss", "seconds"]
    assert rows.row_count == 2


@pytest.mark.slow
def test_the_verb_on_tiny_shakespeare(tmp_path, capsys):
    assert climb.main(["--rungs", "s2, s1", "--steps", "30", "--out-dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    written = json.loads((tmp_path / "ladder.json").read_text("utf-8"))
    assert list(written) == ["rungs"]
    assert [list(rung) for rung in written["rungs"]] == [FIELDS, FIELDS]
    assert [rung["rung"] for rung in written["rungs"]] == ["s1", "s2"], "in the ladder's order"
    assert [rung["parameters"] for rung in written["rungs"]] == [65 * 65, 65 * 32 + 8 * 32 + 32 * 65 + 65]
    assert all(2.0 < rung["val_loss"] < math.log(65) + 0.5 for rung in written["rungs"])
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert "The ladder" in said.out
    assert climb.NOTE in said.out
    assert "s1: a V x V table ..." in said.err


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
        (["show", "s0"], "s0"),
    ],
)
def test_what_cannot_be_climbed(words, said):
    with pytest.raises(ConfigError, match=said) as refused:
        climb.main(words)
    assert "\n" not in str(refused.value)


def test_a_rung_that_is_not_there(corpus):
    with pytest.raises(ConfigError, match="'s0'"):
        train_rung("s0", corpus=corpus)
    assert parse(LadderConfig, [], "groundling ladder") == LadderConfig()
