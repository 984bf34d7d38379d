"""What others rely on is what it was: commands, exit codes, files, decoded ids, the HTTP API, public names.

A change that is meant: python -m pytest tests/test_snapshots.py --update-snapshots, and say why in the commit.
"""

import difflib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import snapshotkit
from groundling.align import dpo, sft
from groundling.align.reward import train as reward
from groundling.align.rl import grpo, ppo
from groundling.data.token_file import write_token_file
from groundling.ladder.s4_multi_head import MultiHeadModel
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.generate import generate_batch
from groundling.sample.sampler import SamplingConfig
from groundling.storage import atomic
from groundling.text.bpe import train_bpe
from groundling.text.char import CharTokenizer
from servekit import TALK, events, serving, wait_until
from snapshotkit import folders, shape, shapes

sys.path.insert(0, str(Path(__file__).parent / "align"))

from stagekit import FAST, write_base, write_conversations, write_rankings

SNAPSHOTS = Path(__file__).with_name("snapshots")
UPDATE = "python -m pytest tests/test_snapshots.py --update-snapshots"


@pytest.fixture
def kept(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the file of that name, or writes the file where that was asked for."""

    def compare(name: str, text: str) -> None:
        path, text = SNAPSHOTS / name, text.rstrip("\n") + "\n"
        if request.config.getoption("--update-snapshots"):
            path.write_text(text, encoding="utf-8")
        before = path.read_text("utf-8") if path.exists() else ""
        changes = difflib.unified_diff(
            *(each.splitlines() for each in (before, text)), f"tests/snapshots/{name}", "now", n=1, lineterm=""
        )
        if before != text:
            pytest.fail("\n".join(["it is not what it was:", *changes, f"if that is meant: {UPDATE}"]), pytrace=False)

    return compare


def test_the_command_line(kept: Callable[[str, str], None]) -> None:
    kept("flags.txt", snapshotkit.flags())
    kept("help.txt", snapshotkit.help_texts())


def test_exit_codes(kept: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept("exit_codes.txt", snapshotkit.exit_codes())


def test_public_names(kept: Callable[[str, str], None]) -> None:
    kept("public_api.txt", snapshotkit.public_api())


# Decoding

GPT2 = GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=24, vocab_size=21)
LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rotary", "bias": False}
GPTS = {
    "gpt2": GPT2,
    "the lecture's": GPTConfig(
        n_layer=2, n_head=4, n_embd=32, block_size=24, vocab_size=21, mlp="relu", tie_weights=False
    ),
    "llama": GPTConfig(n_layer=2, n_head=6, n_kv_head=2, n_embd=36, block_size=24, vocab_size=21, **LLAMA),
    "qwen3": GPTConfig(
        n_layer=1, n_head=4, n_kv_head=1, head_size=80, n_embd=32, block_size=24, vocab_size=21, qk_norm=True, **LLAMA
    ),
}
SETTINGS = {
    "greedy": SamplingConfig(max_new_tokens=32, temperature=0),
    "sampled": SamplingConfig(max_new_tokens=32, temperature=0.9, seed=4),
    "filtered": SamplingConfig(
        max_new_tokens=32, temperature=1.2, top_k=9, top_p=0.9, typical_p=0.9, min_p=0.01, repetition_penalty=1.2,
        presence_penalty=0.1, frequency_penalty=0.05, logit_bias={3: -1.0, 4: 0.5}, seed=4,
    ),
}  # fmt: skip
PROMPTS = [[1, 2, 3] * 9, [4]]
NUDGE = 1e-5
"""A hundred times what float32 rounds off: processors and libraries differ by less."""


def filled(model: nn.Module, nudge: float = 0.0) -> nn.Module:
    """The same weights everywhere: NumPy's Philox is the same to the bit on all machines."""
    draw, more = (np.random.Generator(np.random.Philox(key=key)) for key in (3, 4))
    for name, parameter in model.named_parameters():
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        values = is_gain + 0.3 * draw.standard_normal(parameter.shape)
        values *= 1 + nudge * more.standard_normal(parameter.shape)
        parameter.data.copy_(torch.from_numpy(values))
    return model.eval()


def decoded(model: nn.Module, native: Any, how: str) -> list[list[int]]:
    return generate_batch(Engine(model, DecodeConfig(native=native), 2), PROMPTS, SETTINGS[how])


@pytest.mark.parametrize("how", SETTINGS)
def test_decoded_ids(how: str, kept: Callable[[str, str], None]) -> None:
    """By PyTorch and by compiled code the same, and also if all weights were a little different: rounding, which
    depends on the processor, has no say in them.
    """
    if how != "greedy" and not torch.backends.mkl.is_available():
        pytest.skip("PyTorch draws other random numbers where it is built without MKL")
    lines = []
    for name, config in GPTS.items():
        model = filled(GPT(config))
        ids = decoded(model, "off", how)
        assert decoded(model, "on", how) == ids
        assert decoded(filled(GPT(config), NUDGE), "on", how) == ids, f"{name}: rounding could change this"
        lines += [f"{name}: {' '.join(map(str, row))}" for row in ids]
    rung, nudged = (filled(MultiHeadModel(21), nudge) for nudge in (0.0, NUDGE))
    ids = decoded(rung, "off", how)
    assert decoded(nudged, "off", how) == ids
    lines += [f"s4: {' '.join(map(str, row))}" for row in ids]
    kept(f"decoded_{how}.txt", "\n".join(lines))


# Files


def test_a_run_of_pretraining(kept: Callable[[str, str], None], finished_run: Path) -> None:
    kept("run_pretrain.txt", folders([finished_run]))


ROUNDS = ("--reward", "stagekit:reward", "--replies", "8", "--max-new-tokens", "8", "--steps", "2", "--gold", "verse")
STAGES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "sft": (sft, "base", ("--epochs", "1", "--n-replies", "4")),
    "lora": (sft, "base", ("--epochs", "1", "--lora.rank", "2", "--lora.keep", "--n-replies", "0")),
    "reward": (reward, "sft", ("--epochs", "0.5")),
    "dpo": (dpo, "sft", ("--epochs", "0.2")),
    "grpo": (grpo, "sft", (*ROUNDS, "--group", "4")),
    "ppo": (ppo, "sft", ROUNDS),
}


