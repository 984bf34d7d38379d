"""The store keeps what was said, all of it and nothing else; and what is counted from it is right."""

import dataclasses
import json
import math
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rankingkit import judgement

from groundling.align.preferences.agreement import bradley_terry, kappas, position_bias
from groundling.align.preferences.database import Database
from groundling.align.preferences.judgement import (
    SKIP,
    Candidate,
    Judgement,
    choice_of_best,
    judgement_from_json,
    tie_of,
)
from groundling.align.preferences.simulated_rater import SimulatedRater
from groundling.align.preferences.store import MIGRATIONS, Rankings
from groundling.errors import DataError, StorageError
from groundling.evals.statistics import clustered, wilson
from groundling.text.chat.messages import Message


def test_clustered_cases_count_as_fewer():
    """40 prompts of 30 pairs that have much in common: the interval holds the truth as often as it says."""
    draw, held, naive = np.random.default_rng(0), 0, 0
    for _ in range(200):
        chances = draw.beta(4, 1, size=40)  # 0.8 on average
        wins = draw.random((40, 30)) < chances[:, None]
        low, high = clustered(wins.flatten().tolist(), np.repeat(np.arange(40), 30).tolist())
        held += low <= 0.8 <= high
        low, high = wilson(int(wins.sum()), wins.size)
        naive += low <= 0.8 <= high
    assert 182 <= held <= 198
    assert naive < 150


