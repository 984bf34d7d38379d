"""The X-ray's answer is what the model computes, as far as its numbers are told."""

import asyncio
import base64
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from housekit import House, comes_to_hold, house_of

from groundling.bundle import Bundle, load_bundle
from groundling.model.inspect import score_heads, trace_forward
from groundling.serve import checkpoints, xray
from groundling.serve.config import ServeConfig
from groundling.serve.state import ServerState
from servekit import Served, serving

pytestmark = pytest.mark.slow

PATH = "/v1/groundling/xray"


def triangle(packed: str, n: int) -> np.ndarray:
    full = np.zeros((n, n))
    full[np.tril_indices(n)] = np.frombuffer(base64.b64decode(packed), dtype=np.uint8) / 255
    return full


@pytest.mark.parametrize("name", ["base", "pairs"])
def test_the_response_matches_the_model(server: Served, models, name: str) -> None:
    status, answer, _ = server.ask("POST", PATH, {"model": name, "prompt": "the king and"})
    assert status == 200
    bundle = load_bundle(models[name])
    ids = bundle.tokenizer.encode("the king and")
    seen = trace_forward(bundle.model, ids)
    assert answer["tokens"] == ids
    assert "".join(answer["pieces"][str(id)] for id in ids) == "the king and"
    for layer in range(2):
        for head in range(2):
            found = triangle(answer["attention"][layer][head], len(ids))
            assert np.abs(found - seen.attention_LHTS[layer, head].numpy()).max() <= 0.5 / 255 + 1e-6
    logits = np.frombuffer(base64.b64decode(answer["next"]["logits"]), dtype="<f4")
    with torch.no_grad():
        ours = bundle.model(torch.tensor([ids]))[0, -1].numpy()
    assert np.array_equal(logits, ours)
    assert answer["next"]["ids"][0] == int(ours.argmax())
    assert answer["lens"]["ids"][-1][-1][0] == int(ours.argmax())
    probabilities = torch.tensor(ours).softmax(-1)
    assert answer["lens"]["probabilities"][-1][-1][0] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert len(answer["norms"]["stream"]) == 3
    assert len(answer["lens"]["of_what_follows"][0]) == len(ids) - 1
    assert np.shape(answer["scores"]["induction"]) == (2, 2)