def test_the_stages_of_alignment(kept: Callable[[str, str], None], tmp_path: Path) -> None:
    """Their folders, with a checkpoint: those are removed where a stage has finished, and kept aside here."""
    write_base(tmp_path / "base")
    data = {
        "--data.path": str(write_conversations(tmp_path / "chats.jsonl", n=64)),
        "--rankings": str(write_rankings(tmp_path / "rankings.sqlite", n=100)),
    }

    def keep_checkpoints(operation: str, path: Path) -> None:
        if operation == "replace" and "removed-checkpoints" in path.name:
            shutil.copytree(path.with_name("checkpoints"), path.with_name("kept"))

    for name, (method, source, options) in STAGES.items():
        flag = "--rankings" if method in (reward, dpo) else "--data.path"
        argv = [str(tmp_path / source), flag, data[flag], "--out-dir", str(tmp_path / name), *FAST, *options]
        atomic.observers[:] = [keep_checkpoints]
        try:
            assert method.main([*argv, "--log-every", "1", "--save-every", "1"]) == 0
        finally:
            atomic.observers.clear()
        (tmp_path / name / "kept").rename(tmp_path / name / "checkpoints")
    kept("run_stages.txt", folders(tmp_path / name for name in STAGES))


def test_single_files(kept: Callable[[str, str], None], tmp_path: Path) -> None:
    rankings = write_rankings(tmp_path / "rankings.sqlite", n=3)
    assert snapshotkit.called(["rankings", "export", str(rankings), str(tmp_path / "rankings.jsonl")])[0] == 0
    rows = snapshotkit.lines_of(tmp_path / "rankings.jsonl")
    kept("rankings.txt", "\n".join([snapshotkit.sqlite_schema(rankings), "", "a line of `rankings export`:", *rows]))
    write_token_file(tmp_path / "train.bin", [np.array([0, 1, 258, 64]), np.array([299])], 300)
    kept("token_file.txt", snapshotkit.hex_dump((tmp_path / "train.bin").read_bytes()))
    tokenizers = {"char": CharTokenizer("abc"), "bpe": train_bpe(["the king and the fool " * 20], 270)}
    lines = [f"{name}  {line}" for name, tokenizer in tokenizers.items() for line in shape(tokenizer.to_json())]
    kept("tokenizers.txt", "\n".join(lines))


# The server


