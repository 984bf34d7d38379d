"""`groundling data dialogues` and `inspect`: what a user sees of the examples."""

import json

import pytest
from rich.text import Text

from groundling.bundle import save_bundle
from groundling.data.cli import main
from groundling.data.examples.conversations import read_conversations
from groundling.data.examples.shakespeare import shakespeare_dialogues
from groundling.data.inspect import show
from groundling.errors import ConfigError, DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens

TALK = [{"role": "user", "content": "who?\x1b"}, {"role": "assistant", "content": "<user>[me]"}]


@pytest.fixture
def talk(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"messages": TALK[:1]}) + "\n")
    return path


@pytest.mark.parametrize(("split", "n"), [("train", 5073), ("val", 788)])
def test_what_is_written_is_what_fine_tuning_takes(split, n, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["dialogues", str(out), "--split", split]) == 0
    assert f"{n:,} dialogues of the {split} part" in capsys.readouterr().out
    assert read_conversations(out) == shakespeare_dialogues()[split == "val"]


def test_own_plays_and_limits(tmp_path, capsys):
    path, out = tmp_path / "play.txt", tmp_path / "out.jsonl"
    path.write_text("A:\none. two.\n\nB:\nthree. four.\n\n" * 20)
    limits = ["--max-reply", "6", "--max-prompt", "5", "--max-turns", "1", "--data.path", str(path)]
    assert main(["dialogues", str(out), *limits]) == 0
    contents = {tuple(m.content for m in conversation.messages) for conversation in read_conversations(out)}
    assert contents == {("two.", "three."), ("four.", "one.")}
    assert main(["dialogues", str(out), "--split", "val", "--data.val-fraction", "0.5", *limits]) == 0
    assert len(read_conversations(out)) == 19


def test_without_colours_brackets_hold_what_is_learned(talk, capsys):
    """Only structure begins a line, so that words that look like it are told apart."""
    assert main(["inspect", "none", str(talk)]) == 0
    out = capsys.readouterr().out
    assert "<user>who?<U+001B><end>\n<assistant>[<user>[me]<end>]\n" in out
    assert "1 of 2 examples kept; 1 dropped as empty" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("n", [0, 1, 2])
def test_so_many_are_shown_and_all_are_counted(n, talk, capsys):
    talk.write_text(talk.read_text() * 3)
    assert main(["inspect", "none", str(talk), "--n", str(n)]) == 0
    out = capsys.readouterr().out
    assert out.count("<assistant>") == n
    assert "3 of 6 examples kept" in out


def test_of_a_pair_both_replies_are_shown(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    pair = {"prompt": "who?", "chosen": "me.", "rejected": "you."}
    path.write_text(json.dumps(pair) + "\n" + json.dumps(pair | {"rejected": "me."}))
    assert main(["inspect", "none", str(path)]) == 0
    out = capsys.readouterr().out
    assert "chosen:\n<user>who?<end>\n<assistant>[me.<end>]\nrejected:\n<user>who?<end>\n<assistant>[you.<end>]" in out
    assert "1 of 2 examples kept; 1 dropped because both replies are the same" in out


def test_a_bundle_gives_its_tokenizer_and_its_context(tmp_path, talk, capsys):
    tokenizer = CharTokenizer.from_text("who?\x1b<user>[me]")
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=tokenizer.vocab_size + 4))
    save_bundle(tmp_path / "bundle", model, tokenizer, chat=RoleTokens.after(tokenizer.vocab_size))
    assert main(["inspect", str(tmp_path / "bundle"), str(talk)]) == 0
    assert "<user>?<U+001B><end>\n<assistant>[<user>[me]<end>]" in capsys.readouterr().out, "there are 16 ids"
    other = CharTokenizer.from_text("abc")
    save_bundle(tmp_path / "other", GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=3)), other)
    assert main(["inspect", str(tmp_path / "other"), str(talk)]) == 0
    assert "0 of 2 examples kept; 1 dropped as empty; 1 dropped because the tokenizer cannot" in capsys.readouterr().out


def test_colours_mark_what_is_learned():
    tokenizer = CharTokenizer("ab")
    chat = RoleTokens.after(2)
    ids, said = chat.render([Message("user", "a"), Message("assistant", "b")], tokenizer)
    coloured: Text = show(ids, said, chat, tokenizer, in_colour=True)
    assert coloured.plain == "<user>a<end>\n<assistant>b<end>"
    learned = "".join(coloured.plain[span.start : span.end] for span in coloured.spans if "green" in str(span.style))
    assert learned == "b<end>"


def test_list_and_get_are_still_there(capsys):
    assert main(["get", "tiny_shakespeare"]) == 0
    assert capsys.readouterr().out.strip().endswith("tiny_shakespeare.txt")
    assert main(["list"]) == 0
    assert "tiny_shakespeare" in capsys.readouterr().out


def test_what_cannot_work_is_an_error_of_the_user(tmp_path, talk):
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        main(["inspect", "none", str(tmp_path / "nothing.jsonl")])
    for flag in (["--n", "-1"], ["--block-size", "3"]):
        with pytest.raises(ConfigError):
            main(["inspect", "none", str(talk), *flag])
    with pytest.raises(ConfigError):
        main(["dialogues", str(tmp_path / "out"), "--split", "test"])
    assert main(["shuffle"]) == 2
