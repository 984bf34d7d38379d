"""The thread that touches the file of rankings: few wait for it, none for long, and all other requests not at all."""

import asyncio
import json
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from groundling.align.preferences.store import Rankings
from groundling.serve.config import ServeConfig
from groundling.serve.http.errors import ApiError
from groundling.serve.ranking import store as serving_store
from groundling.serve.ranking.routes import router
from groundling.serve.ranking.store import MAX_WAITING, MAYBE_DONE, Store
from groundling.serve.state import ServerState
from servekit import TALK, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "align"))
from rankingkit import judgement


def test_the_store_refuses_calls_it_cannot_make_in_time(tmp_path, monkeypatch):
    """Few wait, none for long; what was not begun in time is not done, and what may yet be done is said to be."""
    monkeypatch.setattr(serving_store, "GRACE_S", 0.1)
    began, go_on, done = threading.Event(), threading.Event(), []

    def hold(cache):
        began.set()
        assert go_on.wait(60)

    async def refused(work, **how) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await work(**how)
        assert caught.value.status == 503
        assert caught.value.headers() == {"Retry-After": "5"}
        assert "\n" not in caught.value.message
        return caught.value

    async def use() -> None:
        store, patient = Store(tmp_path / "r.db", timeout_s=0.3), Store(tmp_path / "r.db", timeout_s=60)
        first = asyncio.create_task(refused(lambda: store.call(hold)))
        await asyncio.to_thread(began.wait)
        others = [asyncio.create_task(refused(lambda: store.call(done.append))) for _ in range(MAX_WAITING - 1)]
        await asyncio.sleep(0)
        assert f"{MAX_WAITING} requests are waiting" in (await refused(lambda: store.call(done.append))).message
        assert (await first).code == MAYBE_DONE
        assert {(await other).code for other in others} == {"rankings_busy"}
        go_on.set()
        assert await patient.call(lambda cache: cache.keep(judgement("k"))) == judgement("k")
        assert done == []
        other = sqlite3.connect(tmp_path / "r.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        locked = await refused(lambda: store.call(lambda cache: cache.keep(judgement("l"))))
        assert locked.code == "rankings_unusable"
        assert "another program has been writing to it for 0." in locked.message
        assert await store.call(lambda cache: cache.get("k")) == judgement("k"), "reading goes on"
        other.execute("ROLLBACK")
        other.close()
        assert await store.call(lambda cache: cache.keep(judgement("l")), store.deadline() + 60) == judgement("l")
        assert [each.key async for each in store.judgements()] == ["k", "l"]
        await store.close()
        await patient.close()

    asyncio.run(use())


def test_an_impossible_path_is_not_an_internal_error(tmp_path):
    (tmp_path / "a file").touch()

    async def use() -> None:
        store = Store(tmp_path / "a file" / "r.db")
        for work in (lambda cache: cache.counts(None), lambda cache: cache.keep(judgement("k"))):
            with pytest.raises(ApiError) as caught:
                await store.call(work)
            assert (caught.value.status, caught.value.code) == (503, "rankings_unusable")
        await store.close()

    asyncio.run(use())


def test_a_server_that_drains_waits_for_an_export_that_is_read_slowly(tmp_path):
    """What is read of the file is soon read; the client may take longer."""
    server = ServerState(ServeConfig(paths=("none=none",), rankings=tmp_path / "r.db", runs=tmp_path))
    with Rankings(tmp_path / "r.db") as rankings:
        rankings.add(judgement("k"))
    (export,) = (each.endpoint for each in router(server).routes if each.path.endswith("/export"))
    n_open, sent = [], b""

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        nonlocal sent
        await asyncio.sleep(0.05)
        n_open.append(server.n_open)
        sent += message.get("body", b"")

    async def use() -> None:
        response = await export()
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    asyncio.run(use())
    assert json.loads(sent)["key"] == "k"
    assert (set(n_open), server.n_open) == ({1}, 0)


@pytest.mark.slow
def test_a_locked_file_blocks_no_other_request(models, tmp_path):
    """47 requests wait for the file: texts are written before the first gives up, and each is told to return."""
    url, path = "/v1/groundling/rankings", tmp_path / "r.db"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"Speak, {n}."}) + "\n" for n in range(9)))
    places = ("--rankings", path, "--runs", tmp_path / "runs", "--prompts", tmp_path / "p.jsonl")
    with serving(models["talker"], *places) as server, ThreadPoolExecutor(50) as pool:

        def answer(n: int):
            asked = server.ask("GET", f"{url}/next?rater=ann")[1]
            return {"question": asked["question"], "choice": "tie", "rater": "ann", "key": f"answer-{n}"}

        def ask(method: str, path: str, body=None):
            began = time.monotonic()
            return (*server.ask(method, path, body), time.monotonic() - began)

        answers = [answer(n) for n in range(3)]
        assert server.ask("POST", url, answers[2])[0] == 200
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        writing = [pool.submit(ask, "POST", url, body) for body in answers[:2]]
        time.sleep(0.5)
        reading = [pool.submit(ask, "GET", f"{url}?rater=ann") for _ in range(45)]
        time.sleep(0.5)
        for _ in range(3):
            chat = {"model": "talker", "messages": [TALK], "max_tokens": 2}
            assert server.ask("POST", "/v1/chat/completions", chat)[0] == 200
            assert server.ask("GET", "/health")[0] == 200
        assert not any(each.done() for each in writing)
        for waited in (*writing, *reading):
            status, told, headers, seconds = waited.result()
            assert seconds < 20, "it was told of the lock after five"
            if waited in writing or status != 200:
                assert (status, headers["retry-after"]) == (503, "5")
                assert told["error"]["code"] in ("rankings_busy", "rankings_unusable", MAYBE_DONE)
        assert sum(each.result()[0] == 503 for each in reading) >= 45 - MAX_WAITING
        other.execute("ROLLBACK")
        other.close()
        assert [server.ask("POST", url, body)[0] for body in answers] == [200] * 3
        assert server.ask("GET", url)[1]["judgements"] == 3
        late = answer(3)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        last = pool.submit(ask, "POST", url, late)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        status, told, headers, _ = last.result()
        assert (status, told["error"]["code"], headers["retry-after"]) == (503, "rankings_unusable", "5")
        assert server.process.wait(60) == 0
        other.close()
