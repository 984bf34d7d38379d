"""The safety stage says of a text the same in whatever pieces it comes, and shows nothing that it hides."""

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundling.data import sources
from groundling.errors import ConfigError
from groundling.sample.choose import Token
from groundling.serve.generation import Choice
from groundling.serve.safety import Safety, Segment
from groundling.serve.safety_rules import read_rules
from groundling.text.vendors import GPT2Tokenizer

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


@settings(max_examples=400, deadline=None)
@given(TEXT, st.lists(st.integers(1, 9), min_size=1, max_size=40))
@example("Tomas" * 40, [1])
@example("a@b.com", [1])
def test_pieces_make_no_difference(safety: Safety, text: str, sizes: list[int]) -> None:
    pieces, left, number = [], text, 0
    while left:
        size = sizes[number % len(sizes)]
        pieces.append(left[:size])
        left, number = left[size:], number + 1
    whole, ended = judged(safety, [text])
    segments, reply = judged(safety, pieces)
    assert "".join(segment.text for segment in segments) == "".join(segment.text for segment in whole)
    assert [segment for segment in segments if segment.redacted] == [segment for segment in whole if segment.redacted]
    assert (reply.findings, reply.blocked) == (ended.findings, ended.blocked)
    if not reply.blocked:
        assert sum(segment.n_raw for segment in segments) == len(text)


HIDDEN = [
    *("zounds", "Tom", "TOMAS", "by my faith", "a@b.co", "tom.x@mail.example.org", "+44 20 7946 0958", "no. 12"),
    *("(030) 123456 78", "4111 1111 1111 1111", "Strasse", "\uff34\uff4f\uff4d"),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*HIDDEN, "well", "tomb", "12", "x@", "say so"]), max_size=12), st.integers(1, 5))
def test_what_is_hidden_is_not_shown(safety: Safety, items: list[str], size: int) -> None:
    text = ", ".join(items)
    segments, _ = judged(safety, [text[at : at + size] for at in range(0, len(text), size)])
    shown = "".join("|" if segment.redacted else segment.text for segment in segments).split(", ")
    assert not set(HIDDEN) & set(shown)
    assert shown == [item for item in shown if item in ("well", "tomb", "12", "x@", "say so", "", "|")]


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
        ("on 2026-11-24 at 12:30, 1,000,000 men", "on 2026-11-24 at 12:30, 1,000,000 men", []),
        ("ha " + "ho " * 9, "ha " + "ho " * 5 + "h", ["again"]),
        ("x" * 150, "x" * 5, ["again"]),
        ("".join(f"{n:04d}." for n in range(50)), "".join(f"{n:04d}." for n in range(40)), ["long"]),
    ],
)
def test_what_each_rule_finds(safety: Safety, text: str, shown: str, rules: list[str]) -> None:
    segments, reply = judged(safety, list(text))
    assert "".join(segment.text for segment in segments) == shown
    assert [finding.rule for finding in reply.findings] == rules


def test_no_more_is_held_back_than_may_become_something(tmp_path: Path) -> None:
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


def test_a_prompt_is_looked_at_as_a_whole(safety: Safety) -> None:
    assert safety.check_prompt("I am Tom") == ("I am [name]", [safety.check_prompt("Tom")[1][0]])
    text, findings = safety.check_prompt("zounds")
    assert text == ""
    assert findings[0].action == "block"
    assert safety.check_prompt("word " * 500)[1] == [], "what is about replies says nothing of prompts"


def test_a_long_text_costs_no_more_a_character(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES.replace("longest = 200", "longest = 10000000"), encoding="utf-8")
    safety = Safety.from_file(path)
    text = "".join(f"line {n} of a play, and " for n in range(1500))

    def seconds(n: int) -> float:
        begun = time.perf_counter()
        reply = safety.reply()
        assert sum(segment.n_raw for letter in text[:n] for segment in reply.push(letter)) > n - 400
        return time.perf_counter() - begun

    seconds(1000)
    assert seconds(30_000) < 8 * seconds(6000)


def test_the_rules_that_come_along_leave_shakespeare_alone() -> None:
    text = sources.get("tiny_shakespeare").read_text("utf-8")
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
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = '(a{1,9}){1,9}b'", "within one"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = 'a(?=b)'", "looks ahead"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = 'a{0,5}'", "nothing at all"),
        ("[[rule]]\nname = 'x'\nreason = 'y'\naction = 'block'\npattern = '('", "not a regular expression"),
        ("[[rule]]\nreason = 'y'\naction = 'block'\nwords = ['a']", "name has to be"),
        ("[[rule", "cannot be read"),
    ],
)
def test_rules_that_are_none(tmp_path: Path, toml: str, complaint: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_rules(path)
    assert str(path) in str(caught.value)


def test_a_segment_says_what_it_stands_for(safety: Safety) -> None:
    segments, _ = judged(safety, ["I am Tom."])
    assert "".join(segment.text for segment in segments if not segment.redacted) == "I am ."
    assert [segment for segment in segments if segment.redacted] == [Segment("[name]", 3, True)]


def test_what_is_blocked_is_said_to_be_though_a_stop_string_comes_with_it(safety: Safety) -> None:
    """One token completes both."""
    tokenizer = GPT2Tokenizer()
    ids = tokenizer.encode("Well, zounds stop")
    assert tokenizer.decode(ids[-1:]) == " stop"
    choice = Choice(tokenizer, ("stop",), (), safety.reply())
    shown = choice.push([Token(id) for id in ids], False)
    assert (shown.text, shown.finish_reason) == ("Well, ", "content_filter")
