"""Ranking over HTTP: blind, kept before it is said so, kept once, and learned from."""

import asyncio
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from housekit import House, comes_to_hold, house_of

from groundling.align.preferences.judgement import Candidate, Judgement
from groundling.align.preferences.simulate import SimulateConfig
from groundling.align.preferences.store import Rankings
from groundling.align.reward.train import RewardConfig
from groundling.bundle import load_bundle, save_bundle
from groundling.data.examples import shakespeare
from groundling.errors import ConfigError
from groundling.safety.stream import Safety
from groundling.serve.config import ServeConfig
from groundling.serve.http.errors import ApiError
from groundling.serve.ranking.prompts import Prompts
from groundling.serve.ranking.question_queue import KEPT_S, MAX_HELD, MAX_OF_ONE, QuestionQueue, RankedModel, turns
from groundling.serve.ranking.ranking_cache import RankingCache, preferences
from groundling.serve.state import ServerState, State
from groundling.text.chat.messages import Message
from servekit import Served, serving, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "align"))
from rankingkit import judgement
from stagekit import write_rankings

from prockit import children, is_alive

URL = "/v1/groundling/rankings"
NAMES = ("yorick", "ophelia")
N_PROMPTS = 60


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Speak, {n}."}) + "\n" for n in range(N_PROMPTS)))
    return path


@pytest.fixture
def words(models: dict[str, Path], prompts: Path, tmp_path: Path) -> tuple[object, ...]:
    """A server of two names that answer, with a file of rankings of its own."""
    players = [f"{name}={models['talker']}" for name in NAMES]
    places = ("--rankings", tmp_path / "kept.sqlite", "--runs", tmp_path / "runs", "--prompts", prompts)
    return (*players, *places, "--safety", "off")


