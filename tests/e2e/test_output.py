"""Output that cannot be written: in an encoding that lacks characters, to nobody, or to a full disk; every verb."""

import codecs
import io
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from groundling import cli
from groundling.align.preferences.judgement import SKIP, Candidate, Judgement
from groundling.align.preferences.store import Rankings
from groundling.bundle import save_bundle
from groundling.errors import DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system import output
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens

FULL = Path("/dev/full")
ESCAPED = "groundling: standard output is "
UNWRITTEN = "groundling: error: standard output cannot be written: No space left on device"
WORDS = "ab→Жé\N{GRINNING FACE} \n"
"""No encoding but Unicode's has all of these letters; Latin-1 has é, ASCII neither."""


@dataclass
class Outlet:
    """Where a command writes to."""

    kind: str
    stream: io.TextIOBase | None
    arrived: list[bytes] = field(default_factory=list)

    def data(self) -> bytes:
        return b"".join(self.arrived)


@contextmanager
def outlet(kind: str) -> Iterator[Outlet]:
    """A standard output: an encoding (a pipe that is read), "closed", "gone" (nobody reads the pipe), or "full"."""
    if kind == "closed":
        yield Outlet(kind, None)
        return
    if kind == "full":
        with FULL.open("w", encoding="utf-8") as stream:
            yield Outlet(kind, stream)
        return
    read_end, write_end = os.pipe()
    if kind == "gone":
        os.close(read_end)
        with open(write_end, "w", encoding="utf-8") as stream:  # noqa: PTH123
            yield Outlet(kind, stream)
        return
    made = Outlet(kind, open(write_end, "w", encoding=kind))  # noqa: PTH123, SIM115

    def collect() -> None:
        while piece := os.read(read_end, 1 << 16):
            made.arrived.append(piece)

    reader = threading.Thread(target=collect)
    reader.start()
    try:
        yield made
    finally:
        made.stream.close()
        reader.join()
        os.close(read_end)


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, bytes, str]]:
    """A command with its stdout at such an outlet: its exit code, what arrived, and what stderr said."""

    def run(kind: str, words: list[object], stdin: str = "", locale: str = "utf-8") -> tuple[int, bytes, str]:
        with outlet(kind) as out, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out.stream)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding=locale))
            try:
                code = cli.main([str(word) for word in words])
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            assert sys.stdout is out.stream, "it is put back"
            if out.stream is not None:
                out.stream.flush()  # nothing is left in it that could fail later
        return code, out.data(), capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> dict[str, Path]:
    """A model of letters that few encodings have, one that chats, and files for the other verbs."""
    folder = tmp_path_factory.mktemp("things")
    tokenizer = CharTokenizer.from_text(WORDS)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 32}
    for name, more in (("base", 0), ("talker", 4)):
        torch.manual_seed(3)
        model = GPT(GPTConfig(**sizes, vocab_size=tokenizer.vocab_size + more))
        chat = RoleTokens.after(tokenizer.vocab_size) if more else None
        save_bundle(folder / name, model, tokenizer, chat=chat)
    (folder / "text.txt").write_text("a→b Ж é \N{GRINNING FACE} and so on, for a line\n" * 40, "utf-8")
    (folder / "play.txt").write_text("A:\none Ж. two.\n\nB:\nthree. four.\n\n" * 20, "utf-8")
    talk = [{"role": "user", "content": "a→Ж"}, {"role": "assistant", "content": "é"}]
    (folder / "talk.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    question = {"prompt": "a→Ж", "candidates": [{"text": "é", "model": "→"}, {"text": "b", "model": "Ж"}]}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    labelled = [{"text": f"call 0{n}23 456 7890 Ж", "label": "unsafe" if n % 2 else "ok"} for n in range(20)]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    losses = [{"step": n, "loss": 1 / n, "n_tokens": n, "train_s": n} for n in (1, 2, 3)]
    (folder / "Ж").mkdir()
    (folder / "Ж" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    with Rankings(folder / "rankings.sqlite") as rankings:
        for n in range(4):
            candidates = (Candidate("é", "→ model", 0), Candidate("b", "Ж model", 1))
            choice = ((0,), (1,)) if n % 2 else SKIP
            rankings.add(
                Judgement(
                    key=str(n),
                    messages=(Message("user", f"a{n}"),),
                    candidates=candidates,
                    shown=(0, 1),
                    choice=choice,
                    rater="Ж",
                    time="2026-01-02T03:04:05Z",
                )
            )
    return {path.name: path for path in folder.iterdir()}


SAMPLE = ("--max-new-tokens", 30, "--native", "off", "--temperature", 2, "--device", "cpu")
CASES: dict[str, Callable[[dict[str, Path], Path], list[object]]] = {
    "sample": lambda t, _: ["sample", t["base"], "--prompt", "a→Ж", *SAMPLE, "--num-samples", 2],
    "chat": lambda t, _: ["chat", t["talker"], *SAMPLE],
    "tokenizer show": lambda t, _: ["tokenizer", "show", t["base"], "--text", "a→Ж\n"],
    "tokenizer compare": lambda t, _: ["tokenizer", "compare", "--data.path", t["text.txt"], "--kinds", "char"],
    "data list": lambda _, __: ["data", "list"],
    "data inspect": lambda t, _: ["data", "inspect", "none", t["talk.jsonl"]],
    "rank": lambda t, new: ["rank", new / "r.db", "--candidates", t["questions.jsonl"], "--rater", "Ж"],
    "rankings stats": lambda t, _: ["rankings", "stats", t["rankings.sqlite"]],
    "verify-checkpoint": lambda t, _: ["verify-checkpoint", t["base"]],
    "--help": lambda _, __: ["--help"],
}
SLOW_CASES: dict[str, Callable[[dict[str, Path], Path], list[object]]] = {
    "data dialogues": lambda t, new: ["data", "dialogues", new / "Ж.jsonl", "--data.path", t["play.txt"]],
    "tokenizer train": lambda t, new: ["tokenizer", "train", "--out-dir", new / "Ж", "--data.path", t["text.txt"]],
    "ladder show": lambda _, __: ["ladder", "show", "s2"],
    "plot": lambda t, new: ["plot", t["Ж"], "--out", new / "Ж.png"],
    "export hf": lambda t, new: ["export", "hf", t["base"], new / "Ж"],
    "export bundle": lambda t, new: ["export", "bundle", t["base"], new / "Ж"],
    "rankings export": lambda t, new: ["rankings", "export", t["rankings.sqlite"], new / "Ж.jsonl"],
    "safety test": lambda t, _: ["safety", "test", t["labelled.jsonl"]],
    "doctor": lambda _, __: ["doctor", "--seconds", 0.1, "--device", "cpu"],
    "pretrain": lambda t, new: [
        *("pretrain", "--out-dir", new / "Ж", "--data.path", t["text.txt"], "--steps", 2, "--batch-size", 2),
        *("--model.n-layer", 1, "--model.n-embd", 16, "--model.block-size", 16, "--sample-every", 1),
        *("--runtime.compile", "off", "--eval-every", 2, "--save-every", 2),
    ],
}
STDIN = {"chat": "a→\n/new\nЖ\n", "rank": "?\n1\n"}
SILENT = ("pretrain",)
"""All that these say is for people, and goes to stderr."""
KINDS = ["cp1252", "latin-1", "ascii", "closed", "gone", pytest.param("full", marks=pytest.mark.skipif(
    not FULL.exists(), reason="there is no /dev/full here"))]  # fmt: skip


def check(run, things, new, kind: str, name: str, case) -> None:
    code, arrived, said = run(kind, case(things, new), STDIN.get(name, ""))
    own = [line for line in said.splitlines() if line.startswith("groundling: ")]
    if kind == "full":
        assert code == int(name not in SILENT), said
        assert [line[: len(UNWRITTEN)] for line in own] == [UNWRITTEN] * code
    elif kind in ("closed", "gone"):
        assert (code, own) == (0, [])
    else:
        assert code == 0, said
        assert bool(arrived) == (name not in SILENT)
        is_escaped = b"\\u" in arrived or b"\\U" in arrived
        assert [line.startswith(f"{ESCAPED}{kind}") for line in own] == [True] * is_escaped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_no_verb_breaks(run, things, tmp_path, name, kind):
    check(run, things, tmp_path, kind, name, CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("latin-1", "ascii")])
@pytest.mark.parametrize("name", SLOW_CASES)
def test_no_other_verb_breaks(run, things, tmp_path, name, kind):
    check(run, things, tmp_path, kind, name, SLOW_CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cp1252", KINDS[-1]])
@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_help_breaks(run, things, tmp_path, verb, kind):
    check(run, things, tmp_path, kind, "--help", lambda _, __: [verb, "--help"])


@pytest.mark.parametrize("kind", ["cp1252", "latin-1", "ascii"])
def test_nothing_is_lost_of_what_an_encoding_lacks(run, things, kind):
    """Each letter comes as it is, or as its number; and the advice that is given works."""
    words = CASES["sample"](things, Path())
    code, whole, said = run("utf-8", words)
    assert (code, said) == (0, "")
    code, arrived, said = run(kind, words)
    assert arrived.decode(kind) == whole.decode().encode(kind, "backslashreplace").decode(kind)
    assert arrived.decode(kind) != whole.decode()
    assert said.startswith(f"groundling: standard output is {kind}, which lacks some of these characters")
    assert said.endswith("set PYTHONIOENCODING=utf-8 to get the characters\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("handler", "stays"), [("replace", True), ("surrogatepass", False), ("no-such", False)])
def test_an_error_handler_that_was_asked_for_stays_if_it_never_raises(monkeypatch, things, capsys, handler, stays):
    with outlet("ascii") as out:
        out.stream.reconfigure(errors=handler)
        monkeypatch.setattr(sys, "stdout", out.stream)
        assert cli.main([str(word) for word in CASES["sample"](things, Path())]) == 0
        monkeypatch.undo()
    assert (b"?" in out.data(), b"\\u" not in out.data()) == (stays, stays)
    assert (capsys.readouterr().err == "") == stays


def test_a_file_in_utf_16_begins_with_its_byte_order(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="utf-16") as file:
        monkeypatch.setattr(sys, "stdout", file)
        for _ in range(2):
            assert cli.main(["--version"]) == 0
        monkeypatch.undo()
    data = (tmp_path / "out").read_bytes()
    assert data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16")
    assert text.startswith("groundling ")
    assert "\ufeff" not in text


def test_what_is_piped_in_is_utf_8_in_any_locale(run, things):
    """Also after a byte-order mark, as PowerShell sends it: it is no part of a prompt."""
    for words in (CASES["chat"](things, Path()), ["sample", things["base"], "--prompt", "-", *SAMPLE]):
        assert run("utf-8", words, "\ufeffaé\n", "cp1252") == run("utf-8", words, "aé\n")
        assert run("utf-8", words, "aé\n")[2] == ""


def test_a_path_that_is_no_unicode_is_printed(run, things, tmp_path):
    """Also to UTF-8: a name on the disk can be any bytes."""
    strange = tmp_path / os.fsdecode(b"\xff.jsonl")
    code, arrived, said = run("utf-8", ["rankings", "export", things["rankings.sqlite"], strange])
    assert (code, said) == (0, "")
    assert b"\\udcff.jsonl: 4 judgements" in arrived
    assert strange.exists()


@pytest.mark.parametrize("kind", ["closed", "gone"])
def test_a_check_is_made_to_its_end_for_nobody(run, things, tmp_path, kind):
    """`verify-checkpoint RUN | head -1` must not call a damaged checkpoint good."""
    base = tmp_path / "base"
    base.mkdir()
    for file in things["base"].iterdir():
        (base / file.name).write_bytes(file.read_bytes() + b" " * (file.suffix == ".safetensors"))
    code, _, said = run(kind, ["verify-checkpoint", base])
    assert code == 1
    assert said == "groundling: error: 1 of 1 are damaged; --resume skips them\n"


@pytest.mark.parametrize("kind", ["closed", "gone", "full"])
def test_what_is_a_stream_only_ends_with_it(run, things, kind):
    """So many tokens would take days."""
    code, _, _ = run(kind, ["sample", things["base"], "--prompt", "a", "--max-new-tokens", 10**9, "--native", "off"])
    assert code == (1 if kind == "full" else 0)


def test_answers_are_not_taken_to_what_nobody_was_shown(run, things, tmp_path):
    for kind in ("gone", "full", "closed"):
        run(kind, ["rank", tmp_path / kind, "--candidates", things["questions.jsonl"], "--rater", "ann"], "1\n")
        with Rankings(tmp_path / kind) as rankings:
            assert list(rankings) == []


class Refuses(io.RawIOBase):
    """A raw stream that takes some bytes at a time, or nothing for a while, or fails."""

    def __init__(self, *answers: int | OSError | None) -> None:
        self.answers, self.taken = list(answers), b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int | None:
        answer = self.answers.pop(0) if self.answers else len(data)
        if isinstance(answer, OSError):
            raise answer
        self.taken += bytes(data[: answer or 0])
        return answer


def guarded_write(monkeypatch, raw: io.RawIOBase) -> output.Guard:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8"))
    with output.guarded() as guard:
        print("some words", flush=True)
        print("more")
    return guard


def test_a_pipe_that_takes_little_at_a_time_gets_all(monkeypatch):
    raw = Refuses(1, None, 3, None, None)
    guard = guarded_write(monkeypatch, raw)
    assert raw.taken == b"some words\nmore\n"
    assert guard.settle(0) == 0


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(28, "No space left on device")], ids=str)
def test_a_failure_is_said_once_and_is_the_exit_code(monkeypatch, capsys, error):
    guard = guarded_write(monkeypatch, Refuses(4, error))
    assert (guard.settle(0), guard.settle(2)) == (1, 2)
    assert capsys.readouterr().err == (
        f"groundling: error: standard output cannot be written: {error.strerror}; send it elsewhere\n"
    )


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ConnectionResetError(104, "reset")], ids=str)
def test_a_reader_that_left_is_no_failure(monkeypatch, capsys, error):
    assert guarded_write(monkeypatch, Refuses(error)).settle(0) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["gone", "full", "closed"])