def test_the_description_of_the_server(kept: Callable[[str, str], None], tmp_path: Path) -> None:
    from groundling.serve.app import _schema, create_app
    from groundling.serve.config import ServeConfig
    from groundling.serve.state import ServerState
    from groundling.system.logs import EventLog

    server = ServerState(ServeConfig(paths=(str(tmp_path),), safety="off"))
    app = create_app(server, EventLog())
    schema = snapshotkit.without_words(json.loads(json.dumps(_schema(app))))
    schema["info"].pop("version")
    kept("openapi.json", snapshotkit.compact(schema))
    samples = server.metrics.text().decode().splitlines()
    buckets = [line.rsplit(" ", 1)[0] for line in samples if "_bucket" in line]
    kept("metrics.txt", "\n".join([*(line for line in samples if line.startswith("# TYPE")), *buckets]))


OF_A_TOKEN = re.compile(r"(top_logprobs\[\])\.(?!bytes|logprob|token).*: number")
"""Keys that a model chose."""


@pytest.mark.slow
def test_answers_of_the_server(
    kept: Callable[[str, str], None], models: dict[str, Path], finished_run: Path, tmp_path: Path
) -> None:
    """Status, kind and the shape of each answer, of streams that of all their events, and of the log."""
    text, chat = {"model": "base", "prompt": "O"}, {"model": "talker", "messages": [TALK]}
    more = {"max_tokens": 4, "seed": 1, "n": 2}
    streamed = {**more, "stream": True, "stream_options": {"include_usage": True}}
    own = "/v1/groundling"
    asked: list[tuple[str, str, Any]] = [
        *(("GET", path, None) for path in ("/health", "/ready", "/v1/models", "/v1/models/base", "/nowhere")),
        *(("GET", path, None) for path in ("/", "/rank", "/train", "/xray", "/openapi.json", "/static/none.js")),
        ("POST", "/v1/completions", {**text, **more, "logprobs": 2}),
        ("POST", "/v1/completions", {**text, **streamed}),
        ("POST", "/v1/completions", {**text, "temperature": -1}),
        ("POST", "/v1/completions", {**text, "model": "nobody"}),
        ("POST", "/v1/chat/completions", {**chat, **more, "logprobs": True, "top_logprobs": 2}),
        ("POST", "/v1/chat/completions", {**chat, **streamed}),
        ("DELETE", "/v1/models", None),
        ("GET", f"{own}/runs", None),
        ("GET", f"{own}/runs/{finished_run.name}/metrics", None),
        ("GET", f"{own}/runs/{finished_run.name}/ladder", None),
        ("GET", f"{own}/checkpoints?model=base", None),
        ("POST", f"{own}/xray", {**text, "prompt": "To be"}),
        ("GET", f"{own}/rankings", None),
        ("GET", f"{own}/rankings/next?rater=me&prompt=Hello", None),
        ("POST", f"{own}/rankings", {"question": "gone", "choice": "tie", "rater": "me", "key": "12345678"}),
        ("GET", f"{own}/rankings/export", None),
        ("GET", f"{own}/rankings/train", None),
    ]
    options = ("--rankings", tmp_path / "rankings.sqlite", "--runs", finished_run.parent, "--safety", "off")
    parts = []
    with serving(*models.values(), *options) as server:
        for method, path, body in asked:
            status, answer, headers = server.ask(method, path, body)
            kind = headers.get("content-type", "").split(";")[0]
            found = events(answer) if kind == "text/event-stream" else [answer] if kind == "application/json" else []
            lines = shapes(each for each in found if each != "[DONE]") if path != "/openapi.json" else []
            lines = list(dict.fromkeys(OF_A_TOKEN.sub(r"\1.*: number", line) for line in lines))
            stream = " (stream)" if body and body.get("stream") else ""
            parts.append("\n".join([f"{method} {path}{stream}  {status} {kind}", *(f"    {line}" for line in lines)]))
        samples = server.ask("GET", "/metrics")[1].decode().splitlines()
        n_logged = len(asked) - 2  # /health and /ready are not
        wait_until(lambda: sum(line["event"] == "request" for line in server.log()) >= n_logged, timeout_s=20)
        for event in ("listening", "loaded", "ready", "request"):
            lines = shapes(line for line in server.log() if line["event"] == event)
            parts.append("\n".join([f"log {event}", *(f"    {line}" for line in lines)]))
    names = {re.sub(r'="[^"]*"', "", line.rsplit(" ", 1)[0]) for line in samples if not line.startswith("#")}
    kept("http.txt", "\n".join([*parts, *sorted(names)]))
