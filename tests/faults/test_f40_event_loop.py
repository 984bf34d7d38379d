"""Row 40: while models write at full speed, and long texts are turned into ids, the server answers at once."""

import json
import statistics
import time

import pytest

from servekit import Served, wait_until

pytestmark = pytest.mark.slow


def test_health_responds_at_once_under_full_load(server: Served) -> None:
    streams = [server.open_stream({"model": "base", "prompt": "a", "max_tokens": 90_000, "n": 4}) for _ in range(4)]
    try:
        wait_until(lambda: server.metric("groundling_active") == 16)
        server.ask("POST", "/v1/completions", {"model": "pairs", "prompt": "the king " * 50_000})
        waited = []
        for _ in range(50):
            begun = time.perf_counter()
            assert server.ask("GET", "/health")[0] == 200
            waited.append(time.perf_counter() - begun)
        # The median: the slowest few are the machine's, where other processes run (the load test measures those).
        assert statistics.median(waited) < 0.1, json.dumps(waited)
    finally:
        for stream in streams:
            stream.close()
    wait_until(lambda: server.metric("groundling_active") == 0)