def test_the_interval_of_independent_cases_is_wilsons():
    wins = [True] * 70 + [False] * 30
    assert clustered(wins, range(100)) == pytest.approx(wilson(70, 100), abs=0.002)
    assert clustered([True] * 60, [1, 2, 3] * 20) == wilson(3, 3), "three groups that all agree are three cases"
    assert clustered([True, False], [1, 1]) == wilson(0.5, 1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "r.sqlite"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def judgements(draw):
    n = draw(st.integers(2, 5))
    candidates = [Candidate(draw(texts), draw(names), draw(st.none() | st.integers(0, 2**63 - 1))) for _ in range(n)]
    named = draw(st.permutations(range(n)))[: draw(st.integers(0, n))]
    groups, rest = [], list(named)
    while rest:
        size = draw(st.integers(1, len(rest)))
        groups.append(tuple(rest[:size]))
        rest = rest[size:]
    system = [Message("system", draw(texts))] if draw(st.booleans()) else []
    return Judgement(
        key=draw(names),
        messages=(*system, Message("user", draw(texts)), Message("assistant", draw(texts)), Message("user", "and?")),
        candidates=tuple(candidates),
        shown=tuple(draw(st.permutations(range(n)))),
        choice=tuple(groups),
        rater=draw(names),
        time="2026-01-02T03:04:05Z",
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(judgements(), max_size=8, unique_by=lambda item: item.key))
def test_judgements_round_trip_through_store_and_export(tmp_path, items):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    with Rankings(folder / "a") as rankings:
        assert [rankings.add(item) for item in items] == [True] * len(items)
        assert list(rankings) == items
        assert rankings.export_jsonl(folder / "a.jsonl") == len(items)
    with Rankings(folder / "a") as rankings, Rankings(folder / "b") as other:
        assert list(rankings) == items, "also after the file was closed"
        assert other.import_jsonl(folder / "a.jsonl") == (len(items), 0, 0)
        assert list(other) == items
        other.export_jsonl(folder / "b.jsonl")
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


def test_iteration_pages_and_sees_concurrent_writes(path):
    with Rankings(path) as rankings:
        rankings.add_all(judgement(str(number)) for number in range(450))
        seen = []
        for item in rankings:
            if item.key == "5":
                rankings.add(judgement("late"))
            seen.append(item.key)
    assert seen == [*map(str, range(450)), "late"]


def test_all_are_added_or_none(path):
    def broken():
        yield judgement("1")
        raise RuntimeError("oh")

    with Rankings(path) as rankings:
        with pytest.raises(RuntimeError, match="oh"):
            rankings.add_all(broken())
        assert list(rankings) == []
        assert rankings.add_all([judgement("1"), judgement("1"), judgement("2")]) == 2


def test_a_prompt_is_kept_once(path):
    with Rankings(path) as rankings:
        rankings.add_all(judgement(str(number)) for number in range(3))
        assert rankings.counts() == (3, 0, 0, 1, 1)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM prompts").fetchone() == (1,)


def said(item):
    return [(c.better.text[-1], c.worse.text[-1], c.tie) for c in item.comparisons()]


@pytest.mark.parametrize(
    ("choice", "n", "expected"),
    [
        (choice_of_best(1, 2), 2, ["1>0"]),
        (choice_of_best(2, 4), 4, ["2>0", "2>1", "2>3"]),
        (((2,), (0, 3), (1,)), 4, ["2>0", "2>3", "2>1", "0=3", "0>1", "3>1"]),
        (((3,), (1,)), 4, ["3>1", "3>0", "3>2", "1>0", "1>2"]),
        (tie_of(3), 3, ["0=1", "0=2", "1=2"]),
        (SKIP, 4, []),
    ],
)
def test_a_choice_implies_only_stated_preferences(choice, n, expected):
    found = [f"{better}{'=' if tie else '>'}{worse}" for better, worse, tie in said(judgement(choice=choice, n=n))]
    assert sorted(found) == sorted(expected)


GOOD = judgement().to_json()
BAD = {
    "no key": ({"key": ""}, "a key and a rater need a name"),
    "a number for a rater": ({"rater": 3}, "rater must be a text, not 3"),
    "one candidate": ({"candidates": GOOD["candidates"][:1]}, "a choice needs 2 at least"),
    "a candidate without model": ({"candidates": [{"text": "a"}] * 2}, "candidates are a list of"),
    "a true seed": ({"candidates": [{"text": "a", "model": "m", "seed": True}] * 2}, "candidates are a list of"),
    "a huge seed": ({"candidates": [{"text": "a", "model": "m", "seed": 2**63}] * 2}, "candidates are a list of"),
    "half a character": ({"candidates": [{"text": "\ud800", "model": "m"}] * 2}, "lone surrogate"),
    "shown twice": ({"shown": [0, 0]}, r"shown must be \[0, 1\] in some order"),
    "true is no number": ({"shown": [False, True]}, "whole numbers"),
    "chosen twice": ({"choice": [[0], [0]]}, "each once at most"),
    "chosen from nowhere": ({"choice": [[2]]}, r"groups of the numbers \[0, 1\]"),
    "a negative choice": ({"choice": [[-1]]}, "groups of the numbers"),
    "an empty group": ({"choice": [[], [0]]}, "groups of the numbers"),
    "another word": ({"choice": "both"}, "not 'both'"),
    "no conversation": ({"messages": []}, "there are no messages"),
    "the assistant last": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "the last message must be the user's",
    ),
    "an unknown role": ({"messages": [{"role": "king", "content": "a"}]}, "a conversation is"),
    "no time zone": ({"time": "2026-01-02T03:04:05"}, "UTC in ISO 8601"),
    "another time zone": ({"time": "2026-01-02T03:04:05+01:00"}, "UTC in ISO 8601"),
    "no time": ({"time": "now"}, "UTC in ISO 8601"),
    "a field too many": ({"score": 1}, r"missing or unknown: \['score'\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_row_is_named_and_nothing_is_imported(name, path, tmp_path):
    change, complaint = BAD[name]
    file = tmp_path / "in.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD | {'key': 'x'} | change)}\n")
    with Rankings(path) as rankings:
        with pytest.raises(DataError, match=rf"in\.jsonl:3: .*{complaint}") as error:
            rankings.import_jsonl(file)
        assert list(rankings) == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", ":2: not JSON"),
        (b"[" * 100_000, ":2: it is nested too deeply"),
        (b'"\xff"', "byte offset [0-9]+ there are bytes that are not UTF-8"),
        (b"[]", ":2: this is an array, an object is expected"),
        (b"{}", ":2: a judgement has the fields key, messages, candidates, shown, choice, rater, time"),
    ],
)
def test_a_line_that_is_no_row_is_named(line, complaint, path, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + line)
    with Rankings(path) as rankings, pytest.raises(DataError, match=complaint):
        rankings.import_jsonl(tmp_path / "in.jsonl")


