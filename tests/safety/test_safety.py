"""The safety stage says of a text the same in whatever pieces it comes, and shows nothing that it hides."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundling.data import datasets
from groundling.errors import ConfigError
from groundling.safety.classifier import N_BUCKETS, Classifier, features
from groundling.safety.rules import Rule, read_rules
from groundling.safety.stream import Safety, Segment
from groundling.safety.words import Words
from groundling.sample.sampler import Token
from groundling.serve.completions.output import Choice
from groundling.text.gpt2 import GPT2Tokenizer

RULES = """
[[rule]]
name = "oath"
reason = "an oath"
action = "block"
words = ["zounds", "by my faith", "straße"]

[[rule]]
name = "name"
reason = "a name"
action = "redact"
words = ["Tom", "Tomas", "a"]

[[rule]]
name = "number"
reason = "a number"
action = "redact"
mark = "#"
pattern = 'no\\. ?\\d{1,4}\\b'

[[rule]]
name = "mail"
reason = "an address"
action = "redact"
personal = "email"

[[rule]]
name = "card"
reason = "a card"
action = "redact"
personal = "card"

[[rule]]
name = "phone"
reason = "a phone"
action = "redact"
personal = "phone"

[[rule]]
name = "again"
reason = "again and again"
action = "block"
where = ["reply"]
repetition = 5

