"""Patterns and words take time in proportion to the text, find what they found with `re`, and say what they cannot."""

import re
import time
import tracemalloc
from re import _parser as parser  # type: ignore[attr-defined]

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling.errors import ConfigError
from groundling.safety import words as safety_words
from groundling.safety.patterns import STRIDE, Pattern
from groundling.safety.rules import Rule
from groundling.safety.stream import Safety
from groundling.safety.words import Words

LIKE_RE = (
    *(r"no\. ?\d{1,4}\b", r"\bкнязь\b", r"(?i)\bstraße\b", r"(?i)ПИРОГ|кашА", r"\bé(?:t|ét)é\b", r"(?i)\bno"),
    *(r"[\w.-]{1,20}@\w{2,5}", r"\S{3}\s\S", r"[^\d\s]{2}é", r"a|ab", r"(?:a|ab)\b", r"x{2,4}?y", r"^no", r"a.b"),
    *(
        r"(?s)a.b",
        r"(?m)^a",
        r"[\]a^-]{2}",
        r"[\w-]{2}[^\w-]",
        r"\D\d\D",
        r"\W\w\W",
        r"(?P<n>a{1,3}){1,3}b",
        r"ß",
        r"[а-я]{3}\b",
        r"\.\Aa?",
    ),
)
ALPHABET = "abxyno. 1٣éétßẞSsTtrаaкнязьКНЯЗЬпирогШа@_-]\n\u0301\u200b\u3000\U0001f600"


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from(ALPHABET), max_size=20) | st.sampled_from(["no. 123", "\nno", "князья князь", "étété"]))
def test_a_pattern_finds_what_it_finds_with_re(text: str) -> None:
    for pattern in LIKE_RE:
        found = PATTERNS[pattern]
        for start in range(len(text) + 1):
            match = re.compile(pattern).search(text, start)
            assert found.first(text, start) == (match and match.span()), (pattern, start)


PATTERNS = {pattern: Pattern(pattern) for pattern in LIKE_RE}


def test_as_much_is_held_back_as_a_pattern_matches() -> None:
    more = (
        r"\x41[\x{42}b]",
        r"(?:a(?:b{2,3}|cd?)){0,4}e",
        r"(?i:a)[[:alpha:]\]]",
        r"a\{2}",
        r"\p{Greek}\pL{2}",
        r"\Qa|b*\E{2}",
        r"\Qa|b",
        r"ab^{0}",
        r"(?:x{3}\A{0}|y)z$?",
    )
    widths = [Pattern(pattern)._read(pattern)[1:3] for pattern in (*LIKE_RE, *more)]
    assert widths == [
        *(parser.parse(pattern).getwidth() for pattern in LIKE_RE),
        (2, 2),
        (1, 17),
        (2, 2),
        (4, 4),
        (3, 3),
        (5, 5),
        (3, 3),
        (2, 2),
        (2, 4),
    ]


def test_a_match_is_found_wherever_it_stands_and_half_a_character_is_one_too() -> None:
    pattern = Pattern(r"\bb.{0,490}c\b")
    for gap in (0, 1, STRIDE - 2, STRIDE - 1, STRIDE, STRIDE + 1, 3 * STRIDE - 400):
        for filler in "- é\ud800":
            text = filler * gap + " b" + filler * 490 + "c " + filler * gap
            assert pattern.first(text, 0) == (gap + 1, gap + 493)
            assert pattern.first(text, gap + 2) is None


