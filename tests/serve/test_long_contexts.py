"""A server of a model whose window takes gigabytes: it starts, answers, and takes memory as texts grow."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from housekit import House, house_of

from groundling.bundle import save_bundle
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import slots
from groundling.serve.completions import requests as completion_requests
from groundling.system.memory import Memory, memory_of
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens
from prockit import resident_bytes
from servekit import LETTERS, serving

WINDOW = {"n_layer": 28, "n_head": 16, "n_kv_head": 8, "head_size": 128, "block_size": 40_960, "position": "rotary"}
"""Of Qwen3-0.6B: keys and values of a full window take 9.4 GB in float32. All else is small here."""
TALK = [{"role": "user", "content": "Who is there?"}]


def talker(folder: Path, **sizes: Any) -> Path:
    """A model that answers, and never ends by itself."""
    chat, letters = RoleTokens.after(len(LETTERS)), CharTokenizer(LETTERS)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes, n_embd=32, vocab_size=len(LETTERS) + 4))
    with torch.no_grad():
        model.wte.weight[chat.end] -= 3 * model.ln_f.weight.mean()
    save_bundle(folder, model, letters, chat=chat)
    return folder


@pytest.mark.slow
def test_a_server_of_a_long_window_takes_memory_as_it_is_used(tmp_path: Path) -> None:
    folder = talker(tmp_path / "long", **WINDOW, n_hidden=32)

    with serving(folder, "--safety", "off") as server:
        before = resident_bytes(server.process.pid)
        assert before < 1_500_000_000
        body = {"model": "long", "messages": TALK, "max_tokens": 40, "temperature": 0}
        status, answer, _ = server.ask("POST", "/v1/chat/completions", body)
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == 40
        assert resident_bytes(server.process.pid) - before < 200_000_000, "58 MB are for 256 positions"
        status, answer, _ = server.ask("GET", "/v1/models")
        assert answer["data"][0]["groundling"]["block_size"] == 40_960
    with serving(folder, "--safety", "off", "--context", "2048") as server:
        status, answer, _ = server.ask("GET", "/v1/models")
        assert answer["data"][0]["groundling"]["block_size"] == 2048


@pytest.mark.slow
def test_no_address_is_printed_if_a_model_fails_to_load(tmp_path: Path) -> None:
    folder = talker(tmp_path / "m", n_layer=1, n_head=1, block_size=64)
    command = [sys.executable, "-m", "groundling", "serve", str(folder), "--port", "0", "--context", "65"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("groundling: error: context is 65; that of ")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A server whose machine has memory for the keys and values of 1,000 tokens."""
    monkeypatch.setattr(slots, "UNASKED_BYTES", 0)
    folder = talker(tmp_path / "m", n_layer=1, n_head=1, block_size=4096, position="rotary")
    with house_of(tmp_path, folder, slots=4) as found:
        memory = found.server.memory
        memory._memory = lambda _: Memory(0, 1000 * 2 * 32 * 4 - memory.held())
        yield found


def test_a_request_that_can_never_fit_is_refused_in_one_line(small: House) -> None:
    body = {"model": "m", "prompt": "a", "max_tokens": 1500}
    answer = small.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "insufficient_memory"
    assert "1,500 tokens" in answer.json()["error"]["message"]
    assert small.client.post("/v1/completions", json={**body, "max_tokens": 900}).status_code == 200


def test_a_reply_without_max_tokens_is_limited_by_memory(small: House) -> None:
    never = {str(RoleTokens.after(len(LETTERS)).end): -100}
    body = {"model": "m", "messages": TALK, "logit_bias": never}
    usage = small.client.post("/v1/chat/completions", json=body).json()["usage"]
    assert 975 <= usage["total_tokens"] <= 1000


def test_requests_wait_for_memory_and_all_finish(small: House) -> None:
    body = {"model": "m", "prompt": ["a", "b", "c", "d"], "max_tokens": 600, "temperature": 0}
    answer = small.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2400
    assert small.server.memory.held() <= 1000 * 2 * 32 * 4
    assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["length"] * 4


def test_memory_lost_while_waiting_ends_only_that_request(small: House) -> None:
    memory, before = small.server.memory, small.server.memory._memory
    body = {"model": "m", "prompt": "a", "max_tokens": 600, "temperature": 0}
    known = small.client.post("/v1/completions", json=body).json()["choices"]
    engine = small.server.models.get("m").engine
    new_request = engine.new_request

    def request_then_lose(*words: Any) -> Any:
        request = new_request(*words)
        memory._memory = lambda _: Memory(0, 0)
        return request

    engine.new_request = request_then_lose  # type: ignore[method-assign]
    refused = small.client.post("/v1/completions", json={**body, "max_tokens": 900})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "insufficient_memory")
    engine.new_request = new_request  # type: ignore[method-assign]
    memory._memory = before
    assert small.client.post("/v1/completions", json=body).json()["choices"] == known


def test_the_scores_of_a_long_prompt_are_computed_in_parts(small: House, monkeypatch: pytest.MonkeyPatch) -> None:
    small.server.memory._memory = memory_of
    body = {"model": "m", "prompt": "Who is there? " * 20, "max_tokens": 1, "echo": True, "logprobs": 2, "seed": 1}
    whole = small.client.post("/v1/completions", json=body).json()["choices"]
    monkeypatch.setattr(completion_requests, "SCORED_AT_ONCE", 7)
    parts = small.client.post("/v1/completions", json=body).json()["choices"]
    assert parts[0]["logprobs"]["tokens"] == whole[0]["logprobs"]["tokens"]
    ours, theirs = (each[0]["logprobs"]["token_logprobs"][1:] for each in (parts, whole))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert len(ours) == 280