[[rule]]
name = "long"
reason = "too long"
action = "block"
where = ["reply"]
longest = 200
"""


@pytest.fixture(scope="module")
def safety(tmp_path_factory) -> Safety:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(RULES, encoding="utf-8")
    return Safety.from_file(path)


def looks_for(word: str) -> Rule:
    """A classifier that knows one word only."""
    worth = np.zeros(N_BUCKETS)
    worth[features(word)[0]] = 1.0
    found = Classifier(worth, np.ones(N_BUCKETS), 0.0, 0.7)
    assert found.is_unsafe(f"oh you {word}.")
    assert not found.is_unsafe("hello, Tom")
    return found.rule()


@pytest.fixture(scope="module", params=["rules", "rules and a classifier"])
def each_safety(safety: Safety, request) -> Safety:
    return safety if request.param == "rules" else safety.with_rule(looks_for("knave"))


def judged(safety: Safety, pieces: list[str]):
    reply = safety.reply()
    segments = [segment for piece in pieces for segment in reply.push(piece)]
    segments += reply.finish()
    return segments, reply


WORDS = [
    *(
        "zounds",
        "Zo",
        "unds",
        "by my",
        " faith",
        "by  my\nFAITH",
        "STRASSE",
        "Tom",
        "Tomas",
        "TO",
        "a",
        "á",
        "to\u0301m",
    ),
    *(
        "no. 12",
        "no.",
        "123456",
        " ",
        ".",
        "-",
        "a@b.co",
        "@",
        "tom.x@mail.example.org",
        "020 7946 0958 / ",
        "knave",
        "+44 20 7946 0958",
        "(030) 123456 78",
    ),
    *(
        "4111 1111 1111 1111",
        "4111111111111112",
        "12-34",
        "é",
        "\u200b",
        "\ufb01",
        "\uff34\uff4f\uff4d",
        "hello",
        "x" * 30,
        "\n",
    ),
]
TEXT = st.lists(st.one_of(st.sampled_from(WORDS), st.text(alphabet="aTomz@.1 +-\u0301", max_size=3)), max_size=14).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(TEXT, st.lists(st.integers(1, 9), min_size=1, max_size=40))
@example("Tomas" * 40, [1])
@example("a@b.com", [1])
@example("x" * 330 + "@tom@example.com ", [1])
@example("tom.knave@mail.example.org. knave. " + "hello. " * 9, [1])
@example("hello tom.x@mail.example.org my knave hello. hello hello", [3])
@example("020 7946 0958 / 020 7946 0958 4111 1111 1111 1111 020 7946 0958 / 020 7946 0958 ", [1])
def test_pieces_make_no_difference(each_safety: Safety, text: str, sizes: list[int]) -> None:
    pieces, left, number = [], text, 0
    while left:
        size = sizes[number % len(sizes)]
        pieces.append(left[:size])
        left, number = left[size:], number + 1
    whole, ended = judged(each_safety, [text])
    segments, reply = judged(each_safety, pieces)
    assert "".join(segment.text for segment in segments) == "".join(segment.text for segment in whole)
    assert [segment for segment in segments if segment.redacted] == [segment for segment in whole if segment.redacted]
    assert (reply.findings, reply.blocked) == (ended.findings, ended.blocked)
    if not reply.blocked:
        assert sum(segment.n_raw for segment in segments) == len(text)


SHOWN = ["well", "tomb", "12", "x@", "say so"]
HIDDEN = [
    *("zounds", "Tom", "TOMAS", "by my faith", "a@b.co", "tom.x@mail.example.org", "+44 20 7946 0958", "no. 12"),
    *("(030) 123456 78", "4111 1111 1111 1111", "Strasse", "\uff34\uff4f\uff4d"),
]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*HIDDEN, *SHOWN]), max_size=12, unique=True), st.integers(1, 5))
def test_redacted_text_is_not_shown(safety: Safety, items: list[str], size: int) -> None:
    text = ", ".join(items)
    segments, _ = judged(safety, [text[at : at + size] for at in range(0, len(text), size)])
    shown = "".join("|" if segment.redacted else segment.text for segment in segments).split(", ")
    assert not set(HIDDEN) & set(shown)
    assert shown == [item for item in shown if item in (*SHOWN, "", "|")]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*HIDDEN, *SHOWN]), max_size=12, unique=True), st.integers(1, 5))
@example(["(030) 123456 78", "4111 1111 1111 1111"], 1)
@example(["12", "4111 1111 1111 1111", "12"], 1)
def test_adjacent_matches_are_all_found(each_safety: Safety, items: list[str], size: int) -> None:
    """Numbers side by side may be hidden together with what stands between them, but none is shown, not in part."""
    text = " ".join(items)
    segments, _ = judged(each_safety, [text[at : at + size] for at in range(0, len(text), size)])
    shown = "".join(" | " if segment.redacted else segment.text for segment in segments)
    allowed = {word for item in SHOWN for word in item.split()} | {"|"}
    assert set(shown.split()) <= allowed


@pytest.mark.parametrize(
    ("text", "shown", "rules"),
    [
        ("Good morrow, Tom!", "Good morrow, [name]!", ["name"]),
        ("atom and tomb", "atom and tomb", []),
        ("TOMAS and \uff34\uff4f\uff4d and t\u200bo\u0301m.", "[name] and [name] and [name].", ["name"] * 3),
        ("Well, ZOUNDS, what now", "Well, ", ["oath"]),
        ("zoundsly", "zoundsly", []),
        ("Berliner STRASSE 5", "Berliner ", ["oath"]),
        ("by\n my  faith", "", ["oath"]),
        ("see no. 1234, or no. 12345", "see #, or no. 12345", ["number"]),
        ("write to ann.b+c@mail.example.org.", "write to [mail].", ["mail"]),
        ("x@y and @home, 3@4.5", "x@y and @home, 3@4.5", []),
        ("pay 4111 1111 1111 1111 now", "pay [card] now", ["card"]),
        ("pay 4111 1111 1111 1112 now", "pay 4111 1111 1111 1112 now", []),
        ("call +44 20 7946 0958!", "call [phone]!", ["phone"]),
        ("call (030) 1234 5678", "call [phone]", ["phone"]),
        ("1. (555) 123-4567", "1. [phone]", ["phone"]),
        ("1. 020 7946 0958", "1. [phone]", ["phone"]),
        ("020 7946 0958 / 020 7946 0959", "[phone][phone]", ["phone"] * 2),
        ("020 7946 0958, 020 7946 0959.", "[phone], [phone].", ["phone"] * 2),
        ("4111 1111 1111 1111 123", "[card] 123", ["card"]),
        ("visa 2 4111 1111 1111 1111", "visa 2 [card]", ["card"]),
        ("(030) 123456 78 4111 1111 1111 1111", "[phone][card]", ["phone", "card"]),
        ("0.12 0.345 0.6789 0.1234", "0.12 0.345 0.6789 0.1234", []),
        ("no. 12Tom", "no. 12Tom", []),
        ("on 2026-11-24 at 12:30, 1,000,000 men", "on 2026-11-24 at 12:30, 1,000,000 men", []),
        ("ha " + "ho " * 9, "ha " + "ho " * 5 + "h", ["again"]),
        ("x" * 150, "x" * 5, ["again"]),
        ("".join(f"{n:04d}," for n in range(50)), "".join(f"{n:04d}," for n in range(40)), ["long"]),
    ],
)
def test_what_each_rule_finds(safety: Safety, text: str, shown: str, rules: list[str]) -> None:
    segments, reply = judged(safety, list(text))
    assert "".join(segment.text for segment in segments) == shown
    assert [finding.rule for finding in reply.findings] == rules


def test_only_possible_matches_are_held_back(tmp_path: Path) -> None:
    """Of a pattern, as much as it matches at most; else the beginning of a word, an address or a number."""
    path = tmp_path / "rules.toml"
    path.write_text(RULES.replace("pattern = 'no\\. ?\\d{1,4}\\b'", "words = ['hi']"), encoding="utf-8")
    reply = Safety.from_file(path).reply()
    held = 0
    text = "Now is the winter of our discontent made glorious summer by this sun of York; "
    for place, letter in enumerate(text, 1):
        held += 1 - sum(segment.n_raw for segment in reply.push(letter))
        word = max(text.rfind(" ", 0, place), text.rfind(";", 0, place))
        assert held <= place - word + len("by my"), text[:place]
    assert held <= 2


def test_a_prompt_is_checked_as_a_whole(safety: Safety) -> None:
    assert safety.check_prompt("I am Tom") == ("I am [name]", [safety.check_prompt("Tom")[1][0]])
    text, findings = safety.check_prompt("zounds")
    assert text == ""
    assert findings[0].action == "block"
    assert safety.check_prompt("word " * 500)[1] == [], "what is about replies says nothing of prompts"


@pytest.mark.slow
def test_the_cost_per_character_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES.replace("longest = 200", "longest = 10000000"), encoding="utf-8")
    safety = Safety.from_file(path)
    text = "".join(f"line {n} of a play, and " for n in range(1500))

    def seconds(n: int) -> float:
        begun = time.process_time()
        reply = safety.reply()
        assert sum(segment.n_raw for letter in text[:n] for segment in reply.push(letter)) > n - 400
        return time.process_time() - begun

    seconds(1000)
    assert seconds(30_000) < 8 * seconds(6000)


@pytest.mark.slow
def test_the_default_rules_find_nothing_in_shakespeare() -> None:
    text = datasets.get("tiny_shakespeare").read_text("utf-8")
    reply = Safety.from_file().reply()
    segments = [segment for start in range(0, len(text), 997) for segment in reply.push(text[start : start + 997])]
    segments += reply.finish()
    assert reply.findings == []
    assert "".join(segment.text for segment in segments) == text


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("[rule]\nname = 1", r"write \[\[rule\]\]"),
        ("rules = []", "unknown"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'stop'\nwords = ['a']", "action is 'stop'"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\nword = ['a']", "did you mean 'words'"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'", "this one has none"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\nwords = ['a']\nlongest = 5", "one of"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\nwords = []", "not empty"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\nwhere = ['all']\nwords = ['a']", "where is"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'redact'\nlongest = 5", "can only block"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\nlongest = 0", "at least 1"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = 'a*b'", "bound it"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = '(a)\\1'", "refers back"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = 'a(?=b)'", "looks ahead"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = 'a{0,5}'", "nothing at all"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = '('", "not a regular expression"),
        ("[[rule]]\nreason = 'y'\naction = 'block'\nwords = ['a']", "name must be"),
        ("[[rule", "cannot be read"),
    ],
)
def test_invalid_rules(tmp_path: Path, toml: str, complaint: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_rules(path)
    assert str(path) in str(caught.value)


def test_a_segment_counts_its_raw_characters(safety: Safety) -> None:
    segments, _ = judged(safety, ["I am Tom."])
    assert "".join(segment.text for segment in segments if not segment.redacted) == "I am ."
    assert [segment for segment in segments if segment.redacted] == [Segment("[name]", 3, True)]


def test_a_block_is_reported_even_with_a_stop_string() -> None:
    """One token completes both."""
    tokenizer = GPT2Tokenizer()
    ids = tokenizer.encode("Well, zounds stop")
    assert tokenizer.decode(ids[-1:]) == " stop"
    oath = Rule("oath", "an oath", "block", ("reply",), "", lambda: Words(["zounds"]))
    choice = Choice(tokenizer, ("stop",), (), Safety([oath]).reply())
    shown = choice.push([Token(id) for id in ids], False)
    assert (shown.text, shown.finish_reason) == ("Well, ", "content_filter")


@pytest.mark.parametrize(
    ("rule", "text", "shown"),
    [
        ("longest = 100", "x " * 45 + "tom.somebody@mail.example.org " + "y " * 100, "x " * 45 + "[mail]"),
        ("longest = 100", "x " * 45 + "tom.somebody@mail.example.org", "x " * 45 + "[mail]"),
        ("repetition = 20", "a" * 30 + "@example.com " + "ha" * 100, "[mail]"),
        ("", "Mail bob@example.com and be a knave now. And a knave.", "Mail [mail]"),
        ("", "Mail bob@example.com now. You knave. So.", "Mail [mail] now."),
        ("", "Mail bob.knave.bob@example.com now. Well.", "Mail [mail] now. Well."),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_redaction_disables_no_other_rule(tmp_path, rule: str, text: str, shown: str, size: int) -> None:
    mail = "[[rule]]\nname = 'mail'\nreason = 'an address'\naction = 'redact'\npersonal = 'email'\n"
    other = f"[[rule]]\nname = 'other'\nreason = 'other'\naction = 'block'\n{rule}\n"
    path = tmp_path / "rules.toml"
    path.write_text(mail + other * bool(rule), encoding="utf-8")
    safety = Safety.from_file(path) if rule else Safety.from_file(path).with_rule(looks_for("knave"))
    segments, reply = judged(safety, [text[at : at + size] for at in range(0, len(text), size)])
    assert "".join(segment.text for segment in segments) == shown
    assert reply.blocked == ("Well." not in text)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_unsafe_sentence_is_not_shown_because_a_pattern_waits(tmp_path, size: int) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("[[rule]]\nname = 'p'\nreason = 'p'\naction = 'redact'\npattern = 'q[a-z ]{1,400}q'\n")
    safety = Safety.from_file(path).with_rule(looks_for("knave"))
    text = "hello hello. " * 40 + "You knave. " + "hello hello. " * 40
    segments, reply = judged(safety, [text[at : at + size] for at in range(0, len(text), size)])
    assert reply.blocked
    assert "".join(segment.text for segment in segments) == ("hello hello. " * 40).rstrip()


def test_one_letter_that_is_many_when_folded_is_found_as_one() -> None:
    assert Words(["co"]).first("\u33c7 x", 0) == (0, 1)
    assert Words(["o"]).first("\u33c7 x", 0) is None


@pytest.mark.parametrize("gap", [0, 10, 300, 5000])
def test_a_word_is_found_at_any_position(gap: int) -> None:
    """However much has to be folded until it comes, and however much is nothing when folded."""
    words = Words(["by my faith", "by"])
    text = "x " * gap + "by " + "\u200b " * gap + "my faith."
    assert words.first(text, 0) == (2 * gap, len(text) - 1)
    assert words.undecided(text[:-4], 0) == 2 * gap
    assert words.first(text[:-4], 0) == (2 * gap, 2 * gap + 2)


def test_the_cost_per_redaction_does_not_grow(safety: Safety) -> None:
    """Sixteen times as much takes sixteen times as long, not 256 times."""

    def seconds(n: int) -> float:
        begun = time.process_time()
        assert safety.check_prompt("Tom " * n)[0] == "[name] " * n
        return time.process_time() - begun

    seconds(100)
    few, many = (min(seconds(n) for _ in range(5)) for n in (150, 2400))  # other work on the machine only slows
    assert many < 64 * few
