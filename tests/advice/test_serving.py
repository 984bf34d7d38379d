"""Advice that the server gives: each request is refused, and granted when it is made as advised."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from advicekit import FOLLOWED, follows, matches
from housekit import House, house_of

from groundling.serve.completions import requests as completion_requests
from groundling.serve.http.errors import ApiError
from groundling.serve.state import named_paths

COMPLETION = {"model": "base", "prompt": "Who", "max_tokens": 2}
CHAT = {"model": "talker", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}
XRAY, RANKINGS = "/v1/groundling/xray", "/v1/groundling/rankings"


@pytest.fixture(scope="module")
def house(models, tmp_path_factory) -> Iterator[House]:
    with house_of(tmp_path_factory.mktemp("house"), models["base"], models["talker"], max_body_bytes=20_000) as house:
        yield house


def posted(house: House, path: str, body: Any, **how: Any) -> tuple[int, str]:
    how["headers"] = {"Content-Type": "application/json"} | how.get("headers", {})
    answer = house.client.post(path, content=json.dumps(body), **how)  # half a character is written as \\ud83d
    told = answer.json() if answer.headers["content-type"].startswith("application/json") else {}
    return answer.status_code, told.get("error", {}).get("message", "")


REQUESTS = {
    "{} not supported here; leave {} out": ("/v1/completions", {**COMPLETION, "suffix": "x"}, COMPLETION),
    "has a lone surrogate (\\u{}) at character {}; send whole characters": (
        "/v1/completions",
        {**COMPLETION, "prompt": "Who\ud83d"},
        COMPLETION,
    ),
    "{} has {} tokens, and {} reads {} at most; shorten it": (
        "/v1/completions",
        {**COMPLETION, "prompt": "Who " * 100},
        {**COMPLETION, "prompt": "Who " * 10},
    ),
    "the body has more than {} bytes; send less": (
        "/v1/completions",
        {**COMPLETION, "prompt": "a" * 30_000},
        COMPLETION,
    ),
    "{}: the request is for {} texts; this server takes {} at most, ask for fewer": (
        "/v1/completions",
        {**COMPLETION, "n": 128, "prompt": ["a"] * 80},
        {**COMPLETION, "n": 2, "prompt": ["a"] * 2},
    ),
    "{}: the response could have {} in all, and the limit is {}; ask for fewer": (
        "/v1/completions",
        {**COMPLETION, "n": 80, "max_tokens": 4096, "logprobs": 5},
        {**COMPLETION, "n": 2, "max_tokens": 2, "logprobs": 5},
    ),
    "the text has {} tokens, and the X-ray shows at most {}; shorten it": (
        XRAY,
        {"model": "base", "prompt": "Who " * 100},
        {"model": "base", "prompt": "Who"},
    ),
    "give either prompt or messages": (XRAY, {"model": "base"}, {"model": "base", "prompt": "Who"}),
    "{} is a base model, not a chat model; give a prompt": (
        XRAY,
        {"model": "base", "messages": CHAT["messages"]},
        {"model": "base", "prompt": "Who"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("template", REQUESTS)
@follows(*REQUESTS)
def test_a_request_that_is_refused_is_granted_as_advised(house, template):
    path, wrong, right = REQUESTS[template]
    status, said = posted(house, path, wrong)
    assert 400 <= status < 500
    assert matches(template, said), said
    assert posted(house, path, right)[0] == 200


@pytest.mark.slow
@follows("{} is a base model, not a chat model; use /v1/completions, or a chat model")
def test_a_chat_with_a_model_that_does_not_chat(house, advised):
    status, said = posted(house, "/v1/chat/completions", {**CHAT, "model": "base"})
    assert status == 400
    advised.hears(said)
    advised.done(posted(house, "/v1/completions", COMPLETION)[0] == 200)
    advised.done(posted(house, "/v1/chat/completions", CHAT)[0] == 200)


@pytest.mark.slow
@follows("Content-Type {}; send application/json")
def test_a_body_of_another_kind(house, advised):
    answer = house.client.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    advised.hears(answer.json()["error"]["message"])
    advised.done(posted(house, "/v1/completions", COMPLETION)[0] == 200)


JSON = {"Content-Type": "application/json"}
LATIN = {"Content-Type": "application/json; charset=latin-1"}
GZIP = {**JSON, "Content-Encoding": "gzip"}
ASKED = json.dumps(COMPLETION).encode()
BODIES = {
    "Content-Encoding is {}; send the body uncompressed, or compressed once with gzip": (
        (zlib.compress(ASKED), {**JSON, "Content-Encoding": "deflate"}),
        [(ASKED, JSON), (gzip.compress(ASKED), GZIP)],
    ),
    "the body is in {}, and byte {} is 0x{}; send JSON in UTF-8": (('{"é'.encode("latin-1"), LATIN), [(ASKED, JSON)]),
    "the body is not UTF-8: byte {} is 0x{}; send JSON in UTF-8": (('{"é'.encode("latin-1"), JSON), [(ASKED, JSON)]),
    "the body has more than {} bytes when decompressed; send less": (
        (gzip.compress(b" " * 20_001), GZIP),
        [(gzip.compress(ASKED), GZIP)],
    ),
    "the gzip body is truncated; send all of it": (
        (gzip.compress(ASKED)[:-1], GZIP),
        [(gzip.compress(ASKED), GZIP)],
    ),
}
FOLLOWED.update(BODIES)


@pytest.mark.slow
@pytest.mark.parametrize("template", BODIES)
def test_a_body_that_cannot_be_read_is_sent_as_advised(house, template):
    (wrong, headers), others = BODIES[template]
    answer = house.client.post("/v1/completions", content=wrong, headers=headers)
    assert 400 <= answer.status_code < 500
    assert matches(template, answer.json()["error"]["message"]), answer.text
    for right, how in others:
        assert house.client.post("/v1/completions", content=right, headers=how).status_code == 200


@pytest.mark.slow
@follows("{} is missing; give it in the address: ?{}=...")
def test_a_parameter_of_the_address(house, advised):
    words = {"prompt": "Who?"}
    said = house.client.get(f"{RANKINGS}/next", params=words).json()["error"]["message"]
    name, value = advised.hears(said).partition("?")[2].split("=")
    assert value == "..."
    advised.done(house.client.get(f"{RANKINGS}/next", params={name: "ann", **words}).status_code == 200)


@pytest.mark.slow
@follows("there is not enough memory to score a prompt of {} tokens; shorten it, or leave out echo")
def test_a_prompt_that_is_too_long_to_score(house, advised, monkeypatch):
    engine = house.server.models.get("base").engine
    asked: list[int] = []
    monkeypatch.setattr(type(engine), "has_memory_for", lambda self, n: asked.append(n) or n < 2 * asked[0])
    scored = {**COMPLETION, "echo": True, "logprobs": 1}
    monkeypatch.setattr(completion_requests, "SCORED_AT_ONCE", 1)
    assert posted(house, "/v1/completions", {**scored, "prompt": "Who"})[0] == 200
    advised.hears(posted(house, "/v1/completions", {**scored, "prompt": "Who " * 12})[1])
    advised.done(posted(house, "/v1/completions", {**scored, "prompt": "Who"})[0] == 200)
    advised.done(posted(house, "/v1/completions", {**COMPLETION, "prompt": "Who " * 12})[0] == 200)


@pytest.mark.slow
@follows("there is no run {}; ask /v1/groundling/runs for their names")
def test_a_run_that_is_not_there(house, advised):
    answer = house.client.get("/v1/groundling/runs/nothing/metrics")
    advised.hears(answer.json()["error"]["message"])
    advised.done(house.client.get("/v1/groundling/runs").status_code == 200)


@pytest.mark.slow
@follows(
    "{}; send one as Authorization: Bearer KEY",
    "the host {} is not allowed; allow it with --allowed-hosts",
    "a page of another site may not do this; allow its origin with --cors-origins",
    "no served model is a chat model; serve one that `groundling sft` made",
    "{} is a base model, not a chat model; start from a chat model",
)
def test_what_a_server_has_to_be_told(models, tmp_path, advised):
    from advicekit import parsed

    key = "correct-horse-battery"
    other = {"Origin": "https://friend.example", "Host": "house.example"}
    with house_of(tmp_path, models["base"], api_key=(key,)) as closed:
        bearer = {"Authorization": f"Bearer {key}"}
        advised.hears(posted(closed, "/v1/completions", COMPLETION)[1])
        advised.done(posted(closed, "/v1/completions", COMPLETION, headers=bearer)[0] == 200)
        advised.hears(posted(closed, "/v1/completions", COMPLETION, headers={**bearer, "Host": other["Host"]})[1])
        origin = {**bearer, "Origin": other["Origin"]}
        advised.hears(posted(closed, f"{RANKINGS}/train", {}, headers=origin)[1])
        answer = closed.client.get(f"{RANKINGS}/next", params={"rater": "ann"}, headers=bearer)
        advised.hears(answer.json()["error"]["message"])
        advised.hears(posted(closed, f"{RANKINGS}/train", {"model": "base"}, headers=bearer)[1])
    words = ["serve", "x", "--allowed-hosts", other["Host"], "--cors-origins", other["Origin"]]
    read = parsed(words)
    (tmp_path / "open").mkdir()
    settings = {"allowed_hosts": read.allowed_hosts, "cors_origins": read.cors_origins}
    with house_of(tmp_path / "open", models["base"], models["talker"], **settings) as told:
        advised.done(posted(told, "/v1/completions", COMPLETION, headers=other)[0] == 200)
        status, said = posted(told, f"{RANKINGS}/train", {"model": "talker"}, headers=other)
        advised.done(status == 409 and "preferences" in said)  # the model would do; there are no rankings yet
        answer = told.client.get(f"{RANKINGS}/next", params={"rater": "ann", "prompt": "Who?"}, headers=other)
        advised.done(answer.status_code == 200 and answer.json()["replies"])


@follows(
    "{} cannot be a model's name (letters, digits, '.', '_', '-'); give NAME={}",
    "two models are called {}; give one another name: NAME={}",
    "{} names no model; give RUN_OR_BUNDLE or NAME=RUN_OR_BUNDLE",
)
def test_names_of_models(advised, tmp_path):
    strange, one, two = (tmp_path / name for name in ("a name", "a/mine", "b/mine"))
    for folder in (strange, one, two):
        folder.mkdir(parents=True)
    advised.raises(lambda: named_paths([str(strange)]))
    advised.done(named_paths([f"mine={strange}"]) == {"mine": strange})
    advised.raises(lambda: named_paths([str(one), str(two)]))
    advised.done(len(named_paths([str(one), f"other={two}"])) == 2)
    advised.raises(lambda: named_paths(["other="]))
    advised.done(named_paths([str(one)]) == {"mine": one})
    advised.done(named_paths([f"other={two}"]) == {"other": two})


@pytest.mark.slow
@follows("there are no prompts ({}); type one, or give --prompts")
def test_prompts_to_rank(house, advised, monkeypatch, tmp_path, models):
    from groundling.errors import DataError
    from groundling.serve.ranking import prompts

    def absent() -> Any:
        raise DataError("no network")

    monkeypatch.setattr(prompts.shakespeare, "shakespeare_dialogues", absent)
    answer = house.client.get(f"{RANKINGS}/next", params={"rater": "ann"})
    advised.hears(answer.json()["error"]["message"])
    answer = house.client.get(f"{RANKINGS}/next", params={"rater": "ann", "prompt": "Who?"})
    advised.done(answer.status_code == 200)
    (tmp_path / "p.jsonl").write_text('{"prompt": "Who goes?"}\n', encoding="utf-8")
    with house_of(tmp_path, models["talker"], prompts=tmp_path / "p.jsonl") as told:
        advised.done(told.client.get(f"{RANKINGS}/next", params={"rater": "ann"}).status_code == 200)


@pytest.mark.slow
@follows("{} heads over {} tokens are more than a page can show; shorten the text")
def test_a_text_too_long_to_look_through(advised, monkeypatch, house):
    from groundling.serve import xray

    monkeypatch.setattr(xray, "MAX_BYTES", 100)
    advised.hears(posted(house, XRAY, {"model": "base", "prompt": "a" * 60})[1])
    advised.done(posted(house, XRAY, {"model": "base", "prompt": "abc"})[0] == 200)


def test_an_api_error_has_one_line():
    assert "\n" not in str(ApiError(400, "x; leave it out", "y"))
