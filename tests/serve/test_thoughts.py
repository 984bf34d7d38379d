"""What a model thinks passes the safety stage like its reply, and is shown apart from it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.safety.rules import Rule
from groundling.safety.stream import Safety
from groundling.safety.words import Words
from groundling.sample.sampler import Token
from groundling.serve.completions.output import Choice, ChoiceDelta, Thoughts
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import ROLES
from groundling.text.chat.template import Thinking
from groundling.text.chat.wrapped_turns import WrappedTurns

SYMBOLS = "".join(sorted("\n abcdefghijklmnopqrstuvwxyz[]"))
TOKENIZER = CharTokenizer(SYMBOLS)
START, END, OPEN, CLOSE = range(len(SYMBOLS), len(SYMBOLS) + 4)
CHAT = WrappedTurns(
    openings={role: (START, f"{role}\n") for role in ROLES},
    closings=dict.fromkeys(ROLES, (END, "\n")),
    thinking=Thinking(OPEN, CLOSE, (OPEN, "\n\n", CLOSE, "\n\n")),
)
SAFETY = Safety(
    [
        Rule("oath", "an oath", "block", ("reply",), "", lambda: Words(["zounds"])),
        Rule("name", "a name", "redact", ("reply",), "[name]", lambda: Words(["tom"])),
    ]
)


def ids_of(thoughts, words):
    return [OPEN, *TOKENIZER.encode(f"\n{thoughts}\n"), CLOSE, *TOKENIZER.encode(f"\n\n{words}"), END]


def shown_of(ids, cuts=(), *, stop=(), safety=SAFETY):
    make_filter = None if safety is None else safety.reply
    filter = None if make_filter is None else make_filter()
    choice = Choice(TOKENIZER, stop, (END,), filter, Thoughts(CHAT, TOKENIZER, make_filter))
    whole, places = ChoiceDelta(), sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    for start, end in pairwise(places):
        whole.add(choice.push([Token(id, -1.0) for id in ids[start:end]], end == len(ids)))
    assert choice.n_tokens <= len(ids)
    return whole


CASES = {
    "plain": (("he is tall", "so am i"), ("he is tall", "so am i", "stop")),
    "a name is hidden in both": (("tom knows", "ask tom"), ("[name] knows", "ask [name]", "stop")),
    "blocked in thoughts": (("well zounds yes", "i am kind"), ("well ", "", "content_filter")),
    "blocked in words": (("well", "zounds yes"), ("well", "", "content_filter")),
    "no thoughts": (("", "yes"), ("", "yes", "stop")),
    "a stop string is one of words only": (("a stop b", "yes stop no"), ("a stop b", "yes ", "stop")),
}


@pytest.mark.parametrize("name", CASES)
@given(cuts=st.lists(st.integers(1, 40), max_size=6))
def test_thoughts_and_words_are_shown_apart(name, cuts):
    (thoughts, words), expected = CASES[name]
    found = shown_of(ids_of(thoughts, words), cuts, stop=("stop",))
    assert (found.thoughts, found.text, found.finish_reason) == expected
    assert "".join(SYMBOLS[token.id] for token in found.tokens if token.id > 0) in words


def test_truncated_thoughts_are_thoughts():
    ids = ids_of("hm", "yes")[:3]
    found = shown_of(ids)
    assert (found.thoughts, found.text, found.finish_reason) == ("h", "", "length")


@given(st.lists(st.sampled_from([*range(len(SYMBOLS)), 0, OPEN, CLOSE]), max_size=30), st.lists(st.integers(1, 30)))
def test_the_pieces_do_not_matter(ids, cuts):
    assert shown_of([*ids, END], cuts) == shown_of([*ids, END])
