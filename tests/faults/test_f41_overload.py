"""Row 41: more than can be done is refused at once with 429 and a time to come again, and nobody is lost."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from servekit import serving, wait_until

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_every_request_is_accounted_for(models) -> None:
    body = {"model": "base", "prompt": "a", "max_tokens": 300}
    with serving(models["base"], "--slots", 1, "--max-waiting", 3, "--safety", "off") as server:
        with ThreadPoolExecutor(50) as pool:
            answers = list(
                pool.map(lambda seed: server.ask("POST", "/v1/completions", {**body, "seed": seed}), range(50))
            )
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 4
        for status, answer, headers in answers:
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= 60
                assert answer["error"]["code"] == "queue_full"
                assert answer["error"]["type"] == "rate_limit_error"
            else:
                assert answer["usage"]["completion_tokens"] == 300
        assert server.metric("groundling_tokens_total") == statuses.count(200) * 301

        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=8)
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda seed: client.completions.create(**body, seed=seed), range(8)))
        assert all(answer.usage.completion_tokens == 300 for answer in said), "who comes again is served"


@pytest.mark.slow
def test_clients_take_turns(models, tmp_path) -> None:
    """One client's many texts do not keep another's one waiting until they have all been written."""
    keys = tmp_path / "keys"
    keys.write_text("first-key\nother-key\n")
    words = ("--slots", 1, "--max-waiting", 40, "--api-key-file", keys, "--safety", "off")
    with serving(models["base"], *words) as server, ThreadPoolExecutor(2) as pool:
        as_one, as_other = ({"Authorization": f"Bearer {key}"} for key in ("first-key", "other-key"))
        body = {"model": "base", "prompt": "a", "max_tokens": 3000}
        many = pool.submit(server.ask, "POST", "/v1/completions", {**body, "n": 20}, headers=as_one)
        while b"groundling_active 1.0" not in server.ask("GET", "/metrics", headers=as_one)[1]:
            assert not many.done()
        one = pool.submit(server.ask, "POST", "/v1/completions", {**body, "max_tokens": 5}, headers=as_other)
        assert one.result()[0] == 200
        assert not many.done()
        assert many.result()[0] == 200


def test_prompts_are_not_read_without_a_place(server) -> None:
    """Also what asks for no new token takes its turn."""
    rated = {"model": "base", "prompt": ["a", "Who"] * 10, "echo": True, "logprobs": 1, "max_tokens": 0}
    assert server.ask("POST", "/v1/completions", rated)[0] == 200
    streams = [server.open_stream({"model": "base", "prompt": "a", "max_tokens": 90_000, "n": 8}) for _ in range(9)]
    wait_until(lambda: server.metric("groundling_queue") + server.metric("groundling_active") == 72)
    try:
        status, answer, headers = server.ask("POST", "/v1/completions", rated)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert "retry-after" in headers
    finally:
        for stream in streams:
            stream.close()
    wait_until(lambda: server.metric("groundling_queue") + server.metric("groundling_active") == 0)
