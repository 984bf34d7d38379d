"""The X-ray's answer is what the model computes, as far as its numbers are told."""

import base64
import json

import numpy as np
import pytest
import torch

from groundling.bundle import load_bundle
from groundling.sample.attention import look
from servekit import Served, serving

PATH = "/v1/groundling/xray"


def triangle(packed: str, n: int) -> np.ndarray:
    full = np.zeros((n, n))
    full[np.tril_indices(n)] = np.frombuffer(base64.b64decode(packed), dtype=np.uint8) / 255
    return full


@pytest.mark.parametrize("name", ["base", "pairs"])
def test_what_is_told_is_what_the_model_does(server: Served, models, name: str) -> None:
    status, answer, _ = server.ask("POST", PATH, {"model": name, "prompt": "the king and"})
    assert status == 200
    bundle = load_bundle(models[name])
    ids = bundle.tokenizer.encode("the king and")
    seen = look(bundle.model, ids)
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
    ("body", "status", "code"),
    [
        ({"model": "nobody", "prompt": "a"}, 404, "model_not_found"),
        ({"model": "base"}, 400, "invalid_value"),
        ({"model": "base", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "invalid_value"),
        ({"model": "base", "messages": [{"role": "user", "content": "a"}]}, 400, "not_a_chat_model"),
        ({"model": "base", "prompt": "a" * 65}, 400, "context_length_exceeded"),
        ({"model": "base", "prompt": "\u0416"}, 400, "invalid_value"),
        ({"model": "base", "prompt": "a", "checkpoint": "100"}, 404, "no_checkpoint"),
        ({"model": "base", "prompt": "a", "checkpoint": "../.."}, 400, "invalid_value"),
        ({"model": "base", "prompt": "a", "layers": 3}, 400, "unsupported_field"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_what_cannot_be_looked_through_is_refused(server: Served, body: dict, status: int, code: str) -> None:
    found, answer, _ = server.ask("POST", PATH, body)
    assert (found, answer["error"]["code"]) == (status, code)


def test_an_empty_text_stands_for_a_line_s_beginning(server: Served) -> None:
    _, answer, _ = server.ask("POST", PATH, {"model": "base", "prompt": ""})
    assert [answer["pieces"][str(id)] for id in answer["tokens"]] == ["\n"]


def test_the_checkpoints_of_a_run_can_be_looked_through(finished_run, tmp_path) -> None:
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


def test_a_model_that_is_no_run_has_no_checkpoints(server: Served) -> None:
    assert server.ask("GET", "/v1/groundling/checkpoints?model=base")[1]["checkpoints"] == []
