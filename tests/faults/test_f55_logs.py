"""Row 55: the log holds no prompt, no reply and no key, and no line of it can be forged."""

import json

import pytest

from servekit import TALK, serving

pytestmark = pytest.mark.slow

SECRET, KEY = "my secret is 4711", "a-long-secret-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def ask_all(server) -> str:
    chat = {"model": "talker", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 20, "seed": 1}
    text = server.ask("POST", "/v1/chat/completions", chat, headers=HEADERS)[1]["choices"][0]["message"]["content"]
    for stream in (True, False):
        server.ask("POST", "/v1/completions", {"model": "base", "prompt": SECRET, "stream": stream}, headers=HEADERS)
        server.ask("POST", "/v1/completions", {"model": SECRET, "prompt": SECRET}, headers=HEADERS)
        server.ask("POST", "/v1/completions", {"prompt": SECRET, SECRET: 1, "stream": stream}, headers=HEADERS)
    server.ask("GET", f"/v1/models?key={KEY}", headers=HEADERS)
    server.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}x"})
    server.ask("GET", "/%0d%0a%1b[31mforged", headers=HEADERS)
    return text


def test_nothing_private_is_logged(models) -> None:
    with serving(
        models["talker"], models["base"], "--safety", "off", environment={"GROUNDLING_API_KEY": KEY}
    ) as server:
        said = ask_all(server)
    lines = server.log()
    assert sum(line["event"] == "request" for line in lines) == 10
    text = json.dumps(lines, ensure_ascii=False)
    for private in (SECRET, "4711", KEY, said):
        assert private not in text
    assert "\x1b" not in text
    done = [line for line in lines if line.get("completion_tokens")]
    assert all({"id", "status", "ms", "model", "prompt_tokens"} <= set(line) for line in done)


def test_text_is_logged_with_log_text(models) -> None:
    words = ("--log-text", "--safety", "off")
    with serving(models["talker"], models["base"], *words, environment={"GROUNDLING_API_KEY": KEY}) as server:
        said = ask_all(server)
    lines = [line for line in server.log() if line["event"] == "text"]
    assert lines[0]["replies"] == [said]
    assert SECRET in lines[0]["prompts"][0]
    assert KEY not in json.dumps(server.log())
    assert TALK
