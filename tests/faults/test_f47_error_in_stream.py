"""Row 47: an error after the first byte is an event of its own and the end; [DONE] comes only when all went well."""

import pytest
from starlette.testclient import TestClient

from groundling.serve.app import create_app
from groundling.serve.config import ServeConfig
from groundling.serve.logs import EventLog
from groundling.serve.registry import State, Theatre
from servekit import events


@pytest.fixture
def failing(models, tmp_path):
    """A server whose model fails at its third step."""
    theatre = Theatre(ServeConfig(paths=(str(models["base"]),), safety="off", rankings=tmp_path / "r.sqlite"))
    log = EventLog((tmp_path / "log").open("w"))
    with TestClient(create_app(theatre, log), base_url="http://localhost", raise_server_exceptions=False) as client:
        while theatre.state is not State.READY:
            assert theatre.failure is None
        engine = theatre.models.get("base").engine
        works, n_steps = engine.step, 0

        def step():
            nonlocal n_steps
            n_steps += 1
            if n_steps == 3:
                raise RuntimeError("secret inside")
            return works()

        engine.step = step
        yield client


BODY = {"model": "base", "prompt": "a", "max_tokens": 10, "seed": 1, "logprobs": 0}


def test_the_stream_ends_with_an_error(failing) -> None:
    answer = failing.post("/v1/completions", json={**BODY, "stream": True})
    assert answer.status_code == 200
    *chunks, last = events(answer.content)
    assert sum(len(chunk["choices"][0]["logprobs"]["tokens"]) for chunk in chunks) == 2
    assert set(last) == {"error"}
    assert last["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    again = events(failing.post("/v1/completions", json={**BODY, "stream": True}).content)
    assert again[-1] == "[DONE]"
    assert all("error" not in event for event in again[:-1])


def test_a_whole_answer_is_an_error(failing) -> None:
    answer = failing.post("/v1/completions", json=BODY)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "model_failed"
    assert failing.post("/v1/completions", json=BODY).status_code == 200


@pytest.mark.parametrize(("changes", "reason"), [({}, "length"), ({"stop": ["\n", "a", "e", "t", " "]}, "stop")])
def test_the_reason_is_right(server, changes, reason) -> None:
    _, text, _ = server.ask("POST", "/v1/completions", {**BODY, "max_tokens": 200, "stream": True, **changes})
    *chunks, last = events(text)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [reason]
    assert last == "[DONE]"
