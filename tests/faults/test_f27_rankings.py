"""Row 27: what is sent twice is kept once; a tie and a skip are kept, and never become a preference."""

import dataclasses
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from groundling.align.preferences.judgement import SKIP, Candidate, Judgement, choice_of_best, tie_of
from groundling.align.preferences.store import Rankings
from groundling.errors import DataError
from groundling.text.chat.messages import Message

ITEM = Judgement(
    key="k",
    messages=(Message("user", "ReplyFn."),),
    candidates=(Candidate("a", "m"), Candidate("b", "m"), Candidate("c", "m")),
    shown=(2, 0, 1),
    choice=choice_of_best(1, 3),
    rater="ann",
    time="2026-01-02T03:04:05+00:00",
)


def test_the_same_key_twice_is_one_row_and_the_first_answer_counts(tmp_path):
    with Rankings(tmp_path / "r.db") as rankings:
        assert rankings.add(ITEM)
        assert not rankings.add(ITEM)
        assert not rankings.add(dataclasses.replace(ITEM, choice=SKIP, rater="bob"))
        assert list(rankings) == [ITEM]
    db = sqlite3.connect(tmp_path / "r.db")
    counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("judgements", "candidates")]
    db.close()
    assert counts == [(1,), (3,)]


def test_concurrent_writes_of_one_key_insert_once(tmp_path):
    with Rankings(tmp_path / "r.db") as one, Rankings(tmp_path / "r.db") as two, ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda number: (one, two)[number % 2].add(ITEM), range(16)))
        assert sorted(told) == [False] * 15 + [True]
        assert list(one) == list(two) == [ITEM]


@pytest.mark.parametrize("choice", [tie_of(3), SKIP], ids=["tie", "skip"])
def test_a_tie_and_a_skip_are_stored_without_a_preference(tmp_path, choice):
    item = dataclasses.replace(ITEM, choice=choice)
    with Rankings(tmp_path / "r.db") as rankings:
        rankings.add(item)
        assert list(rankings) == [item]
        assert list(rankings.pairs()) == []


def test_a_tie_within_a_ranking_is_no_preference_either(tmp_path):
    with Rankings(tmp_path / "r.db") as rankings:
        rankings.add(dataclasses.replace(ITEM, choice=((1,), (0, 2))))
        assert [(pair.better.text, pair.worse.text) for pair in rankings.pairs()] == [("b", "a"), ("b", "c")]


def test_the_best_of_three_implies_no_order_of_the_others(tmp_path):
    with Rankings(tmp_path / "r.db") as rankings:
        rankings.add(ITEM)
        (said,) = rankings
        assert [(c.better.text, c.worse.text, c.tie) for c in said.comparisons()] == [
            ("b", "a", False),
            ("b", "c", False),
        ]


@pytest.mark.parametrize(
    "stale", [{"choice": ((3,),)}, {"shown": (0, 1)}, {"shown": (0, 1, 1)}, {"choice": ((0, 0),)}, {"rater": ""}]
)
def test_an_answer_to_an_unknown_question_is_refused(stale):
    with pytest.raises(DataError, match="judgement 'k': "):
        dataclasses.replace(ITEM, **stale)
