"""The server under load, compared with llama.cpp's server: python benchmarks/serve_load.py

Measures one stream against sixteen, then many clients for a minute. benchmarks/README.md describes the output and the
keys of --json. Clients run in this process and health checks in another; both share the machine with the servers.

Over 300 lines because the measurement and its report are read together.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from decode_speed import SIZES
from train_speed import show_bars

from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.export.gguf import export_gguf
from groundling.model.gpt import GPT
from groundling.system import hardware
from groundling.system.logs import console_logging

log = logging.getLogger("groundling.benchmarks")

STREAMS = 16
PROMPT = "5;ABCDEFGH"
"""Ten of the 65 characters in the vocabulary of the random model."""


@dataclass
class Target:
    """A running server."""

    name: str
    port: int
    pid: int


@dataclass
class Answer:
    """The outcome of a request."""

    status: int
    n_tokens: int
    seconds: float
    whole: bool
    """Whether the response was complete: the last event of a stream, or the whole body."""


async def ask(target: Target, n_tokens: int, seed: int, *, stream: bool) -> Answer:
    """Request one completion of exactly `n_tokens`."""
    body: dict[str, Any] = {"model": "model", "prompt": PROMPT, "max_tokens": n_tokens, "seed": seed, "stream": stream}
    if target.name == "llama.cpp":
        body["ignore_eos"] = True
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}"
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + data)
        pieces = [piece async for piece in _pieces(reader)]
    finally:
        writer.close()
    seconds, text = time.perf_counter() - begun, b"".join(pieces)
    status = int(text[9:12]) if text else 0
    whole = b"[DONE]" in text[-40:] if stream else b'"usage"' in text
    return Answer(status, n_tokens if status == 200 and whole else 0, seconds, whole or status != 200)


async def _pieces(reader: asyncio.StreamReader) -> Any:
    while piece := await reader.read(65536):
        yield piece


async def speed(target: Target, n_streams: int, n_tokens: int, round_: int) -> float:
    """Tokens per second of concurrent streams, in total."""
    begun = time.perf_counter()
    answers = await asyncio.gather(*(ask(target, n_tokens, 100 * round_ + n, stream=True) for n in range(n_streams)))
    assert all(answer.n_tokens == n_tokens for answer in answers), answers
    return n_streams * n_tokens / (time.perf_counter() - begun)


async def load(target: Target, n_clients: int, seconds: float) -> list[Answer]:
    """Run clients that send one request after another, of random lengths; half of them are streamed."""
    until, answers = time.perf_counter() + seconds, list[Answer]()

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.perf_counter() < until:
            answer = await ask(target, draw.randint(10, 200), draw.randrange(2**31), stream=draw.random() < 0.5)
            answers.append(answer)
            if answer.status in (429, 503):
                await asyncio.sleep(draw.uniform(0.5, 1.0))

    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return answers


def probe(port: int, seconds: float, results: Connection) -> None:
    """Time /health ten times a second, in a separate process; send the durations in seconds."""
    waited, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            answer.read()
        waited.append(time.perf_counter() - begun)
        time.sleep(0.1)
    results.send(waited)


def memory_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


async def watch(pid: int, seconds: float) -> list[float]:
    """Sample the resident memory of a process once per second, in MB."""
    found = []
    for _ in range(int(seconds)):
        found.append(memory_mb(pid))
        await asyncio.sleep(1)
    return found


@contextmanager
def running(name: str, argv: list[str], port: int, health: str) -> Iterator[Target]:
    """Start a server, and stop it when the block ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while not _answers(port, health):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise SystemExit(f"{name} did not start: {log.read()[-2000:].decode()}")
                time.sleep(0.2)
            yield Target(name, port, process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def write_model(folder: Path, given: str | None) -> Bundle:
    """The model to serve: `given`, or random weights of size 11M."""
    if given is not None:
        return load_bundle(given)
    size = SIZES["11M"]
    torch.manual_seed(1337)
    model, tokenizer = GPT(size.config(256)), size.tokenizer()
    save_bundle(folder / "bundle", model, tokenizer)
    return Bundle(model.config, model.eval(), tokenizer)


def servers(folder: Path, options: argparse.Namespace, bundle: Bundle) -> Iterator[tuple[str, list[str], int, str]]:
    """Name, command line, port and readiness path of each server."""
    port, path = free_port(), options.bundle or str(folder / "bundle")
    words = ["-m", "groundling", "serve", f"model={path}", "--port", str(port), "--safety", "off"]
    yield "Groundling", [sys.executable, *words, "--rankings", str(folder / "rankings.sqlite")], port, "/ready"
    if options.llama_server:
        export_gguf(bundle, folder / "model.gguf")
        port, each = free_port(), bundle.config.block_size
        sizes = ["-c", str(each * STREAMS), "-np", str(STREAMS), "-t", str(os.cpu_count())]
        words = ["-m", str(folder / "model.gguf"), *sizes, "--port", str(port), "--no-webui"]
        yield "llama.cpp", [options.llama_server, *words], port, "/health"


def measure_speed(targets: list[Target], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Measure the servers in turn, with one stream and with sixteen."""
    found: dict[str, dict[str, list[float]]] = {target.name: {"1": [], str(STREAMS): []} for target in targets}
    for target in targets:
        asyncio.run(speed(target, STREAMS, 20, 99))  # warm-up
    for round_ in range(options.rounds):
        for target in targets if round_ % 2 == 0 else reversed(targets):
            for n_streams in (1, STREAMS):
                log.info(f"round {round_ + 1} of {options.rounds}: {target.name}, {n_streams} streams")
                rate = asyncio.run(speed(target, n_streams, options.new, round_))
                found[target.name][str(n_streams)].append(rate)
    return found


def measure_load(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a server under many clients: throughput, latency, health checks, memory."""
    log.info(f"{options.clients} clients for {options.seconds:g} s")

    async def both() -> tuple[list[Answer], list[float]]:
        return await asyncio.gather(load(target, options.clients, options.seconds), watch(target.pid, options.seconds))

    mine, theirs = multiprocessing.Pipe()
    prober = multiprocessing.Process(target=probe, args=(target.port, options.seconds, theirs))
    prober.start()
    answers, memory = asyncio.run(both())
    waited = sorted(mine.recv())
    prober.join()
    third = max(1, len(memory) // 3)
    seconds = sorted(answer.seconds for answer in answers if answer.status == 200)
    return {
        "requests": len(answers),
        "statuses": dict(Counter(answer.status for answer in answers)),
        "not_whole": sum(not answer.whole for answer in answers),
        "tokens_per_s": sum(answer.n_tokens for answer in answers) / options.seconds,
        "request_s": {"median": statistics.median(seconds), "p99": seconds[int(0.99 * (len(seconds) - 1))]},
        "health_ms": {
            "median": 1000 * statistics.median(waited),
            "p99": 1000 * waited[int(0.99 * (len(waited) - 1))],
            "worst": 1000 * waited[-1],
        },
        "memory_mb": {"first_third": max(memory[:third]), "last_third": max(memory[-third:])},
    }


def conclude(speeds: dict[str, dict[str, list[float]]], loaded: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets, each with its measured value and whether it is met."""
    best = {name: {n: max(rates) for n, rates in each.items()} for name, each in speeds.items()}
    ours, many = best["Groundling"], str(STREAMS)
    bad = sum(n for status, n in loaded["statuses"].items() if status not in (200, 429, 503))
    memory = loaded["memory_mb"]
    grown = memory["last_third"] / memory["first_third"]
    theirs = best.get("llama.cpp")
    times = None if theirs is None else ours[many] / theirs[many]

    def bar(text: str, value: float | None, met: bool | None) -> dict[str, Any]:
        return {"bar": text, "value": value, "met": met}

    ratio = ours[many] / ours["1"]
    return [
        bar("16 streams at least 6 times one", ratio, ratio >= 6),
        bar("16 streams at least level with llama.cpp's server", times, None if times is None else times >= 1),
        bar("only 200, 429 and 503, each response complete", bad + loaded["not_whole"], bad + loaded["not_whole"] == 0),
        bar("p99 of /health under 100 ms", loaded["health_ms"]["p99"], loaded["health_ms"]["p99"] < 100),
        bar("memory flat: its last third at most 1.05 times its first", grown, grown <= 1.05),
    ]


def report(speeds: dict[str, dict[str, list[float]]], loaded: dict[str, Any], clients: int) -> None:
    """Print the measurements."""
    many = str(STREAMS)
    print(f"| server | one stream, tokens/s | {many} streams, tokens/s | ratio |\n|---|---|---|---|")
    for name, each in speeds.items():
        one, all_ = max(each["1"]), max(each[many])
        print(f"| {name} | {one:,.0f} | {all_:,.0f} | {all_ / one:.1f} |")
    print(f"\n{clients} clients: {loaded['requests']:,} requests, by status {loaded['statuses']}, ", end="")
    print(
        f"{loaded['tokens_per_s']:,.0f} tokens/s; half of them within {loaded['request_s']['median']:.1f} s, ", end=""
    )
    print(f"99 % within {loaded['request_s']['p99']:.1f} s.")
    health, memory = loaded["health_ms"], loaded["memory_mb"]
    print(f"/health: median {health['median']:.0f} ms, p99 {health['p99']:.0f} ms, worst {health['worst']:.0f} ms.")
    first, last = memory["first_third"], memory["last_third"]
    print(f"Memory: at most {first:.0f} MB in the first third, {last:.0f} in the last.\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="a trained model; default: random weights of size 11M")
    parser.add_argument("--llama-server", help="also measure this llama-server of llama.cpp")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=200, help="new tokens per stream when measuring speed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from contextlib import ExitStack

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        bundle = write_model(folder, options.bundle)
        targets = [stack.enter_context(running(*each)) for each in servers(folder, options, bundle)]
        speeds = measure_speed(targets, options)
        loaded = measure_load(targets[0], options)
    bars = conclude(speeds, loaded)
    report(speeds, loaded, options.clients)
    show_bars(bars)
    if options.json:
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "environment": hardware.environment()}
        options.json.write_text(json.dumps({**facts, "speeds": speeds, "load": loaded, "bars": bars}, indent=1))
    return 0


if __name__ == "__main__":
    with console_logging():
        sys.exit(main())