@pytest.fixture(scope="module")
def bench(models: dict[str, Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests that only add answers."""
    folder = tmp_path_factory.mktemp("bench")
    players = [f"{name}={models['talker']}" for name in NAMES]
    places = ("--rankings", folder / "kept.sqlite", "--runs", folder / "runs", "--prompts", prompts)
    with serving(*players, *places, "--safety", "off") as served:
        served.folder = folder  # type: ignore[attr-defined]
        yield served


@contextmanager
def killed_at_the_end(*words: object) -> Iterator[Served]:
    """A server that does not come to an end by itself: SIGKILL."""
    running = serving(*words)
    server = running.__enter__()
    try:
        yield server
    finally:
        server.process.kill()
        assert server.process.wait() == -signal.SIGKILL
        with pytest.raises(AssertionError):  # it asks for a better end than that
            running.__exit__(None, None, None)


def ask(server: Served, rater: str = "ann", **query: object) -> dict[str, Any]:
    line = "&".join(f"{name}={value}" for name, value in {"rater": rater, **query}.items())
    status, question, _ = server.ask("GET", f"{URL}/next?{line}")
    assert status == 200, question
    return question


def answer(server: Served, question: dict[str, Any], choice: Any, **changes: Any) -> tuple[int, Any]:
    body = {"question": question["question"], "choice": choice, "rater": "ann", "key": os.urandom(16).hex()}
    return server.ask("POST", URL, {**body, **changes})[:2]


def refusal(told: tuple[int, Any]) -> tuple[int, str]:
    return told[0], told[1]["error"]["code"]


@pytest.mark.slow
def test_a_question_hides_the_models(bench: Served) -> None:
    for n in (2, 3, 4):
        question = ask(bench, n=n)
        assert set(question) == {"question", "messages", "replies"}
        assert [set(reply) for reply in question["replies"]] == [{"place", "text"}] * n
        said = json.dumps({**question, "replies": [reply["place"] for reply in question["replies"]]})
        assert not any(name in said for name in (*NAMES, "talker", "model", "seed"))
    status, kept = answer(bench, question, {"best": 1})
    assert status == 200
    assert Counter(each["model"] for each in kept["revealed"]) == {"yorick": 2, "ophelia": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"best": 2}, [[2]]),
        ([[3]], [[3]]),
        ([[3], [1], [2]], [[3], [1], [2]]),
        ([[2, 3], [1]], [[2, 3], [1]]),
        ("tie", "tie"),
        ([[1, 2, 3]], "tie"),
        ("skip", "skip"),
    ],
    ids=str,
)
def test_the_stored_choice_is_the_one_on_the_screen(bench: Served, choice: Any, told: Any) -> None:
    """Places on the screen become candidates: whichever order they were shown in, the texts are the right ones."""
    for _ in range(4):
        question = ask(bench, n=3)
        texts = {reply["place"]: reply["text"] for reply in question["replies"]}
        status, kept = answer(bench, question, choice)
        assert status == 200
        said = kept["choice"] if isinstance(told, str) else [sorted(group) for group in kept["choice"]]
        assert said == told
        with Rankings(bench.folder / "kept.sqlite") as rankings:  # type: ignore[attr-defined]
            row = rankings.get(kept["key"])
        assert row is not None
        groups = [] if told == "skip" else [[1, 2, 3]] if told == "tie" else told
        assert [{row.candidates[number].text for number in group} for group in row.choice] == [
            {texts[place] for place in group} for group in groups
        ]
        assert [row.candidates[number].text for number in row.shown] == list(texts.values())
        assert [row.candidates[number].model for number in row.shown] == [each["model"] for each in kept["revealed"]]


@pytest.mark.slow
def test_the_best_of_two_is_better_than_the_other(bench: Served) -> None:
    _, kept = answer(bench, ask(bench), {"best": 1})
    with Rankings(bench.folder / "kept.sqlite") as rankings:  # type: ignore[attr-defined]
        row = rankings.get(kept["key"])
    assert row is not None
    (pair,) = row.comparisons()
    assert (pair.better.model, pair.worse.model) == tuple(each["model"] for each in kept["revealed"])


@pytest.mark.slow
def test_a_repeated_answer_is_stored_once(bench: Served) -> None:
    question, key = ask(bench), os.urandom(16).hex()
    before = bench.ask("GET", URL)[1]["judgements"]
    first = answer(bench, question, {"best": 2}, key=key)
    assert first[0] == 200
    with ThreadPoolExecutor(8) as pool:
        others = list(pool.map(lambda _: answer(bench, question, [[2], [1]], key=key), range(16)))
    assert others == [first] * 16
    assert bench.ask("GET", URL)[1]["judgements"] == before + 1
    assert refusal(answer(bench, question, "tie", key=key)) == (409, "key_used")
    assert refusal(answer(bench, question, {"best": 2}, key=key, rater="bob")) == (409, "key_used")
    assert refusal(answer(bench, question, {"best": 2})) == (409, "answered")
    assert refusal(answer(bench, ask(bench), {"best": 2}, key=key)) == (409, "key_used")
    assert bench.ask("GET", URL)[1]["judgements"] == before + 1


@pytest.mark.slow
def test_one_of_several_answers_to_a_question_is_stored(bench: Served) -> None:
    question = ask(bench)
    before = bench.ask("GET", URL)[1]["judgements"]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda n: answer(bench, question, {"best": 1 + n % 2}), range(8)))
    assert sorted(status for status, _ in told) == [200] + [409] * 7
    assert bench.ask("GET", URL)[1]["judgements"] == before + 1


@pytest.mark.slow
def test_an_unknown_question_cannot_be_answered(bench: Served) -> None:
    question = ask(bench)
    assert refusal(answer(bench, {"question": "x" * 24}, "skip")) == (404, "no_question")
    assert refusal(answer(bench, question, "skip", rater="bob")) == (409, "not_yours")
    for choice in ({"best": 3}, {"best": 0}, [[1, 1]], [[1], [1]], [], [[]], [[3]], "both", 1, None, {"best": True}):
        status, told = answer(bench, question, choice)
        assert (status, told["error"]["param"].split(".")[0]) == (400, "choice"), choice
    assert answer(bench, question, "skip")[0] == 200


@pytest.mark.slow
def test_a_foreign_page_cannot_answer(bench: Served) -> None:
    question = ask(bench)
    before = bench.ask("GET", URL)[1]["judgements"]
    body = {"question": question["question"], "choice": "tie", "rater": "ann", "key": "a" * 32}
    for headers, status in (({"Origin": "https://evil.example"}, 403), ({"Content-Type": "text/plain"}, 415)):
        for path, said in ((URL, body), (f"{URL}/train", {})):
            assert bench.ask("POST", path, raw=json.dumps(said).encode(), headers=headers)[0] == status
    assert bench.ask("DELETE", f"{URL}/train", headers={"Origin": "https://evil.example"})[0] == 403
    _, _, headers = bench.ask("GET", URL, headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in headers
    assert bench.ask("GET", URL)[1]["judgements"] == before


@pytest.mark.slow
def test_each_rater_goes_through_all_prompts_and_sees_what_others_saw(bench: Served) -> None:
    """The same replies for everybody, in an order of their own: what raters say can be compared."""
    seen: dict[str, dict[str, list[str]]] = {"cat": {}, "dan": {}}
    for rater, found in seen.items():
        for _ in range(8):
            question = ask(bench, rater)
            texts = [reply["text"] for reply in question["replies"]]
            assert question["messages"][-1]["content"] not in found
            found[question["messages"][-1]["content"]] = texts
            answer(bench, question, "skip", rater=rater)
    assert {prompt: sorted(texts) for prompt, texts in seen["cat"].items()} == {
        prompt: sorted(texts) for prompt, texts in seen["dan"].items()
    }


@pytest.mark.slow
def test_a_custom_prompt_gets_replies(bench: Served) -> None:
    question = ask(bench, prompt="What+news?")
    assert question["messages"] == [{"role": "user", "content": "What news?"}]
    status, told, _ = bench.ask("GET", f"{URL}/next?rater=ann&prompt={'long' * 30}")
    assert refusal((status, told)) == (409, "nothing_to_ask")
    assert "context" in told["error"]["message"]


@pytest.mark.slow
def test_the_export_is_that_of_the_command(bench: Served, tmp_path: Path) -> None:
    answer(bench, ask(bench, rater="z%C3%BC"), "tie", rater="zü")
    status, text, headers = bench.ask("GET", f"{URL}/export")
    assert status == 200
    assert headers["content-disposition"] == 'attachment; filename="rankings.jsonl"'
    with Rankings(bench.folder / "kept.sqlite") as rankings:  # type: ignore[attr-defined]
        rankings.export_jsonl(tmp_path / "out.jsonl")
    assert text == (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.slow
def test_an_acknowledged_answer_survives_a_kill(words: tuple[object, ...], tmp_path: Path) -> None:
    """Eight raters at once, and SIGKILL in the middle: each answer that was acknowledged is there, and whole."""
    kept: list[dict[str, Any]] = []
    last: dict[str, Any] = {}

    def rate(server: Served, rater: str) -> None:
        while True:
            try:
                question = ask(server, rater)
                key = os.urandom(16).hex()
                last[key] = body = {"question": question["question"], "choice": {"best": 1}, "rater": rater, "key": key}
                status, told, _ = server.ask("POST", URL, body)
            except (OSError, http.client.HTTPException):
                return
            assert status == 200
            kept.append(told)

    with killed_at_the_end(*words) as server, ThreadPoolExecutor(8) as pool:
        raters = [pool.submit(rate, server, f"rater-{number}") for number in range(8)]
        wait_until(lambda: len(kept) >= 60, 60)
        server.process.kill()
        for each in raters:
            each.result()
    with Rankings(tmp_path / "kept.sqlite") as rankings:
        rows = {row.key: row for row in rankings}
        assert {told["key"] for told in kept} <= set(rows)
        assert set(rows) <= set(last)
    assert sqlite3.connect(tmp_path / "kept.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with serving(*words) as server:  # whoever does not know whether it was kept, sends it again
        assert server.ask("POST", URL, last[kept[0]["key"]])[:2] == (200, kept[0])
        unknown = {**last[kept[0]["key"]], "key": os.urandom(16).hex()}
        assert refusal(server.ask("POST", URL, unknown)[:2]) == (404, "no_question")
        assert server.ask("GET", URL)[1]["judgements"] == len(rows)


@pytest.mark.slow
def test_an_invalid_file_is_reported_in_one_line(words: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "kept.sqlite").write_bytes(b"this is no database" * 100)
    with serving(*words) as server:
        for method, path in (("GET", URL), ("GET", f"{URL}/export"), ("GET", f"{URL}/next?rater=ann")):
            status, told, _ = server.ask(method, path)
            assert refusal((status, told)) == (503, "rankings_unusable")
            assert "\n" not in told["error"]["message"]


# Questions without a server.

ReplyFn = Callable[[Any, int], Awaitable[str | None]]
PROMPTS = [(Message("user", f"Speak {n}."),) for n in range(5)]


async def by_seed(messages: Any, seed: int) -> str | None:
    return f"{seed}"


def cast(reply: ReplyFn = by_seed, n: int = 2) -> list[RankedModel]:
    return [RankedModel(name, reply) for name in ("yorick", "ophelia", "romeo", "juliet")[:n]]


TWO = cast()


def test_positions_of_replies_are_uniform() -> None:
    """And each order of four comes as often as another, by chance: 1,000 questions, 24 orders, 41.7 of each."""
    found = QuestionQueue()

    async def all_of_them() -> list[tuple[int, ...]]:
        return [(await found.ask("ann", 4, PROMPTS, TWO, Counter())).shown for _ in range(1000)]

    orders = Counter(asyncio.run(all_of_them()))
    for number in range(4):
        places = Counter(order.index(number) for order in orders.elements())
        assert all(abs(count - 250) < 5 * (1000 * 0.25 * 0.75) ** 0.5 for count in places.values())
    assert len(orders) == 24
    assert sum((count - 1000 / 24) ** 2 / (1000 / 24) for count in orders.values()) < 60  # chi square, 23 degrees


def test_old_or_excess_questions_are_dropped() -> None:
    now = [0.0]
    found = QuestionQueue(lambda: now[0])
    first = asyncio.run(found.ask("ann", 2, PROMPTS, TWO, Counter()))
    assert found.get(first.token) is first
    now[0] = KEPT_S + 1
    assert found.get(first.token) is None
    own = [asyncio.run(found.ask("ann", 2, PROMPTS, TWO, Counter())) for _ in range(MAX_OF_ONE + 3)]
    assert [found.get(each.token) is not None for each in own] == [False] * 3 + [True] * MAX_OF_ONE
    many = [asyncio.run(found.ask(f"rater {n}", 2, PROMPTS, TWO, Counter())) for n in range(MAX_HELD)]
    assert found.get(own[-1].token) is None
    assert all(found.get(each.token) is not None for each in many)


def test_open_questions_are_not_asked_again() -> None:
    """A page asks for the next one while this one is read."""
    found = QuestionQueue()

    async def at_once() -> set[tuple[Message, ...]]:
        asked = await asyncio.gather(*(found.ask("ann", 2, PROMPTS, TWO, Counter()) for _ in range(len(PROMPTS))))
        return {each.messages for each in asked}

    assert len(asyncio.run(at_once())) == len(PROMPTS)


def test_prompts_with_equal_or_blocked_replies_are_skipped() -> None:
    async def reply(messages: Any, seed: int) -> str | None:
        if messages == PROMPTS[0]:
            raise ApiError(400, "too long", "context_length_exceeded")
        return {PROMPTS[1]: "aye", PROMPTS[3]: None}.get(messages, f"{seed}")

    found = QuestionQueue()
    assert asyncio.run(found.ask("ann", 2, PROMPTS, cast(reply), Counter())).messages == PROMPTS[2]
    for prompt, reason in ((0, "too long"), (1, "the same"), (3, "safety stage blocks")):
        with pytest.raises(ApiError, match=reason):
            asyncio.run(found.ask("ann", 2, [PROMPTS[prompt]], cast(reply), Counter()))


@pytest.mark.parametrize("said", ["aye", None])
@pytest.mark.parametrize("n_prompts", [1, 5])
def test_at_most_three_attempts_per_question(said: str | None, n_prompts: int) -> None:
    seeds = []

    async def reply(messages: Any, seed: int) -> str | None:
        seeds.append(seed)
        return said

    with pytest.raises(ApiError, match="nothing to choose"):
        asyncio.run(QuestionQueue().ask("ann", 4, PROMPTS[:n_prompts], cast(reply), Counter()))
    assert len(set(seeds)) == len(seeds) == 3 * 4


def test_a_prompt_is_retried_with_other_seeds() -> None:
    """Of one's own prompt there is only one."""
    n_said = 0

    async def reply(messages: Any, seed: int) -> str | None:
        nonlocal n_said
        n_said += 1
        return "aye" if n_said <= 3 else f"{seed}"

    assert asyncio.run(QuestionQueue().ask("ann", 2, PROMPTS[:1], cast(reply), Counter())).messages == PROMPTS[0]
    assert n_said == 4


def test_each_pair_of_models_is_compared() -> None:
    """In both orders of the seeds, over many prompts and over rounds of one; and no model replies more than others."""
    many = [(Message("user", f"Speak {n}."),) for n in range(200)]
    for asked in (((messages, 0) for messages in many), ((many[0], n) for n in range(200))):
        pairs = Counter(tuple(each.name for each in turns(messages, 2, cast(n=4), n)) for messages, n in asked)
        assert len(pairs) == 12
        assert max(pairs.values()) < 40
    for n_models, n, counts in ((4, 4, [1] * 4), (2, 4, [2, 2]), (3, 4, [1, 1, 2]), (1, 2, [2])):
        playing = turns(many[0], n, cast(n=n_models), 0)
        assert sorted(Counter(each.name for each in playing).values()) == counts


def test_errors_of_a_busy_server_are_passed_on() -> None:
    async def reply(messages: Any, seed: int) -> str | None:
        raise ApiError(429, "full", "queue_full")

    with pytest.raises(ApiError, match="full"):
        asyncio.run(QuestionQueue().ask("ann", 2, PROMPTS, cast(reply), Counter()))


def test_default_prompts_come_from_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the plays is what the stages are measured on: nobody's answers may come from there."""
    speeches = [f"{'AB'[n % 2]}:\nLine {n}.\n" for n in range(100)]
    (tmp_path / "plays.txt").write_text("\n".join(speeches))
    monkeypatch.setattr(shakespeare.datasets, "get", lambda name: tmp_path / "plays.txt")
    learned, held_out = map(shakespeare.prompts, shakespeare.shakespeare_dialogues())
    prompts = Prompts(None)
    assert set(prompts.get()) == set(map(tuple, learned))
    assert not set(prompts.get()) & set(map(tuple, held_out))


def test_the_counts_match_the_rankings(tmp_path: Path) -> None:
    """Also when another program writes to the file, and without reading it anew for what came from here."""
    choices = [((0,), (1,)), ((0, 1, 2),), (), ((1,),), ((0, 2), (1,)), ((2,), (0, 1))]
    rows = [judgement(key=f"key {n}", choice=choice, n=3, prompt=f"p {n % 4}") for n, choice in enumerate(choices)]
    for row in rows:
        assert preferences(row) == sum(not comparison.tie for comparison in row.comparisons())
    book = RankingCache(tmp_path / "kept.sqlite")
    for n, row in enumerate(rows):
        if n % 2:
            with Rankings(tmp_path / "kept.sqlite") as other:
                other.add(row)
        else:
            assert book.keep(row) == row
        with Rankings(tmp_path / "kept.sqlite") as other:
            counts, n_pairs = other.counts(), sum(1 for _ in other.pairs())
        told, _ = book.counts("ann")
        assert {name: told[name] for name in counts._fields} == counts._asdict()
        assert told["pairs"] == n_pairs
        assert told["by_you"] == n + 1
        assert book.answered("ann").total() == n + 1
    again = Judgement(**{**vars(rows[0]), "candidates": tuple(Candidate("x", "y") for _ in range(3))})
    assert book.keep(again) == rows[0]
    book.close()


def test_no_file_is_created_before_the_first_answer(tmp_path: Path) -> None:
    path = tmp_path / "runs/of/mine/kept.sqlite"
    book = RankingCache(path)
    row = judgement(key="key 1")
    assert book.counts("ann")[0]["judgements"] == book.counts("ann")[0]["by_you"] == 0
    assert book.get("key 1") is None
    assert not book.answered("ann")
    assert list(book) == []
    assert list(tmp_path.iterdir()) == []
    assert book.keep(row) == row
    assert list(book) == [row]
    book.close()


def test_all_verbs_have_the_same_default_file() -> None:
    ours = ServeConfig(paths=("x",)).rankings
    assert ours == RewardConfig(path="x").rankings == SimulateConfig(path="x").rankings


# A server in this process.


@pytest.fixture
def house(models: dict[str, Path], prompts: Path, tmp_path: Path) -> Iterator[House]:
    with house_of(tmp_path, *(f"{name}={models['talker']}" for name in NAMES), prompts=prompts) as found:
        yield found


def rules(tmp_path: Path, text: str) -> Safety:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return Safety.from_file(path)


@pytest.mark.slow
def test_replies_and_custom_prompts_pass_the_safety_stage(house: House, tmp_path: Path) -> None:
    def get(**query: str) -> tuple[int, Any]:
        answer = house.client.get(f"{URL}/next", params={"rater": "ann", **query})
        return answer.status_code, answer.json()

    rule = '[[rule]]\nname = "{}"\nreason = "why"\naction = "{}"\nwhere = ["{}"]\n{}\n'
    oath = rule.format("oath", "block", "prompt", 'words = ["zounds"]')
    number = rule.format("number", "redact", "prompt", "pattern = '[0-9]{5}'\nmark = '[number]'")
    vowel = rule.format("vowel", "redact", "reply", "pattern = '[aeiou]'\nmark = '*'")
    house.server.safety = rules(tmp_path, oath + number + vowel)
    status, told = get(prompt="Zounds, who?")
    assert refusal((status, told)) == (400, "content_filter")
    assert told["error"]["param"] == "prompt"
    assert "oath" in told["error"]["message"]
    status, told = get(prompt="Who is 12345?")
    assert (status, told["messages"][0]["content"]) == (200, "Who is [number]?")
    status, told = get()
    said = "".join(reply["text"] for reply in told["replies"])
    assert status == 200
    assert "*" in said
    assert not set(said) & set("aeiou")
    house.server.safety = rules(tmp_path, rule.format("all", "block", "reply", "pattern = '.'"))
    status, told = get()
    assert refusal((status, told)) == (409, "nothing_to_ask")
    assert "safety stage" in told["error"]["message"]
    wait_until(lambda: house.server.worker.load == (0, 0))
    metrics = house.server.metrics.text().decode()
    assert 'groundling_filtered_total{action="block",where="prompt"} 1.0' in metrics
    assert 'groundling_filtered_total{action="redact",where="reply"}' in metrics


@pytest.mark.slow
def test_a_disconnected_client_cancels_its_question(house: House) -> None:
    async def act(go_on: threading.Event) -> None:
        now = asyncio.Event()
        leaving = asyncio.ensure_future(house.leave(now, "GET", f"{URL}/next?rater=ann&n=4"))
        await comes_to_hold(lambda: house.server.worker.load.waiting == 4)
        assert set(house.server.worker._queue._clients) == {"127.0.0.1"}, "raters take turns as all clients do"
        assert house.server.n_open == 1
        now.set()
        await leaving
        assert house.server.n_open == 0
        go_on.set()

    house.held(act)
    wait_until(lambda: house.server.worker.load == (0, 0))
    assert 'groundling_aborted_total{reason="disconnect"} 1.0' in house.server.metrics.text().decode()


@pytest.mark.slow
def test_a_question_in_progress_finishes_while_draining(house: House) -> None:
    async def act(go_on: threading.Event) -> None:
        transport = httpx.ASGITransport(house.client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asking = asyncio.ensure_future(http.get(f"{URL}/next?rater=ann"))
            await comes_to_hold(lambda: house.server.worker.load.waiting == 2)
            house.server.state = State.DRAINING
            assert house.server.n_open == 1, "the server waits for it"
            go_on.set()
            assert (await asking).status_code == 200

    house.held(act)


@pytest.mark.slow
def test_the_time_for_one_question_is_that_of_a_request(house: House) -> None:
    """However often replies are written for it."""
    house.server.config = replace(house.server.config, timeout_s=0.1)

    async def act(go_on: threading.Event) -> None:
        transport = httpx.ASGITransport(house.client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.get(f"{URL}/next?rater=ann")
            assert house.server.n_open == 0
            go_on.set()
        assert refusal((answer.status_code, answer.json())) == (503, "deadline_exceeded")

    house.held(act)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_foreign_page_cannot_request_replies(house: House, site: str) -> None:
    """An image's address is asked for without an origin."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": "image"}
    answer = house.client.get(f"{URL}/next?rater=ann", headers=headers)
    assert refusal((answer.status_code, answer.json())) == (403, "origin_not_allowed")
    for own in ({"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        assert house.client.get(f"{URL}/next?rater=ann", headers=own).status_code == 200


@pytest.mark.slow
def test_an_allowed_origin_can_request_replies(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    friend = "https://friend.example"
    with house_of(tmp_path, models["talker"], prompts=prompts, cors_origins=(friend,)) as house:
        for origin, status in ((friend, 200), ("https://evil.example", 403)):
            headers = {"Sec-Fetch-Site": "cross-site", "Origin": origin}
            assert house.client.get(f"{URL}/next?rater=ann", headers=headers).status_code == status


@pytest.mark.slow
def test_progress_counts_prompts_and_not_answers(house: House) -> None:
    def answered(**query: str) -> None:
        question = house.client.get(f"{URL}/next", params={"rater": "ann", **query}).json()
        body = {"question": question["question"], "choice": "skip", "rater": "ann", "key": os.urandom(16).hex()}
        assert house.client.post(URL, json=body).status_code == 200

    for _ in range(N_PROMPTS + 2):
        answered()
    answered(prompt="What news?")
    counts = house.client.get(f"{URL}?rater=ann").json()
    assert (counts["by_you"], counts["prompts_by_you"]) == (N_PROMPTS + 3, N_PROMPTS)
    assert counts["to_ask"] == N_PROMPTS
    assert house.client.get(f"{URL}?rater=bob").json()["prompts_by_you"] == 0


# The reward model.


@pytest.mark.slow
def test_a_reward_model_is_not_served(models: dict[str, Path], tmp_path: Path) -> None:
    bundle = load_bundle(models["talker"])
    head = {"weight": torch.zeros(1, bundle.config.n_embd)}
    save_bundle(tmp_path / "judge/bundle", bundle.model, bundle.tokenizer, chat=bundle.chat, head=head)
    server = ServerState(ServeConfig(paths=("x",), device="cpu"))
    for path in (tmp_path / "judge", tmp_path / "judge/bundle"):
        with pytest.raises(ConfigError, match=r"judge.* is a reward model: it scores"):
            server.load("judge", path)


@pytest.mark.slow
def test_too_few_rankings_are_refused_for_training(words: tuple[object, ...]) -> None:
    with serving(*words) as server:
        answer(server, ask(server), {"best": 1})
        status, told, _ = server.ask("POST", f"{URL}/train", {})
        assert refusal((status, told)) == (409, "too_few_rankings")
        assert "there are 1 preferences" in told["error"]["message"]
        assert server.ask("GET", f"{URL}/train")[1]["state"] == "idle"
        assert server.ask("DELETE", f"{URL}/train")[1]["state"] == "idle"
        assert server.ask("POST", f"{URL}/train", {"model": "../yorick"})[0] == 404


@pytest.mark.slow
def test_a_reward_model_is_trained_one_at_a_time(words: tuple[object, ...], tmp_path: Path) -> None:
    write_rankings(tmp_path / "kept.sqlite")
    with serving(*words) as server:
        status, told, _ = server.ask("POST", f"{URL}/train", {"model": "ophelia"})
        assert (status, told["state"], told["model"], told["run"]) == (200, "running", "ophelia", "reward-1")
        assert refusal(server.ask("POST", f"{URL}/train", {})[:2]) == (409, "is_training")
        seen = []

        def is_over() -> bool:
            seen.append(server.ask("GET", f"{URL}/train")[1])
            return seen[-1]["state"] != "running"

        wait_until(is_over, 120)
        assert seen[-1]["state"] == "done", seen[-1]
        assert seen[-1]["share"] == 1
        assert seen[-1]["losses"][-1] == [seen[-1]["step"], seen[-1]["loss"]]
        assert 0 <= seen[-1]["accuracy"] <= 1
        steps = [each["step"] or 0 for each in seen]
        assert steps == sorted(steps)
        assert (tmp_path / "runs/reward-1/bundle/config.json").is_file()
        assert not children(server.process.pid, "child_process")
        assert "reward-1" in [run["name"] for run in server.ask("GET", "/v1/groundling/runs")[1]["data"]]
        assert server.ask("POST", f"{URL}/train", {})[1]["run"] == "reward-2"
        (child,) = children(server.process.pid, "child_process")
        assert server.ask("DELETE", f"{URL}/train")[1]["state"] == "stopped"
        assert not is_alive(child)


@pytest.mark.slow
def test_a_failed_training_reports_its_error(words: tuple[object, ...], tmp_path: Path) -> None:
    write_rankings(tmp_path / "kept.sqlite", n=20)
    (tmp_path / "runs").write_text("not a folder")
    with serving(*words) as server:
        assert server.ask("POST", f"{URL}/train", {})[0] == 200
        wait_until(lambda: server.ask("GET", f"{URL}/train")[1]["state"] != "running", 60)
        told = server.ask("GET", f"{URL}/train")[1]
    assert told["state"] == "failed"
    assert "runs" in told["error"]
    assert "\n" not in told["error"]


@pytest.mark.slow
def test_a_child_process_ends_with_its_parent(models: dict[str, Path], tmp_path: Path) -> None:
    """Also when it never says a word that nobody reads."""
    rankings, out = write_rankings(tmp_path / "kept.sqlite"), tmp_path / "out"
    words = ("reward", models["talker"], "--rankings", rankings, "--out-dir", out, "--epochs", "100000")
    command = [sys.executable, "-m", "groundling.system.child_process", *map(str, words)]
    silent = subprocess.DEVNULL
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=silent, stderr=silent)
    assert child.stdin is not None
    try:
        wait_until(lambda: (out / "metrics.jsonl").exists(), 60)
        time.sleep(0.3)
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(60) == 128 + signal.SIGTERM
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_training_ends_with_the_server(words: tuple[object, ...], tmp_path: Path, how: signal.Signals) -> None:
    write_rankings(tmp_path / "kept.sqlite", n=1500)
    with (serving if how is signal.SIGTERM else killed_at_the_end)(*words) as server:
        assert server.ask("POST", f"{URL}/train", {})[0] == 200
        wait_until(lambda: children(server.process.pid, "child_process"))
        (child,) = children(server.process.pid, "child_process")
        wait_until(lambda: (tmp_path / "runs/reward-1/metrics.jsonl").exists(), 60)
        server.process.send_signal(how)
        server.process.wait(30)
        wait_until(lambda: not is_alive(child), 20)