def test_importing_twice_changes_nothing_and_counts_differences(path, tmp_path):
    with Rankings(path) as rankings:
        rankings.add_all([judgement("1"), judgement("2", SKIP)])
        rankings.export_jsonl(tmp_path / "a.jsonl")
        before = list(rankings)
        assert rankings.import_jsonl(tmp_path / "a.jsonl") == (0, 2, 0)
        text = (tmp_path / "a.jsonl").read_text().replace('"skip"', '"tie"')
        (tmp_path / "a.jsonl").write_text(text + json.dumps(judgement("3").to_json()))
        assert rankings.import_jsonl(tmp_path / "a.jsonl") == (1, 2, 1)
        assert list(rankings) == [*before, judgement("3")]


def test_choices_of_the_first_kind_have_names_in_the_export():
    words = [judgement(choice=choice, n=3).to_json()["choice"] for choice in (tie_of(3), SKIP, choice_of_best(0, 3))]
    assert words == ["tie", "skip", [[0]]]
    named = [judgement_from_json(GOOD | {"choice": word}, "x").choice for word in ("tie", "skip", [[0, 1]], [])]
    assert named == [tie_of(2), SKIP, tie_of(2), SKIP]


def not_a_database(path):
    path.write_text("To be, or not to be, that is the question. " * 100)


def of_another_program(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE prompts (id INTEGER)")
    db.close()


def a_newer_one(path):
    Rankings(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()


def with_a_zeroed_page(path):
    with Rankings(path) as rankings:
        rankings.add_all(judgement(str(number), prompt="long " * 200 + str(number)) for number in range(100))
    data = bytearray(path.read_bytes())
    data[4096 * 5 : 4096 * 6] = bytes(4096)
    path.write_bytes(data)


def cut_short(path):
    with_a_zeroed_page(path)
    path.write_bytes(path.read_bytes()[: 4096 * 4])


def with_a_row_that_means_nothing(path):
    with Rankings(path) as rankings:
        rankings.add(judgement())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE judgements SET choice = '[[7]]'")
    db.close()


def with_bytes_that_are_no_text(path):
    with Rankings(path) as rankings:
        rankings.add(judgement())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE candidates SET text = CAST(x'ff' AS TEXT)")
    db.close()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (not_a_database, "is not a database; an SQLite file of rankings is expected"),
        (of_another_program, "is an SQLite file of another program"),
        (a_newer_one, "has version 2 of its schema, .* knows up to 1; .*the newer version that wrote it"),
        (with_a_zeroed_page, r"is damaged \("),
        (cut_short, r"is damaged \("),
        (with_a_row_that_means_nothing, r"is damaged \(row 1: .*groups of the numbers"),
        (with_bytes_that_are_no_text, r"is damaged \(.*decode"),
    ],
)
def test_a_foreign_file_is_refused_in_one_line_and_unchanged(spoil, complaint, path):
    spoil(path)
    before = path.read_bytes()

    def use():
        with Rankings(path) as rankings:
            list(rankings)

    with pytest.raises(DataError, match=complaint) as error:
        use()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before


def test_damage_is_found_when_the_file_is_opened_wherever_it_is(path):
    """Else new rows would be put beside it: here into an index, which reading all rows does not touch."""
    with Rankings(path) as rankings:
        rankings.add_all(judgement(str(number)) for number in range(100))
    db = sqlite3.connect(path)
    query = "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'judgements'"
    (page,) = db.execute(query).fetchone()
    db.close()
    data = bytearray(path.read_bytes())
    data[4096 * (page - 1) + 8 : 4096 * page] = bytes(4096 - 8)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"is damaged \("):
        Rankings(path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"cannot use .*r\.sqlite: unable to open database file; choose an exist"):
        Rankings(tmp_path / "nowhere" / "r.sqlite")
    with pytest.raises(DataError, match="there are no rankings at"):
        Rankings(tmp_path / "r.sqlite", must_exist=True)
    assert not list(tmp_path.iterdir())


