"""The client that everybody has, as it is, against a server of ours."""

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from groundling.bundle import load_bundle
from groundling.sample.engine import DecodeConfig
from groundling.sample.generate import generate
from servekit import LETTERS, TALK, Served, events, serving

pytestmark = pytest.mark.slow

WAYS = [
    {},
    {"temperature": 0},
    {"seed": 5, "n": 3},
    {"stop": ["a"]},
    {"stop": ["th", "he", "x "], "n": 2},
    {"top_p": 0.5, "presence_penalty": 1, "frequency_penalty": 1},
    {"logit_bias": {"40": 5, "41": -100}},
    {"extra_body": {"top_k": 3, "repetition_penalty": 1.3}},
]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0)


def test_models_are_listed_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "talker", "pairs"]
    assert client.models.retrieve("talker").id == "talker"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_streamed_chat_is_the_whole_one(client: openai.OpenAI, way: dict[str, Any]) -> None:
    """Text, reasons, probabilities and counts are the same, in whatever pieces they come."""
    asked = {"model": "talker", "messages": [TALK], "max_tokens": 40, "seed": 1, "logprobs": True, "top_logprobs": 2}
    asked |= way
    whole = client.chat.completions.create(**asked)
    texts, tokens, reasons, usage = {}, {}, {}, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        assert (chunk.model, chunk.object) == ("talker", "chat.completion.chunk")
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            tokens.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
            reasons[choice.index] = choice.finish_reason
    assert whole.usage == usage
    assert len(whole.choices) == way.get("n", 1) == len(texts)
    for choice in whole.choices:
        assert choice.message.content == texts[choice.index]
        assert choice.finish_reason == reasons[choice.index]
        assert choice.logprobs.content == tokens[choice.index]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("echo", [False, True], ids=["", "echo"])
