"""Tiny models, and servers of them in processes of their own: what the tests of the server share."""

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from groundling.bundle import save_bundle
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.bpe import train_bpe
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens

LETTERS = "".join(sorted("\n !\"&'(),-.0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"))
TALK = {"role": "user", "content": "Who is there?"}


def write_models(folder: Path) -> dict[str, Path]:
    """A model that goes on from a text, one that answers, and one whose tokens are bytes; none knows anything."""
    torch.manual_seed(0)
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64}
    letters = CharTokenizer(LETTERS)
    base = GPT(GPTConfig(**small, vocab_size=len(LETTERS)))
    chat = RoleTokens.after(len(LETTERS))
    talker = GPT(GPTConfig(**small, vocab_size=len(LETTERS) + 4))
    with torch.no_grad():  # an end that hardly ever comes: what it says goes on until it is stopped
        talker.wte.weight[chat.end] -= 3 * talker.ln_f.weight.mean()
    pairs = train_bpe(["the king and the fool did speak of love, 😀 so well " * 20], 300)
    bytes_model = GPT(GPTConfig(**small, vocab_size=pairs.vocab_size))
    paths = {name: folder / name for name in ("base", "talker", "pairs")}
    save_bundle(paths["base"], base, letters)
    save_bundle(paths["talker"], talker, letters, chat=chat)
    save_bundle(paths["pairs"], bytes_model, pairs)
    return paths


class Served:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[str], port: int, lines: "queue.Queue[str]") -> None:
        self.process, self.port, self._lines = process, port, lines
        self.url = f"http://127.0.0.1:{port}"
        self.seen: list[dict[str, Any]] = []

    def log(self) -> list[dict[str, Any]]:
        """All that it has logged by now."""
        while not self._lines.empty():
            line = self._lines.get()
            if line.startswith("{"):
                self.seen.append(json.loads(line))
        return self.seen

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Send a request; return status, body (of JSON where it is), and headers."""
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        kind = {} if data is None else {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, {**kind, **(headers or {})})
            response = connection.getresponse()
            text, found = response.read(), {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()
        is_json = bool(text) and found.get("content-type", "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text, found

    def metric(self, name: str) -> float:
        """A sum over all labels of what /metrics tells."""
        _, text, _ = self.ask("GET", "/metrics")
        lines = [line for line in text.decode().splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def open_stream(self, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
        """Ask for a stream by hand; the socket is the caller's to read, or not."""
        data = json.dumps({"stream": True, **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.sendall(head.encode() + data)
        return sock


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait for something to hold."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.02)


def events(text: bytes) -> list[Any]:
    """The events of a stream, the last of which may be "[DONE]"."""
    found = [line.removeprefix("data: ") for line in text.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in found]


@contextmanager
def serving(*words: object, ready: bool = True, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """`groundling serve WORDS` on a free port, until the block ends; it has to end well then.

    Its address is printed when it answers. Before that (`ready` False) its log tells the port.
    """
    command = [sys.executable, "-m", "groundling", "serve", *map(str, words), "--port", "0"]
    known = {**os.environ, **(environment or {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known)
    assert process.stdout is not None
    assert process.stderr is not None
    lines: queue.Queue[str] = queue.Queue()
    errors = process.stderr
    threading.Thread(target=lambda: [lines.put(line) for line in errors], daemon=True).start()
    try:
        first = process.stdout.readline() if ready else lines.get(timeout=60)
        if not first:
            process.wait(20)
            time.sleep(0.1)
            raise AssertionError("".join(lines.queue))
        port = int(first.split("http://")[1].split("/")[0].rsplit(":", 1)[1]) if ready else json.loads(first)["port"]
        served = Served(process, port, lines)
        if ready:
            assert served.ask("GET", "/ready")[0] == 200, "its address is printed when it answers, and not before"
        yield served
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