def test_a_conversation_is_shown_with_its_structure(server: Served) -> None:
    messages = [{"role": "user", "content": "Who?"}]
    _, answer, _ = server.ask("POST", PATH, {"model": "talker", "messages": messages})
    pieces = [answer["pieces"][str(id)] for id in answer["tokens"]]
    assert pieces == ["<user>", *"Who?", "<end>", "<assistant>"]
    assert answer["structure"] == [True, *[False] * 4, True, True]
    messages.append({"role": "assistant", "content": "I"})
    _, answer, _ = server.ask("POST", PATH, {"model": "talker", "messages": messages})
    assert [answer["pieces"][str(id)] for id in answer["tokens"]] == [*pieces, "I"]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "nobody", "prompt": "a"}, 404, "model_not_found", "model"),
        ({"model": "base"}, 400, "invalid_value", None),
        ({"model": "base", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "invalid_value", None),
        ({"model": "base", "messages": [{"role": "user", "content": "a"}]}, 400, "not_a_chat_model", "messages"),
        ({"model": "base", "prompt": "a" * 65}, 400, "context_length_exceeded", "prompt"),
        ({"model": "base", "prompt": "\u0416"}, 400, "invalid_value", "prompt"),
        ({"model": "base", "prompt": "a", "checkpoint": "100"}, 404, "no_checkpoint", "checkpoint"),
        ({"model": "base", "prompt": "a", "checkpoint": "../.."}, 400, "invalid_value", "checkpoint"),
        ({"model": "base", "prompt": "a", "layers": 3}, 400, "unsupported_field", "layers"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_texts_that_cannot_be_analyzed_are_refused(
    server: Served, body: dict, status: int, code: str, param: str | None
) -> None:
    found, answer, _ = server.ask("POST", PATH, body)
    assert (found, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)


def test_an_empty_text_is_the_beginning_of_a_line(server: Served) -> None:
    _, answer, _ = server.ask("POST", PATH, {"model": "base", "prompt": ""})
    assert [answer["pieces"][str(id)] for id in answer["tokens"]] == ["\n"]


@pytest.mark.slow
def test_the_checkpoints_of_a_run_can_be_analyzed(finished_run, tmp_path) -> None:
    words = ("--safety", "off", "--rankings", tmp_path / "r.sqlite")
    with serving(f"tale={finished_run}", *words) as server:
        _, listed, _ = server.ask("GET", "/v1/groundling/checkpoints?model=tale")
        steps = [entry["checkpoint"] for entry in listed["checkpoints"]]
        assert steps == ["3", "6"]
        assert all(entry["val_loss"] > 0 for entry in listed["checkpoints"])
        answers = {
            step: server.ask("POST", PATH, {"model": "tale", "prompt": "the king", "checkpoint": step})[1]
            for step in [*steps, "last"]
        }
        assert answers["3"]["next"] != answers["6"]["next"]
        assert answers["6"]["next"] == answers["last"]["next"]
        assert server.ask("POST", PATH, {"model": "tale", "prompt": "a", "checkpoint": "4"})[0] == 404
        assert server.ask("GET", "/v1/groundling/checkpoints?model=nobody")[0] == 404


@pytest.mark.slow
def test_a_checkpoint_that_has_changed_is_read_again(finished_run, tmp_path) -> None:
    """A run that is made anew, or goes on, has other weights under the same names."""
    run = tmp_path / "tale"
    shutil.copytree(finished_run, run)
    words = ("--safety", "off", "--rankings", tmp_path / "r.sqlite")

    with serving(run, *words) as server:

        def next_of(checkpoint: str) -> Any:
            body = {"model": "tale", "prompt": "the king", "checkpoint": checkpoint}
            return server.ask("POST", PATH, body)[1]["next"]

        third, sixth = next_of("3"), next_of("last")
        assert third != sixth == next_of("6")
        steps = run / "checkpoints"
        shutil.copytree(steps / "step-00000003", steps / "step-00000009")
        assert next_of("last") == third
        shutil.rmtree(steps / "step-00000006")
        shutil.copytree(steps / "step-00000003", steps / "step-00000006")
        assert next_of("6") == third


def test_the_response_is_built_without_the_model(models) -> None:
    """What comes of it is worked out in another thread, in which a GPU's model has no business."""
    bundle = load_bundle(models["talker"])
    ids = bundle.tokenizer.encode("Who?")
    nobody = replace(bundle, model=None)
    told = json.loads(
        xray._response("talker", None, nobody, ids, trace_forward(bundle.model, ids), score_heads(bundle.model, 60))
    )
    assert told["tokens"] == ids


def test_the_heads_of_a_model_are_scored_once(models, monkeypatch) -> None:
    calls = counted(monkeypatch, xray, "score_heads")
    inspector, bundle = xray._Inspector(), load_bundle(models["base"])
    first, second = inspector.look(bundle, [1, 2]), inspector.look(bundle, [3])
    assert calls.total() == 1
    assert first[1] is second[1] is not None
    inspector.look(load_bundle(models["base"]), [1])
    assert calls.total() == 2


def test_concurrent_requests_load_a_checkpoint_once(finished_run, models, monkeypatch) -> None:
    calls = counted(monkeypatch, checkpoints, "load_bundle")
    server = ServerState(ServeConfig(paths=("x",), device="cpu"))
    served = server.load("tale", finished_run)
    shelf = checkpoints.CheckpointCache()

    async def ask_together() -> list[Bundle]:
        return await asyncio.gather(
            *(shelf.get(served, "3") for _ in range(8)), *(shelf.get(served, "6") for _ in "ab")
        )

    found = asyncio.run(ask_together())
    assert calls.total() == 2
    assert len({id(bundle) for bundle in found}) == 2


def counted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> "Counter[Any]":
    """How often the X-ray has called something."""
    calls: Counter[Any] = Counter()
    function = getattr(module, name)

    def counting(*arguments: Any, **settings: Any) -> Any:
        calls[str(arguments[0])] += 1
        return function(*arguments, **settings)

    monkeypatch.setattr(module, name, counting)
    return calls


@pytest.fixture
def house(models, tmp_path) -> Iterator[House]:
    with house_of(tmp_path, models["base"]) as found:
        yield found


BODY = {"model": "base", "prompt": "the king"}


def test_two_requests_run_at_once_and_few_may_wait(house: House) -> None:

    async def act(go_on: threading.Event) -> None:
        transport = httpx.ASGITransport(house.client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            many = [asyncio.ensure_future(http.post(PATH, json=BODY)) for _ in range(xray.AT_ONCE + xray.MAX_WAITING)]
            await comes_to_hold(lambda: house.server.n_open == len(many) and len(house.server.worker._calls) > 1)
            assert len(house.server.worker._calls) == xray.AT_ONCE
            refused = await http.post(PATH, json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert refused.headers["retry-after"] == "1"
            go_on.set()
            assert {answer.status_code for answer in await asyncio.gather(*many)} == {200}
            assert (await http.post(PATH, json=BODY)).status_code == 200

    house.held(act)


def test_a_disconnected_client_cancels_its_analysis(house: House) -> None:
    """His place is free when what cannot be broken off has ended; if he waited for one, nothing is done at all."""
    server, n_read = house.server, 0

    def reading(*_: object) -> None:
        nonlocal n_read
        n_read += 1

    async def act(go_on: threading.Event) -> None:
        server.models.get("base").bundle.model.register_forward_hook(reading)
        now, n_all = asyncio.Event(), xray.AT_ONCE + 3
        leaving = [asyncio.ensure_future(house.leave(now, "POST", PATH, BODY)) for _ in range(n_all)]
        await comes_to_hold(lambda: server.n_open == n_all and len(server.worker._calls) == xray.AT_ONCE)
        now.set()
        await comes_to_hold(lambda: sum(each.done() for each in leaving) == 3)
        await asyncio.sleep(0.1)
        assert server.n_open == xray.AT_ONCE, "who has a place already, keeps it"
        go_on.set()
        await asyncio.gather(*leaving)

    house.held(act)
    assert server.n_open == 0
    assert n_read == xray.AT_ONCE + 1, "once more, to score the heads"
    assert 'groundling_aborted_total{reason="disconnect"} 5.0' in server.metrics.text().decode()


def test_a_plain_bundle_has_no_checkpoints(server: Served) -> None:
    assert server.ask("GET", "/v1/groundling/checkpoints?model=base")[1]["checkpoints"] == []