REFUSED = [
    (r"ab(?=c)", "looks ahead or behind; leave that out", r"ab\b"),
    (r"(?<!a)b", "looks ahead or behind; leave that out", r"\bb"),
    (r"(a|b)\1", "refers back to a group; write the group again", r"(a|b)(a|b)"),
    (r"(?P<x>a)(?P=x)", "refers back to a group; write the group again", "aa"),
    (r"(?>ab)", r"atomic group; write \(\?:", "(?:ab)"),
    (r"(a)?(?(1)b|c)", r"asks whether a group was there; write both cases", "ab|c"),
    (r"a(?#or b)", "comment; leave it out", "a"),
    (r"(?x)a b", "a flag that is unknown there; use only i, m, s and U", "(?i)ab"),
    (r"a\Z", r"has \\Z; write \\z", r"a\z"),
    (r"\u20ac", r"number or name; write \\x\{20AC\}", r"\x{20AC}"),
    (r"a++b", r"possessive \(\+\+\); put \(\?:\.\.\.\) around", r"(?:a{1,5}){1,2}b"),
    (r"a{1001}", "more than 1000 in all; use fewer", "a{500}"),
    (r"(?:a{50}){50}", "more than 1000 in all; use fewer", "(?:a{50}){10}"),
    (r"\w{1,450}", "more than 8 MiB; use fewer repetitions, or", "[A-Za-z0-9_]{1,450}"),
    (r"a{,5}b", r"a brace that repeats nothing; write \\\{ for a brace, \{0,5\} for \{,5\}", r"a{0,5}b\{"),
    (r"one\b.two", r"\\b or \\B within; use \\b at the beginning and the end", r"\bone.two\b"),
    (r"\bone|two\b", r"\\b or \\B within; use \\b at the beginning and the end", r"\b(?:one|two)\b"),
    (r"on\B", r"\\b or \\B within; use \\b at the beginning and the end", r"on\b"),
    (r"a\Cb", r"half a character; write \(\?s:\.\)", "a(?s:.)b"),
    (r"a[\W_]b", r"\\W or \\S in brackets; write \\W\|", r"a(?:\W|[_])b"),
    (r"a[\\\S]b", r"\\W or \\S in brackets; write \\W\|", r"a[^\s]b"),
    (r"ab*c", r"may match more than 500 characters; bound it: \{0,50\}", "ab{0,50}c"),
    (r"a{2,}", "may match more than 500 characters; bound it", "a{2,50}"),
    (r"a{0,5}", "also matches nothing at all", "a{1,5}"),
    (r"\b", r"\\b or \\B within|nothing at all", r"\ba"),
    ("a[", "is not a regular expression of RE2: missing ]", r"a\["),
    ("a)", "is not a regular expression of RE2: unexpected", r"a\)"),
    ("\ud800", "half a character; write it whole", r"\x{D7FF}"),
]


