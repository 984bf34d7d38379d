"""Row 56: the same seed and prompt give the same text, alone and in a crowd."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from servekit import Served

pytestmark = pytest.mark.slow


def test_concurrent_clients_do_not_change_a_text(server: Served) -> None:
    prompts = ["the king", "the ki", "fool", "of love", "the king and", "a", "so well", "did"]
    bodies = [
        {
            "model": "pairs",
            "prompt": prompt,
            "seed": seed % 3,
            "max_tokens": 60 + 5 * seed,
            "temperature": 0.5 + seed / 10,
        }
        for seed, prompt in enumerate(prompts)
    ]

    def ask(body: dict) -> tuple:
        answer = server.ask("POST", "/v1/completions", {**body, "logprobs": 3})[1]
        return answer["choices"], answer["usage"]

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(ask, bodies)) == alone