def test_an_older_schema_is_migrated_with_its_rows(path):
    steps = [["CREATE TABLE t (a)"], ["ALTER TABLE t ADD COLUMN b DEFAULT 7"], ["UPDATE t SET b = b + 1"]]
    first = Database(path, steps[:1])
    with first.transaction() as db:
        db.execute("INSERT INTO t VALUES (1)")
    first.close()
    for known in (3, 3):  # the second time there is nothing left to do
        later = Database(path, steps[:known])
        with later.reading() as db:
            assert db.execute("SELECT a, b FROM t").fetchall() == [(1, 8)]
        later.close()


def test_a_migration_that_fails_leaves_the_old_schema(path):
    Database(path, [["CREATE TABLE t (a)"]]).close()
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        Database(path, [["CREATE TABLE t (a)"], ["CREATE TABLE u (a)", "nonsense"]])
    db = sqlite3.connect(path)
    assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()


def test_a_kappa_is_that_of_the_hand_count():
    """Two raters, ten pairs, eight alike: in both orders 8/10 agree and 1/2 by chance."""
    ann = [judgement(f"a{n}", choice_of_best(0, 2), prompt=str(n)) for n in range(10)]
    bob = [judgement(f"b{n}", choice_of_best(int(n >= 8), 2), prompt=str(n), rater="bob") for n in range(10)]
    (found,) = kappas([*ann, *bob])
    assert found[:3] == (("ann", "bob"), 10, 0.8)
    assert found.kappa == pytest.approx((0.8 - 0.5) / 0.5)


def test_a_kappa_with_ties_is_that_of_the_hand_count():
    """ann says > > = =, bob says > = = <: two of four answers are alike."""
    choices = {"ann": ["0", "0", "t", "t"], "bob": ["0", "t", "t", "1"]}
    items = [
        judgement(f"{rater}{n}", tie_of(2) if said == "t" else choice_of_best(int(said), 2), prompt=str(n), rater=rater)
        for rater, row in choices.items()
        for n, said in enumerate(row)
    ]
    # Of eight answers each: ann 2 "first", 4 ties, 2 "second"; bob the same. By chance (4 + 16 + 4) / 64.
    assert kappas(items)[0].kappa == pytest.approx((4 / 8 - 24 / 64) / (1 - 24 / 64))


def test_a_kappa_does_not_depend_on_the_order_of_candidates():
    ann = [judgement(f"a{n}", choice_of_best(n % 2, 2), prompt=str(n)) for n in range(9)]
    bob = [judgement(f"b{n}", choice_of_best(int(n > 3), 2), prompt=str(n), rater="bob") for n in range(9)]
    turned = [
        dataclasses.replace(item, candidates=item.candidates[::-1], choice=item.choice[::-1], shown=(1, 0))
        for item in bob
    ]
    assert kappas([*ann, *bob]) == kappas([*ann, *turned])


@pytest.mark.parametrize("choice", [tie_of(2), SKIP])
def test_an_undefined_kappa_is_none(choice):
    """Two who only ever say "tie" agree, but would by chance; two who skip have said nothing."""
    (found,) = kappas([judgement("1", choice), judgement("2", choice, rater="bob")])
    assert found.kappa is None
    assert found.n_pairs == (1 if choice else 0)


def test_raters_without_a_common_question_are_not_compared():
    assert kappas([judgement("1"), judgement("2", rater="bob", prompt="other")])[0][1:] == (0, None, None)
    assert kappas([judgement("1")]) == []


def test_position_bias_counts_the_first_shown_among_the_decided():
    decided = [judgement(str(n), ((1,), (0,)), shown=(1, 0) if n < 3 else (0, 1)) for n in range(4)]
    undecided = [judgement("t", tie_of(2)), judgement("s", SKIP), judgement("two", ((0, 1), (2,)), n=3)]
    found = position_bias([*decided, *undecided])
    assert found is not None
    assert (found.n, found.share, found.by_chance) == (4, 0.75, 0.5)
    assert found[2:4] == wilson(3, 4)
    assert position_bias(undecided) is None
    assert position_bias([judgement("f", choice_of_best(0, 4), n=4)]).by_chance == 0.25