@pytest.mark.parametrize(("pattern", "complaint", "instead"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_re2_cannot_express_is_refused_with_what_to_write(pattern: str, complaint: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Pattern(pattern)
    assert "\n" not in str(caught.value)
    Pattern(instead)


def test_no_text_makes_a_pattern_slow() -> None:
    """With `re` each of these takes years; RE2 takes a second for all, and a very slow machine a minute."""
    patterns = ("a{1,90}" * 5 + "b", "(?:a?){40}a{40}b", "(?:a{1,20}){1,20}b", "(?:a|aa|.){1,100}[bc]")
    rules = [_rule(pattern, Pattern(pattern)) for pattern in patterns]
    begun = time.process_time()
    assert Safety(rules).check_prompt("a" * 10_000)[1] == []
    assert time.process_time() - begun < 60


def _rule(name: str, finder) -> Rule:
    make = getattr(finder, "for_another_text", lambda: finder)
    return Rule(name, name, "redact", ("prompt", "reply"), f"[{name}]", make)


@pytest.fixture
def n_folded(monkeypatch: pytest.MonkeyPatch):
    """Counts how often a character is folded, and fails at a hundred times too often."""
    fold, count = safety_words._fold, [0]

    def counting(character: str) -> str:
        count[0] += 1
        assert count[0] < 3_000_000
        return fold(character)

    monkeypatch.setattr(safety_words, "_fold", counting)
    return count


@pytest.mark.slow
def test_marks_that_fold_to_nothing_are_looked_at_once(n_folded) -> None:
    """A word that may go on is held back however many follow; each is folded once, and memory is that of the text."""
    n = 200_000
    safety = Safety([_rule("apple", Words(["apple", "a pear"])), _rule("q", Pattern(r"\bq\d{1,400}q"))])
    for between in ("\u0301", "\u200b", "\u3000"):
        n_folded[0] = 0
        tracemalloc.start()
        shown, findings = safety.check_prompt(f"a{between * n}pple pie")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(findings) == (between != "\u3000")
        assert shown == ("[apple] pie" if findings else f"a{between * n}pple pie")
        assert n <= n_folded[0] < n + 20
        assert peak < 40 * n
    n_folded[0] = 0
    safety = Safety([_rule("a", Words(["a"])), _rule("mark", Pattern("\u0301"))])
    assert safety.check_prompt("a" + "\u0301" * n)[0] == "[a]", (
        "and what begins within what is hidden is looked for once"
    )


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["князь", "КНЯЗЬ", "straße", "STRASSE", "tom", "é", "e\u0301", "\u0301", "\u200b" * 20, " ", "x"]
        )
    ),
    st.lists(st.integers(1, 7), min_size=1, max_size=30),
)
def test_pieces_make_no_difference_to_words_of_any_alphabet(words: list[str], sizes: list[int]) -> None:
    text = "".join(words)
    safety = Safety(
        [
            *(_rule(word, Words([word])) for word in ("князь", "straße", "é tom", "tom")),
            *(_rule(one, Pattern(one)) for one in (r"(?i)\bкнязь x\b", r"\be\x{301}{1,3}\b")),
            _rule("x", Pattern("xx|xxt")),
        ]
    )
    whole = safety.reply()
    segments = [*whole.push(text), *whole.finish()]
    reply, shown, left, number = safety.reply(), [], text, 0
    while left:
        size = sizes[number % len(sizes)]
        shown += reply.push(left[:size])
        left, number = left[size:], number + 1
    shown += reply.finish()
    assert "".join(one.text for one in shown) == "".join(one.text for one in segments)
    assert reply.findings == whole.findings


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("straße", "die STRASSE.", "STRASSE"),
        ("князь", "О, КНЯЗЬ!", "КНЯЗЬ"),
        ("князь", "князья", None),
        ("café", "un CAFE\u0301.", "CAFE\u0301"),
        ("tom", "x" + "\u0301" * 40 + "tom", None),
        ("tom", "x\u3000" + "\u0301" * 40 + "tom", "tom"),
        ("ﬁne", "FINE", "FINE"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_words_are_found_however_they_are_written(word: str, text: str, found: str | None, size: int) -> None:
    reply = Safety([_rule("w", Words([word]))]).reply()
    shown = [part for at in range(0, len(text), size) for part in reply.push(text[at : at + size])] + reply.finish()
    assert "".join(part.text for part in shown) == (text if found is None else text.replace(found, "[w]"))


def test_a_word_is_as_long_as_what_can_be_held_back_and_there_may_be_many() -> None:
    with pytest.raises(ConfigError, match="has 501 characters; split it: 500 is the most"):
        Words(["a" * 501])
    Words(["a" * 250, "a" * 251])
    many = Words(["a" * 500, *(f"word{n}" for n in range(50_000))])
    assert many.first("x word49999 y" * 100, 0) == (2, 11)


def test_what_differs_from_re_is_what_the_guide_says() -> None:
    for pattern, text in (("(?i)i", "İ"), ("(?i)i", "ı"), ("a$", "a\n")):
        assert re.search(pattern, text)
        assert Pattern(pattern).first(text, 0) is None
    assert Words(["istanbul"]).first("İSTANBUL", 0) == (0, 8)
    assert Pattern("(?m)a$").first("a\nb", 0) == (0, 1)
    assert Pattern(r"\b\Qa\b").first(r"xa\b a\b", 0) == (5, 8)
