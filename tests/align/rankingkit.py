"""Judgements for the tests of what keeps and counts them."""

from groundling.align.preferences.judgement import Candidate, Judgement
from groundling.text.chat.messages import Message


def judgement(key="k", choice=((0,), (1,)), n=2, rater="ann", prompt="Speak.", shown=None, models="abcd", texts=None):
    texts = texts or [f"reply {number}" for number in range(n)]
    return Judgement(
        key=key,
        messages=(Message("user", prompt),),
        candidates=tuple(Candidate(text, models[number], number) for number, text in enumerate(texts)),
        shown=tuple(range(n)) if shown is None else shown,
        choice=choice,
        rater=rater,
        time="2026-01-02T03:04:05+00:00",
    )