def test_a_streamed_completion_is_the_whole_one(client: openai.OpenAI, way: dict[str, Any], echo: bool) -> None:
    asked = {
        "model": "pairs",
        "prompt": ["the king", "fool "],
        "max_tokens": 30,
        "seed": 1,
        "logprobs": 2,
        "echo": echo,
    }
    asked |= way
    whole = client.completions.create(**asked)
    texts, offsets, reasons = {}, {}, {}
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            offsets.setdefault(choice.index, []).extend(choice.logprobs.text_offset)
            reasons[choice.index] = choice.finish_reason
    assert len(whole.choices) == 2 * way.get("n", 1) == len(texts)
    for choice in whole.choices:
        assert choice.text == texts[choice.index]
        assert choice.logprobs.text_offset == offsets[choice.index]
        assert choice.finish_reason == reasons[choice.index]
        if echo:
            assert choice.text.startswith("the king" if choice.index < len(texts) // 2 else "fool ")
            assert choice.logprobs.token_logprobs[0] is None


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_server_equals_the_library(client: openai.OpenAI, models: dict[str, Path], temperature: float) -> None:
    said = client.completions.create(
        model="base", prompt="Who?", max_tokens=150, seed=9, temperature=temperature, stop=["zz"]
    )
    ours = generate(
        load_bundle(models["base"]),
        "Who?",
        decode=DecodeConfig(native="on"),
        max_new_tokens=150,
        seed=9,
        temperature=temperature,
        stop=("zz",),
    )
    assert said.choices[0].text == ours


def test_seeds_repeat_and_differ(client: openai.OpenAI) -> None:
    def say(**how: Any) -> list[str]:
        answer = client.chat.completions.create(model="talker", messages=[TALK], max_tokens=60, **how)
        return [choice.message.content for choice in answer.choices]

    assert say(seed=3) == say(seed=3)
    assert say(seed=3) != say(seed=4)
    assert say() != say(), "without a seed, each answer is another"
    three = say(seed=3, n=3)
    assert len(set(three)) == 3
    assert three[0] == say(seed=3)[0]


def test_a_stop_string_is_not_part_of_the_text(client: openai.OpenAI) -> None:
    free = client.completions.create(model="base", prompt="a", max_tokens=200, seed=2).choices[0].text
    stop = free[100:103]
    cut = client.completions.create(model="base", prompt="a", max_tokens=200, seed=2, stop=stop).choices[0]
    assert cut.text == free[: free.index(stop)]
    assert cut.finish_reason == "stop"


def test_logprobs_cover_exactly_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="talker", messages=[TALK], max_tokens=100, seed=2, stop=["e"], logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    for entry in choice.logprobs.content:
        likely = [other.logprob for other in entry.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert len(likely) == 3
        assert entry.logprob <= likely[0]
        assert bytes(entry.bytes).decode() == entry.token


def test_prompt_logprobs_can_be_requested_alone(client: openai.OpenAI) -> None:
    """So do harnesses that rate given answers: echo, and no new token."""
    answer = client.completions.create(model="base", prompt="Who is there?", max_tokens=0, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("Who is there?", "length")
    assert choice.logprobs.tokens == list("Who is there?")
    assert choice.logprobs.token_logprobs[0] is None
    assert all(logprob < 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


def test_offsets_are_positions_in_the_text(models: dict[str, Path], tmp_path: Path) -> None:
    """Also of tokens that are a part of a character, and after what was hidden; and the one that came is told of."""
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\nname='the'\nreason='the'\naction='redact'\nwhere=['reply']\npattern='e'\n")
    with serving(models["pairs"], "--safety", rules) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        for seed in range(5):
            how = {"model": "pairs", "prompt": "the \N{GRINNING FACE}", "echo": True, "logprobs": 2}
            choice = client.completions.create(**how, max_tokens=60, seed=seed).choices[0]
            told = choice.logprobs
            assert len(told.tokens) == len(told.text_offset) > 20
            assert "[the]" in choice.text
            for name, offset in zip(told.tokens, told.text_offset, strict=True):
                if not name.startswith("bytes:"):
                    assert name in choice.text[offset : offset + 3 + len(name)]  # up to three lost bytes come with it
            for name, likely in zip(told.tokens[1:], told.top_logprobs[1:], strict=True):
                assert name in likely
                assert len(likely) in (2, 3)


def test_ids_are_a_prompt_too(client: openai.OpenAI) -> None:
    how = {"model": "base", "max_tokens": 20, "seed": 1}
    ids = [LETTERS.index(letter) for letter in "Who"]
    assert client.completions.create(prompt=ids, **how).choices[0].text == (
        client.completions.create(prompt="Who", **how).choices[0].text
    )
    both = client.completions.create(prompt=[ids, ids[:2]], **how)
    assert both.choices[0].text != both.choices[1].text
    assert both.usage.prompt_tokens == 5


def test_a_bias_forbids_or_decides(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="base", prompt="a", max_tokens=20, logit_bias={str(LETTERS.index("q")): 100}, temperature=0
    )
    assert answer.choices[0].text == "q" * 20


@pytest.mark.parametrize(
    ("kind", "field", "changes"),
    [
        (openai.NotFoundError, "model", {"model": "../base"}),
        (openai.BadRequestError, "tools", {"tools": [{"type": "function"}]}),
        (openai.BadRequestError, "response_format.type", {"response_format": {"type": "json_object"}}),
        (openai.BadRequestError, "frequency_penalty", {"frequency_penalty": 3}),
        (openai.BadRequestError, "max_tokens", {"max_tokens": 200_000}),
        (openai.BadRequestError, "max_completion_tokens", {"max_completion_tokens": 200_000}),
        (openai.BadRequestError, "logit_bias", {"logit_bias": {"a": 1}}),
        (openai.BadRequestError, "logit_bias", {"logit_bias": {"99": 1}}),
        (openai.BadRequestError, "stop.1", {"stop": ["x", ""]}),
        (openai.BadRequestError, "messages.0.role", {"messages": [{"role": "assistant", "content": "I"}]}),
        (openai.BadRequestError, "messages.1.role", {"messages": [TALK, TALK]}),
        (openai.BadRequestError, "messages.1", {"messages": [{"role": "system", "content": "I"}]}),
        (openai.BadRequestError, "messages.1.role", {"messages": [TALK, {"role": "assistant", "content": "I"}]}),
        (openai.BadRequestError, "messages.1.content", {"messages": [TALK, {"role": "assistant", "content": None}]}),
        (openai.BadRequestError, "messages.0.content", {"messages": [{"role": "user", "content": "Ж"}]}),
        (openai.BadRequestError, "messages.0.content.0.type", {"messages": [{"role": "user", "content": [IMAGE]}]}),
        (openai.BadRequestError, "messages", {"messages": [{"role": "user", "content": "a" * 65}]}),
        (openai.BadRequestError, "dance", {"extra_body": {"dance": True}}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_invalid_values_are_refused_by_name(
    client: openai.OpenAI, kind: type[openai.APIStatusError], field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "talker", "messages": [TALK], "max_tokens": 5, **changes})
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("param", "prompt", "words"),
    [
        ("prompt", [], "prompt is an empty array; it must be a string, an array of strings,"),
        ("prompt.1", [1, -1], "prompt.1 is -1; it must be an integer from 0 to"),
        ("prompt.1", [1, 70_000], "prompt.1 is 70000; the model's tokens are 0 to"),
        ("prompt.1.0", [[1], [70_000]], "prompt.1.0 is 70000; the model's tokens are 0 to"),
        ("prompt.1", ["a", "Ж"], "prompt.1: the character 'Ж'"),
        ("prompt.1", ["a", "a" * 65], "prompt.1 has 65 tokens, and base reads 64 at most"),
        ("prompt", "Ж", "prompt: the character 'Ж'"),
        ("prompt", "a" * 65, "the prompt has 65 tokens, and base reads 64 at most"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_invalid_prompt_is_named_by_position(client: openai.OpenAI, param: str, prompt: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt=prompt, max_tokens=2)
    assert caught.value.param == param
    assert caught.value.body["message"].startswith(words)


def test_a_client_that_compresses_requests_is_served(server: Served, client: openai.OpenAI) -> None:
    """As many gateways and SDKs do, with bodies beyond some size."""
    asked = {"model": "base", "prompt": "Who?", "max_tokens": 9, "seed": 4}
    data = gzip.compress(json.dumps(asked).encode())
    status, answer, _ = server.ask("POST", "/v1/completions", raw=data, headers={"Content-Encoding": "gzip"})
    assert status == 200
    assert answer["choices"][0]["text"] == client.completions.create(**asked).choices[0].text


def _by_hand(server: Served, request: str) -> tuple[str, bytes]:
    """The first line of an answer, and its body up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(request.replace("\n", "\r\n").encode())
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode().splitlines()[0], body


def test_http_1_0_without_a_host_is_answered(server: Served) -> None:
    """So ask the probes of load balancers; the connection ends with the answer, also a stream's."""
    for path in ("/health", "/ready"):
        for method in ("GET", "HEAD"):
            status, body = _by_hand(server, f"{method} {path} HTTP/1.0\n\n")
            assert status.split()[1] == "200"
            assert (body == b"") == (method == "HEAD")
    assert _by_hand(server, "GET /health HTTP/1.1\nConnection: close\n\n")[0].split()[1] == "400", "there it is needed"
    for stream in (False, True):
        asked = json.dumps({"model": "base", "prompt": "a", "max_tokens": 5, "stream": stream})
        head = f"POST /v1/completions HTTP/1.0\nContent-Type: application/json\nContent-Length: {len(asked)}\n\n"
        status, body = _by_hand(server, head + asked)
        assert status.split()[1] == "200"
        assert events(body)[-1] == "[DONE]" if stream else json.loads(body)["usage"]["completion_tokens"] == 5


def test_a_base_model_refuses_chat_requests(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is a base model, not a chat model"):
        client.chat.completions.create(model="base", messages=[TALK])
