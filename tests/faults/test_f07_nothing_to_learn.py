"""Row 7: rows from which nothing is learned, and rows that are too long, are counted; they never make a loss NaN."""

import json
from pathlib import Path

import pytest
import torch

from groundling.align import sft
from groundling.bundle import load_bundle, save_bundle
from groundling.errors import DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer

FLAGS = ("--n-replies", "2", "--runtime.device", "cpu", "--runtime.dtype", "float32", "--batch-size", "8")


def row(user: str, reply: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]}


@pytest.fixture
def learn(tmp_path, capsys):
    """Fine-tunes a tiny model on rows; gives its summary, and what was said of the rows."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=24, vocab_size=2))
    save_bundle(tmp_path / "base", model, CharTokenizer("ab"))

    def run(rows: list[dict[str, object]], *flags: str) -> tuple[dict[str, object], str]:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
        argv = ["--data.path", str(path), "--data.val-path", str(path), "--out-dir", str(tmp_path / "run"), *FLAGS]
        assert sft.main([str(tmp_path / "base"), *argv, *flags]) == 0
        return json.loads((tmp_path / "run/summary.json").read_text("utf-8")), capsys.readouterr().err

    return run


def require_finite(run: Path) -> None:
    assert all(tensor.isfinite().all() for tensor in load_bundle(run).model.state_dict().values())


def test_a_hundred_rows_that_are_too_long_are_shortened_and_the_epoch_ends(learn, tmp_path):
    about, said = learn([row("ab" * 200, "ba" * 200)] * 100 + [row("a", "b")] * 4, "--epochs", "2")
    assert "104 of 104 examples kept; 100 lost the start of the user's message; 100 lost the end of the reply" in said
    assert about["reason"] == "finished"
    assert 0 < about["val_loss"] < 10
    require_finite(tmp_path / "run")


def test_rows_without_a_reply_are_left_out_and_the_others_learned(learn, tmp_path):
    rows = [
        row("a", ""),
        row("a", "  "),
        {"messages": [{"role": "user", "content": "b"}]},
        row("a", "b"),
        row("b", "a"),
    ]
    about, said = learn(rows, "--epochs", "4")
    assert "2 of 5 examples kept; 3 dropped as empty" in said
    assert about["reason"] == "finished"
    require_finite(tmp_path / "run")


def test_nothing_but_such_rows_is_told_in_one_line(learn):
    with pytest.raises(DataError, match=r"no conversation is left to train on: 0 of 3 .* 3 dropped as empty") as error:
        learn([row("a", "")] * 3)
    assert "\n" not in str(error.value)
