"""`groundling rank` and `groundling rankings`: what a rater sees of them."""

import io
import json
import sys

import pytest
from rankingkit import judgement
from stagekit import FAST, write_base, write_conversations

from groundling.align import sft
from groundling.align.preferences import cli as rankings_cli
from groundling.align.preferences import terminal
from groundling.align.preferences.judgement import SKIP, choice_of_best, tie_of
from groundling.align.preferences.store import Rankings
from groundling.errors import ConfigError, DataError

MODELS = ["alpha-model", "beta-model", "gamma-model", "delta-model"]


def rows(n, n_candidates=2):
    for number in range(n):
        candidates = [{"text": f"reply {c} to {number}", "model": MODELS[c]} for c in range(n_candidates)]
        yield {"id": number, "prompt": f"prompt {number}", "candidates": candidates}


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Answer the questions with some lines; return what was on the screen."""

    def run(questions, lines, *flags, rater="ann", **more):
        file = tmp_path / "questions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in questions))
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert terminal.main([str(tmp_path / "r.db"), "--candidates", str(file), "--rater", rater, *flags], **more) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def kept(tmp_path):
    def read():
        with Rankings(tmp_path / "r.db", must_exist=True) as rankings:
            return list(rankings)

    return read


def test_an_answer_names_the_candidate_shown_at_its_position(ask, kept):
    screen = ask(rows(12), ["1"] * 12)
    items = kept()
    assert [item.choice for item in items] == [choice_of_best(item.shown[0], 2) for item in items]
    assert {item.shown for item in items} == {(0, 1), (1, 0)}, "both orders come up among twelve"
    for number, item in enumerate(items):
        first, second = (item.candidates[place].text for place in item.shown)
        assert f"prompt {number}\n\n(1) {first}\n\n(2) {second}\n" in screen
    assert {item.rater for item in items} == {"ann"}


def test_model_names_are_not_shown(ask):
    screen = ask(rows(3, 4), ["1", "2", "t"])
    assert "reply 3 to 2" in screen
    assert not [model for model in MODELS if model in screen]


def test_ties_and_skips_are_stored_without_preferences(ask, kept, tmp_path):
    ask(rows(3, 3), ["t", "s", "3"])
    tie, skip, best = kept()
    assert (tie.choice, skip.choice, best.choice) == (tie_of(3), SKIP, ((best.shown[2],),))
    with Rankings(tmp_path / "r.db") as rankings:
        assert rankings.counts()[:3] == (3, 1, 1)
        assert {pair.better.text for pair in rankings.pairs()} == {f"reply {best.shown[2]} to 2"}
        assert len(list(rankings.pairs())) == 2


def test_a_full_ranking_can_be_entered(ask, kept):
    ask(rows(1, 4), ["3142"])
    (item,) = kept()
    assert item.choice == tuple((item.shown[place],) for place in (2, 0, 3, 1))


@pytest.mark.parametrize("line", ["", "3", "0", "11", "x", "1 2", "tt", "-1", "²", "1\x1b[2J"])
def test_an_invalid_answer_is_asked_again_and_not_stored(line, ask, kept):
    screen = ask(rows(1), [line, "2"])
    assert screen.count("best?") == 2
    assert "is not an answer" in screen
    assert "\x1b" not in screen
    assert len(kept()) == 1


@pytest.mark.parametrize("leave", [["q"], []], ids=["q", "the end of the input"])
def test_a_returning_rater_gets_the_remaining_questions(leave, ask, kept):
    screen = ask(rows(5), ["1", "s", *leave])
    assert "2 answers stored" in screen
    assert "3 questions left" in screen
    screen = ask(rows(5), ["1"] * 5)
    assert "5 questions for ann, 2 already answered" in screen
    assert "prompt 1\n" not in screen
    assert "[3 of 3]" in screen
    assert [item.messages[0].content for item in kept()] == [f"prompt {n}" for n in range(5)]


def test_each_rater_gets_all_questions_in_a_different_order(ask, kept):
    ask(rows(12), ["1"] * 12)
    ask(rows(12), ["1"] * 12, rater="bob")
    orders = [[item.shown for item in kept() if item.rater == rater] for rater in ("ann", "bob")]
    assert len(orders[0]) == len(orders[1]) == 12
    assert orders[0] != orders[1]


def test_a_changed_question_is_a_new_question(ask, kept):
    ask(rows(1), ["1"])
    changed = [row | {"prompt": "another"} for row in rows(1)]
    ask(changed, ["1"])
    assert len(kept()) == 2


def test_a_duplicate_question_is_asked_once(ask, kept):
    screen = ask([*rows(2), *rows(2)], ["1"] * 4)
    assert "2 questions for ann" in screen
    assert len(kept()) == 2


def test_equal_replies_are_skipped(ask, kept):
    same = {"prompt": "p", "candidates": [{"text": "x", "model": "a"}, {"text": "x", "model": "b"}]}
    assert "nothing to choose" in ask([same, *rows(1)], ["1"])
    assert [item.messages[0].content for item in kept()] == ["prompt 0"]


def test_control_characters_of_a_reply_are_escaped(ask):
    evil = [{"text": "\x1b[2Jgone\r\x08", "model": "a"}, {"text": "line\nline", "model": "b"}]
    screen = ask([{"prompt": "p\x07", "candidates": evil}], ["1"])
    assert "<U+001B>[2Jgone<U+000D><U+0008>" in screen
    assert "line\nline" in screen
    assert not set(screen) & set("\x1b\r\x07\x08")


BAD_ROWS = {
    "no candidates": ({"prompt": "p"}, "a question is an object with prompt, candidates"),
    "five candidates": (
        next(rows(1, 4)) | {"candidates": [{"text": str(n), "model": "m"} for n in range(5)]},
        "4 at m",
    ),
    "one candidate": (next(rows(1, 1)), "a choice needs 2"),
    "a model too few": ({"prompt": "p", "candidates": [{"text": "a"}, {"text": "b"}]}, "candidates are a list"),
    "no prompt": ({"prompt": [], "candidates": next(rows(1))["candidates"]}, "there are no messages"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_an_invalid_question_is_named_by_line_before_any_is_asked(name, ask, tmp_path):
    row, complaint = BAD_ROWS[name]
    with pytest.raises(DataError, match=rf"questions\.jsonl:2: .*{complaint}"):
        ask([*rows(1), row], ["1", "1"])
    assert not (tmp_path / "r.db").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "give either --candidates FILE or --bundles"),
        (["--candidates", "a", "--bundles", "b", "--prompts", "c"], "give either"),
        (["--bundles", "b"], "come together"),
        (["--candidates", "a", "--prompts", "c"], "come together"),
        (["--bundles", "b", "--prompts", "c", "--n-candidates", "5"], "from 2 to 4, not 5"),
        (["--candidates", "a", "--rater", ""], "rater is empty; give a name"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, complaint, tmp_path):
    with pytest.raises(ConfigError, match=complaint):
        terminal.main([str(tmp_path / "r.db"), *flags])
    assert not (tmp_path / "r.db").exists()


def test_models_reply_in_rotation_on_demand_and_once(tmp_path, monkeypatch, capsys, kept):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n{"prompt": "three"}\n')
    asked = []

    def speak(bundle, messages, seed):
        asked.append((bundle.name, messages[-1].content, seed))
        return f"{bundle.name} {seed}"

    def run(lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        flags = ["--bundles", "a", "b", "--prompts", str(prompts), "--n-candidates", "3", "--rater", "ann"]
        terminal.main([str(tmp_path / "r.db"), *flags], reply=speak)
        return capsys.readouterr().out

    run("1\nq\n")
    assert [(name, prompt) for name, prompt, _ in asked] == [(n, p) for p in ("one", "two") for n in "aba"]
    assert len({seed for *_, seed in asked}) == 6
    (item,) = kept()
    assert [(c.model, c.text, c.seed) for c in item.candidates] == [(n, f"{n} {s}", s) for n, _, s in asked[:3]]
    unanswered = asked[3:]
    asked.clear()
    run("1\n1\n")
    assert asked[:3] == unanswered, "the same replies again, for nobody has answered"
    assert {prompt for _, prompt, _ in asked} == {"two", "three"}


def test_models_reply_as_in_a_chat(tmp_path, monkeypatch, capsys):
    """The default voice: real bundles, blind, each reply with its model and seed."""
    write_conversations(tmp_path / "chats.jsonl")
    base = write_base(tmp_path / "base")
    flags = ["--data.path", str(tmp_path / "chats.jsonl"), "--epochs", "2", "--n-replies", "0"]
    assert sft.main([str(base), "--out-dir", str(tmp_path / "sft"), *flags, *FAST]) == 0
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "abc"}\n', encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    argv = [str(tmp_path / "r.db"), "--prompts", str(tmp_path / "prompts.jsonl"), "--rater", "ann"]
    assert terminal.main([*argv, "--bundles", str(tmp_path / "sft"), "--n-candidates", "3"]) == 0
    (answer,) = Rankings(tmp_path / "r.db")
    assert [candidate.model for candidate in answer.candidates] == [str(tmp_path / "sft")] * 3
    assert len({candidate.text for candidate in answer.candidates}) > 1
    assert str(tmp_path / "sft") not in capsys.readouterr().out.partition("answers kept")[0]
    with pytest.raises(ConfigError, match="is a base model, not a chat model"):
        terminal.main([str(tmp_path / "s.db"), "--bundles", str(base), *argv[1:]])


@pytest.fixture
def two_raters(tmp_path):
    with Rankings(tmp_path / "r.db") as rankings:
        for n in range(10):
            rankings.add(judgement(f"a{n}", choice_of_best(0, 2), prompt=str(n), shown=(1, 0)))
            rankings.add(judgement(f"b{n}", choice_of_best(int(n >= 8), 2), prompt=str(n), rater="[red]bob"))
        rankings.add(judgement("t", tie_of(2)))
    return str(tmp_path / "r.db")


def test_stats_show_agreement_and_model_scores(two_raters, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert rankings_cli.main(["stats", two_raters]) == 0
    said = capsys.readouterr().out
    assert "21 judgements of 11 prompts by 2 raters; 1 ties, 0 skips" in said
    assert "the reply shown first was chosen in 40.0% of 20" in said
    (line,) = (line for line in said.splitlines() if "bob" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["[red]bob", "ann", "10", "80.0%", "0.60"]
    assert said.index("│ a ") < said.index("│ b ")


def test_stats_of_an_empty_file_are_short(tmp_path, capsys):
    Rankings(tmp_path / "r.db").close()
    rankings_cli.main(["stats", str(tmp_path / "r.db")])
    assert capsys.readouterr().out == "0 judgements of 0 prompts by 0 raters; 0 ties, 0 skips\n"


def test_export_and_import_copy_all_judgements(two_raters, tmp_path, capsys):
    out, other = str(tmp_path / "new" / "all.jsonl"), str(tmp_path / "other.db")
    assert rankings_cli.main(["export", two_raters, out]) == 0
    assert rankings_cli.main(["import", other, out]) == 0
    assert rankings_cli.main(["import", other, out]) == 0
    said = capsys.readouterr().out
    assert "21 judgements added, 0 already present" in said
    assert "0 judgements added, 21 already present" in said
    assert "something else" not in said
    with Rankings(two_raters) as first, Rankings(other) as second:
        assert list(first) == list(second)


@pytest.mark.parametrize("command", [["export", "no.db", "out.jsonl"], ["stats", "no.db"]])
def test_reading_commands_create_no_file(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"there are no rankings at no\.db"):
        rankings_cli.main(command)
    assert not list(tmp_path.iterdir())
