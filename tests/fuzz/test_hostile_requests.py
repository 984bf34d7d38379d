"""Whatever a client sends, it gets an answer of the API's shape or a close, and the server is as it was before.

Seeds follow one another, and a failure names its own. `make fuzz SECONDS=600 SEED=1` goes on for as long as wanted.
"""

import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from httpfuzz import BODIES, KEY, QUERIES, Attack, json_attack, raw_attack

from groundling.serve.http.middleware import SECURITY
from prockit import n_sockets, resident_bytes
from servekit import Served, serving

pytestmark = pytest.mark.slow

FIRST_SEED = int(os.environ.get("GROUNDLING_FUZZ_SEED", "1"))
SECONDS = float(os.environ.get("GROUNDLING_FUZZ_S", "0"))
N_SEEDS = {"raw": 1000, "json": 500}
"""Where no time is given."""
N_WARM = 150
"""Requests after which memory is measured first: by then, all is loaded that is loaded on demand."""
MAX_GROWN = 50e6
MAX_WAIT_S = 30.0
"""For an answer, after all was sent: texts are short."""
LEVELS = {"raw": raw_attack, "json": json_attack}
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


class Answer(NamedTuple):
    """One of those that came."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def attacked(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "keys").write_text(KEY, encoding="utf-8")
    words = ("--api-key-file", folder / "keys", "--rankings", folder / "r.sqlite", "--runs", folder / "runs")
    with serving(*models.values(), *words, "--max-tokens", 64, "--timeout-s", 20) as served:
        yield served


def send(attack: Attack, port: int) -> bytes | None:
    """What came back until the server closed the connection; None: its client did not stay to see it."""
    with socket.create_connection(("127.0.0.1", port), timeout=MAX_WAIT_S) as sock:
        told = b""
        try:
            for piece in attack.pieces:
                sock.sendall(piece)
            if not attack.stays:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", len(attack.pieces) % 2, 0))
                return None
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(1 << 20):
                told += piece
        except TimeoutError:
            raise
        except OSError:  # a close, which may come before all was sent
            pass
        return told


def read_answers(told: bytes) -> Iterator[Answer]:
    """Cut what came into answers.

    What a HEAD was answered has a length and no body: the next answer, or nothing, follows at once.
    """
    while told:
        head, found, told = told.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        assert found, f"half an answer: {head[:300]!r}"
        assert re.fullmatch(r"HTTP/1\.1 [1-5][0-9][0-9] [A-Za-z -]+", first), first
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status, body = int(first[9:12]), b""
        if status == 100:
            continue
        if headers.get("transfer-encoding") == "chunked":
            while told and not told.startswith(b"HTTP/1.1 "):
                size, _, told = told.partition(b"\r\n")
                body, told = body + told[: int(size, 16)], told[int(size, 16) + 2 :]
                if int(size, 16) == 0:
                    break
        elif "content-length" in headers and told and not told.startswith(b"HTTP/1.1 "):
            n_bytes = int(headers["content-length"])
            body, told = told[:n_bytes], told[n_bytes:]
            assert len(body) == n_bytes
        elif "content-length" not in headers and status not in (204, 304):  # HTTP/1.0: to the end
            body, told = told, b""
        yield Answer(status, headers, body)


def check(answer: Answer) -> None:
    """The law of one answer."""
    is_coding = answer.status == 501 and b"Only Transfer-Encoding: chunked is supported" in answer.body
    assert answer.status < 500 or answer.status == 503 or is_coding, f"{answer.status}: {answer.body[:300]!r}"
    missing = [name for name, value in SECURITY.items() if answer.headers.get(name.lower()) != value]
    assert not missing, f"{answer.status} has no {missing}"
    if answer.status >= 400 and answer.body:
        error = json.loads(answer.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(error["message"]) < 1500
        assert "Traceback" not in error["message"]


def comes_to_rest(server: Served, n_before: int) -> None:
    """No connection is left, nothing is written or waits, and nothing was a bug."""
    until = time.monotonic() + MAX_WAIT_S
    while n_sockets(server.process.pid) > n_before:
        assert time.monotonic() < until, f"{n_sockets(server.process.pid) - n_before} connections are left"
        time.sleep(0.05)
    _, text, _ = server.ask("GET", "/metrics", headers=AUTHORIZED)
    assert re.search(rb"^groundling_active(\{[^}]*\})? 0\.0$", text, re.MULTILINE)
    assert re.search(rb"^groundling_queue(\{[^}]*\})? 0\.0$", text, re.MULTILINE)
    bugs = [line for line in server.log() if line["level"] not in ("info", "warning")]
    assert not bugs, str(bugs[0])[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_request_is_answered_or_refused_and_nothing_is_left(attacked: Served, level: str) -> None:
    assert attacked.ask("GET", "/ready")[0] == 200
    time.sleep(0.3)  # until the connection of this is closed
    n_before, grown_from = n_sockets(attacked.process.pid), 0.0
    until, seed, statuses = time.monotonic() + SECONDS / len(LEVELS), FIRST_SEED, set[int]()
    while time.monotonic() < until if SECONDS else seed < FIRST_SEED + N_SEEDS[level]:
        attack = LEVELS[level](seed)
        try:
            told = send(attack, attacked.port)
            for answer in read_answers(told or b""):
                check(answer)
                statuses.add(answer.status)
            if seed % 50 == 0:
                assert attacked.ask("GET", "/health")[0] == 200
        except BaseException as error:
            error.add_note(f"level {level}, seed {seed} (again: make fuzz SECONDS=1 SEED={seed}); {attack}")
            raise
        seed += 1
        if seed == FIRST_SEED + N_WARM:
            grown_from = resident_bytes(attacked.process.pid)
    comes_to_rest(attacked, n_before)
    assert attacked.ask("GET", "/health")[0] == 200
    grown = resident_bytes(attacked.process.pid) - grown_from if grown_from else 0.0
    assert grown < MAX_GROWN, f"{grown:,.0f} bytes"
    assert SECONDS or {200, 400, 401 if level == "raw" else 404} <= statuses


@pytest.mark.slow
def test_every_route_is_attacked(attacked: Served) -> None:
    paths = attacked.ask("GET", "/openapi.json", headers=AUTHORIZED)[1]["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert routes == BODIES.keys() | QUERIES.keys()