def test_wilsons_interval_is_that_of_the_books():
    """Newcombe (1998), table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29)[1] == 1.0


def games(strengths, n, rng, tie_share=0.0):
    models = list(strengths)
    for number in range(n):
        a, b = rng.choice(len(models), size=2, replace=False)
        chance = 1 / (1 + math.exp(strengths[models[b]] - strengths[models[a]]))
        choice = tie_of(2) if rng.random() < tie_share else choice_of_best(int(rng.random() >= chance), 2)
        yield from judgement(str(number), choice, models=[models[a], models[b]]).comparisons()


STRENGTHS = {"king": 1.0, "fool": 0.25, "ghost": -0.5, "cat": -0.75}


def test_bradley_terry_finds_the_strengths_again():
    found = bradley_terry(games(STRENGTHS, 8000, np.random.default_rng(1)))
    assert [score.model for score in found] == list(STRENGTHS)
    assert [score.score for score in found] == pytest.approx(list(STRENGTHS.values()), abs=0.1)
    assert sum(score.score for score in found) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_its_intervals_hold_the_truth_as_often_as_they_say():
    """300 repetitions of 200 games: 95 % within three standard deviations of such a count."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        found = {score.model: score for score in bradley_terry(games(STRENGTHS, 200, rng))}
        held += sum(found[model].low <= truth <= found[model].high for model, truth in STRENGTHS.items())
    assert 0.93 < held / 1200 < 0.975


def test_two_models_score_as_the_log_odds_of_their_wins():
    """With one added game won and lost by halves against the average, and the fit by hand."""
    wins = [judgement(str(n), choice_of_best(int(n >= 75), 2)) for n in range(100)]
    found = bradley_terry(comparison for item in wins for comparison in item.comparisons())
    gap = found[0].score - found[1].score
    assert gap == pytest.approx(math.log(75 / 25), abs=0.02)
    assert math.log(75 / 25) > gap, "the prior draws together"
    chance = 1 / (1 + math.exp(-gap))
    fisher = 100 * chance * (1 - chance)
    assert (found[0].high - found[0].low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(fisher), rel=0.02)


def test_an_undefeated_model_has_a_finite_score_and_a_wide_interval():
    wins = [judgement(str(n), choice_of_best(0, 2)) for n in range(20)]
    best, worst = bradley_terry(comparison for item in wins for comparison in item.comparisons())
    assert (best.model, worst.model, best.n_comparisons) == ("a", "b", 20)
    assert 1 < best.score < 4
    assert best.score == pytest.approx(-worst.score)
    assert best.high - best.low > 1


def test_ties_pull_scores_together_and_same_model_pairs_are_ignored():
    rng = np.random.default_rng(3)
    plain, tied = (bradley_terry(games({"a": 1.0, "b": -1.0}, 400, rng, share)) for share in (0.0, 0.5))
    assert 0 < tied[0].score < plain[0].score
    level = bradley_terry(judgement(choice=tie_of(2)).comparisons())
    assert [(score.score, score.n_comparisons) for score in level] == [(pytest.approx(0), 1)] * 2
    alike = judgement(models="aab", n=3, choice=((0,), (1,), (2,)))
    assert [score.n_comparisons for score in bradley_terry(alike.comparisons())] == [2, 2]
    only = bradley_terry(judgement(models="aa").comparisons())
    assert [(score.model, score.score) for score in only] == [("a", 0.0)]
    assert bradley_terry([]) == []


def test_rankings_of_the_simulated_rater_recover_the_measure(path):
    """The models' texts have measures 0, 1 and 2, the noise is 1: so the scores lie 1 apart."""
    judge = SimulatedRater(float, 1.0, seed=4)
    with Rankings(path) as rankings:
        rankings.add_all(
            judgement(str(n), judge.rank(n, ["0", "1", "2"]), n=3, texts=["0", "1", "2"]) for n in range(3000)
        )
        found = bradley_terry(rankings.pairs())
    assert [(score.model, score.score) for score in found] == [
        ("c", pytest.approx(1, abs=0.1)),
        ("b", pytest.approx(0, abs=0.1)),
        ("a", pytest.approx(-1, abs=0.1)),
    ]
