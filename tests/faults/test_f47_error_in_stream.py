"""Row 47: an error after the first byte is an event of its own and the end; [DONE] comes only when all went well."""

import time
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from groundling.serve.app import create_app
from groundling.serve.config import ServeConfig
from groundling.serve.state import ServerState, State
from groundling.system.logs import EventLog
from servekit import events

pytestmark = pytest.mark.slow


@contextmanager
def server_of(models, tmp_path, **how):
    """A server in this process, whose parts can be made to fail, and a client of it."""
    server = ServerState(ServeConfig(paths=(str(models["base"]),), safety="off", rankings=tmp_path / "r.sqlite", **how))
    log = EventLog((tmp_path / "log").open("w"))
    with TestClient(create_app(server, log), base_url="http://localhost", raise_server_exceptions=False) as client:
        while server.state is not State.READY:
            assert server.failure is None
        yield server, client


@contextmanager
def failing_at(step: int, models, tmp_path, slow_s: float = 0.0):
    """A server whose model fails once, at this step."""
    with server_of(models, tmp_path) as (server, client):
        engine = server.models.get("base").engine
        works, n_steps = engine.step, 0

        def fail_once():
            nonlocal n_steps
            n_steps += 1
            time.sleep(slow_s)
            if n_steps == step:
                raise RuntimeError("secret inside")
            return works()

        engine.step = fail_once
        yield client


BODY = {"model": "base", "prompt": "a", "max_tokens": 10, "seed": 1, "logprobs": 0}


@pytest.mark.parametrize("slow_s", [0.0, 0.03], ids=["", "slowly"])
@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_the_stream_ends_with_an_error(models, tmp_path, step: int, slow_s: float) -> None:
    """Whenever it comes: while the next tokens are waited for, or in the pause between two looks at what has come."""
    with failing_at(step, models, tmp_path, slow_s) as client:
        answer = client.post("/v1/completions", json={**BODY, "stream": True})
        assert answer.status_code == 200
        *chunks, last = events(answer.content)
        assert sum(len(chunk["choices"][0]["logprobs"]["tokens"]) for chunk in chunks) == step - 1
        assert set(last) == {"error"}
        assert last["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        again = events(client.post("/v1/completions", json={**BODY, "stream": True}).content)
        assert again[-1] == "[DONE]"
        assert all("error" not in event for event in again[:-1])


@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_a_response_that_is_not_streamed_is_an_error(models, tmp_path, step: int) -> None:
    with failing_at(step, models, tmp_path) as client:
        answer = client.post("/v1/completions", json=BODY)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "model_failed"
        assert client.post("/v1/completions", json=BODY).status_code == 200


@pytest.mark.parametrize("n", [1, 20], ids=["decoding", "some wait"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_past_its_deadline_gets_an_error(models, tmp_path, streamed: bool, n: int) -> None:
    """What was cut off by the clock is not a text that has reached its length."""
    with server_of(models, tmp_path, timeout_s=0.8, max_tokens=100_000) as (server, client):
        body = {**BODY, "max_tokens": 25_000, "n": n, "stream": streamed}
        answer = client.post("/v1/completions", json=body)
        if streamed:
            *chunks, last = events(answer.content)
            assert {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} <= {None}
        else:
            last = answer.json()
            assert answer.status_code == 503
        assert last["error"]["code"] == "deadline_exceeded"
        assert b'aborted_total{reason="deadline"} 1.0' in server.metrics.text()
        assert server.worker.load == (0, 0)
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_a_deadline_before_the_prompt_is_read_gets_an_error(models, tmp_path) -> None:
    with server_of(models, tmp_path, timeout_s=0.5) as (server, client):
        busy = client.portal.start_task_soon(server.worker.call, lambda: time.sleep(1))
        body = {"model": "base", "prompt": ["a", "b"] * 10, "max_tokens": 0, "echo": True, "logprobs": 1}
        answer = client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_exceeded")
        assert b'aborted_total{reason="deadline"} 1.0' in server.metrics.text()
        busy.result()
        assert server.worker.load == (0, 0)
        assert server.n_open == 0
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_a_dead_decoder_leaves_no_client_waiting(models, tmp_path) -> None:
    with server_of(models, tmp_path) as (server, client):

        def fail(*_):
            raise RuntimeError("secret inside")

        server.models.get("base").engine.new_request = fail
        answer = client.post("/v1/completions", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/completions", json=BODY).status_code == 503
        assert isinstance(server.failure, RuntimeError), "by which the process ends"


@pytest.mark.parametrize(("changes", "reason"), [({}, "length"), ({"stop": ["\n", "a", "e", "t", " "]}, "stop")])
def test_the_reason_is_right(server, changes, reason) -> None:
    _, text, _ = server.ask("POST", "/v1/completions", {**BODY, "max_tokens": 200, "stream": True, **changes})
    *chunks, last = events(text)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [reason]
    assert last == "[DONE]"