def test_stderr_that_fails_changes_no_exit_code_and_does_not_go_to_stdout(monkeypatch, capsys, things, kind):
    for words, expected in ((["no-such-verb"], 2), (["verify-checkpoint", str(things["base"])], 0)):
        with outlet(kind) as err, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", err.stream)
            assert cli.main(words) == expected
            out = capsys.readouterr().out
            assert "no-such-verb" not in out
            assert out.startswith("good") == (expected == 0)


def test_an_error_of_ours_on_the_way_is_the_exit_code(monkeypatch, run):
    """Not the reader that has left: a lost connection elsewhere is no reason to end with 0."""
    module = type(sys)("test_output_fails")
    monkeypatch.setitem(sys.modules, "test_output_fails", module)
    monkeypatch.setitem(cli.VERBS, "fail", cli.Verb("test_output_fails", ""))

    def main(words):
        print("→")
        raise DataError("it is wrong")

    module.main = main
    code, _, said = run("gone", ["fail"])
    assert (code, said) == (1, "groundling: error: it is wrong\n")

    def lose(words):
        raise BrokenPipeError(32, "Broken pipe")

    module.main = lose
    with pytest.raises(BrokenPipeError):
        run("utf-8", ["fail"])


SHELL = [
    ("{} ladder show s2 >&-", 0, ""),
    ("{} ladder show s2 2>&- >/dev/full", 1, ""),
    ("{} ladder show s2 >/dev/full", 1, UNWRITTEN + "; send it elsewhere\n"),
    ("{} pretrain --help >/dev/full", 1, UNWRITTEN + "; send it elsewhere\n"),
    ("{} no-such-verb <&- >&- 2>&-", 2, ""),
    ("{} chat {talker} <&-", 0, ""),
    ("{} chat {talker} <&- >&- 2>&-", 0, ""),
    ("PYTHONIOENCODING=cp1252 {} tokenizer show {base} 2>/dev/null", 0, ""),
    ("PYTHONUNBUFFERED=1 PYTHONIOENCODING=ascii {} tokenizer show {base} 2>/dev/null", 0, ""),
    ("PYTHONUNBUFFERED=1 {} ladder show s2 >/dev/full", 1, UNWRITTEN + "; send it elsewhere\n"),
    ("LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 {} tokenizer show {base} 2>/dev/null", 0, ""),
    ("{{ {} data list; echo $? >&2; }} | true", 0, "0\n"),
]


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(("line", "code", "said"), SHELL, ids=[line for line, _, _ in SHELL])
def test_in_a_shell(things, line, code, said):
    command = line.format(f"{sys.executable} -m groundling", **things)
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.decode()) == (code, said)


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_server_goes_on_where_its_address_cannot_be_written(things, tmp_path):
    """It is said at once, and is its exit code in the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "groundling", "serve", things["base"], "--port", str(port), "--safety", "off"]
    command += ["--rankings", tmp_path / "r.sqlite", "--runs", tmp_path / "runs"]
    with FULL.open("w") as full, subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = next(line for line in process.stderr if not line.startswith("{"))
            assert said.startswith(UNWRITTEN)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
                assert answer.status == 200
            process.terminate()
            assert "Traceback" not in process.stderr.read()
            assert process.wait(30) == 1
        finally:
            process.kill()


def test_descriptors_that_were_closed_are_taken_by_the_null_device(tmp_path):
    """Else a file that is opened next would be standard error, and what libraries write there would stand in it."""
    code = (
        "import os; from groundling.system.output import claim_descriptors; claim_descriptors();"
        f"f = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY); assert f > 2, f;"
        "os.write(2, b'a warning'); assert os.get_inheritable(2); os.system('echo and another one >&2')"
    )
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-'], check=False, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""
