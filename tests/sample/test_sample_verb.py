"""`groundling sample`, as a user types it."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from groundling.bundle import load_bundle, save_bundle
from groundling.cli import main
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.cli import SEPARATOR
from groundling.sample.engine import DecodeConfig
from groundling.sample.generate import generate, generate_batch, text_engine
from groundling.sample.sampler import SamplingConfig
from groundling.text.char import CharTokenizer

COMMAND = [sys.executable, "-m", "groundling", "sample"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = CharTokenizer.from_text("ROMEO:\n abcdefé")
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=tokenizer.vocab_size))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    path = tmp_path_factory.mktemp("sample") / "bundle"
    save_bundle(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def bundle(folder):
    return load_bundle(folder)


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, timeout=120)


def test_it_goes_on_from_the_prompt(folder, bundle, capsys):
    flags = "--temperature 1.2 --top-k 5 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.1 --seed 7 --max-new-tokens 40"
    assert main(["sample", str(folder), "--prompt", "ROMEO:", *flags.split(), "--stop", "ab", "é"]) == 0
    expected = SamplingConfig(
        temperature=1.2,
        top_k=5,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        seed=7,
        max_new_tokens=40,
        stop=("ab", "é"),
    )
    shown = capsys.readouterr()
    assert shown.out == f"ROMEO:{generate(bundle, 'ROMEO:', expected)}\n"
    assert shown.err == "", "the figures are for a terminal"


def test_several_samples_are_separated_by_a_line(folder, bundle, capsys):
    assert main(["sample", str(folder), "--prompt", "a", "--num-samples", "3", "--max-new-tokens", "9"]) == 0
    tokenizer = bundle.tokenizer
    samples = generate_batch(text_engine(bundle), [tokenizer.encode("a")] * 3, SamplingConfig(max_new_tokens=9))
    texts = ["a" + tokenizer.decode(ids) for ids in samples]
    assert capsys.readouterr().out == f"\n{SEPARATOR}\n".join(texts) + "\n"


def test_how_it_is_decoded_is_up_to_the_user_and_guessing_says_the_same(folder, monkeypatch, capsys):
    engines = []

    def watched(*args, **kwargs):
        engines.append(text_engine(*args, **kwargs))
        return engines[-1]

    monkeypatch.setattr("groundling.sample.cli.text_engine", watched)
    words = ["sample", str(folder), "--prompt", "ROMEO:", "--max-new-tokens", "60", "--temperature", "1.5"]
    texts = []
    for more in ("", "--speculate 3", f"--speculate 3 --draft {folder}", "--weights int8 --native off"):
        assert main([*words, *more.split()]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert [engine.config.speculate for engine in engines] == [0, 3, 3, 0]
    assert engines[2].counts.right > 40 > engines[1].counts.right
    assert engines[3].config == DecodeConfig(weights="int8", native="off")


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--prompt", "-"]], ids=["piped", "dash"])
def test_a_piped_prompt_is_taken_as_it_is(folder, bundle, words):
    done = run(str(folder), *words, "--max-new-tokens", "5", stdin="abé\n".encode())
    assert done.returncode == 0, done.stderr
    expected = generate(bundle, "abé\n", max_new_tokens=5)
    assert done.stdout.decode() == f"abé\n{expected}\n"


class Unread(io.RawIOBase):
    """A standard input that nobody ever closes: to read it would be to wait for ever."""

    def readable(self) -> bool:
        return True

    def readinto(self, data) -> int:
        raise AssertionError(f"{len(data)} bytes were waited for")


def test_an_empty_prompt_is_a_prompt_and_stdin_is_left_alone(folder, bundle, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Unread()), encoding="utf-8"))
    for words in (["--prompt", ""], ["--prompt="]):
        assert main(["sample", str(folder), *words, "--max-new-tokens", "9"]) == 0
        assert capsys.readouterr().out == f"{generate(bundle, '', max_new_tokens=9)}\n"


def test_without_a_prompt_what_is_piped_in_is_read_and_a_terminal_is_not(folder, bundle, monkeypatch, capsys):
    def say(stdin: io.TextIOBase | None, *words: str) -> str:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["sample", str(folder), *words, "--max-new-tokens", "5"]) == 0
        return capsys.readouterr().out

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    def piped(kind=io.TextIOWrapper) -> io.TextIOBase:
        return kind(io.BytesIO(b"abc"), encoding="utf-8")

    after_abc, after_nothing = (f"{p}{generate(bundle, p, max_new_tokens=5)}\n" for p in ("abc", ""))
    assert say(piped()) == say(piped(), "--prompt", "-") == say(piped(Terminal), "--prompt", "-") == after_abc
    assert say(piped(Terminal)) == say(None) == say(None, "--prompt", "-") == after_nothing


def test_the_word_none_is_a_prompt_like_any_other(folder, capsys):
    assert main(["sample", str(folder), "--prompt", "None"]) == 1
    assert "the character 'N'" in capsys.readouterr().err


@pytest.mark.slow
def test_text_comes_while_it_is_generated_and_a_closed_pipe_ends_it(folder):
    """So many tokens would take hours: what is read was flushed on the way, and the end is that of the pipe."""
    words = [str(folder), "--prompt", "abc", "--max-new-tokens", "1000000000", "--stop", "never"]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(20).startswith(b"abc")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_a_terminal_is_told_the_speed(folder):
    terminal, process_end = pty.openpty()
    try:
        words = [str(folder), "--prompt", "abc", "--max-new-tokens", "12", "--num-samples", "2"]
        done = subprocess.run([*COMMAND, *words], stdout=subprocess.PIPE, stderr=process_end, timeout=120)
        told = os.read(terminal, 1000).decode()
    finally:
        os.close(terminal)
        os.close(process_end)
    assert done.returncode == 0
    assert re.fullmatch(r"24 tokens in \d+\.\d s: [\d,]+ tokens/s\r\n", told)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}/nowhere"], "there is no "),
        (["{folder}/model.safetensors"], "is a file; give the folder"),
        (["{folder}", "--prompt", "abcz"], "'z'"),
        (["{folder}", "--prompt", "a\udcff"], "U+DCFF"),
        (["{folder}", "--prompt", "a", "--temperature", "nan"], "temperature is nan"),
        (["{folder}", "--prompt", "a", "--temperature", "-1"], "temperature is -1"),
        (["{folder}", "--prompt", "a", "--top-p", "0"], "top_p is 0"),
        (["{folder}", "--prompt", "a", "--max-new-tokens", "-5"], "max_new_tokens is -5"),
        (["{folder}", "--prompt", "a", "--num-samples", "0"], "num_samples is 0"),
        (["{folder}", "--prompt", "a", "--top-k", "many"], "many"),
        (["{folder}", "--prompt", "a", "--temprature", "1"], "--temprature"),
        (["{folder}", "--prompt", "a", "--checkpoint", "last"], "no checkpoints to choose 'last' from"),
        (["{folder}", "--prompt", "a", "--device", "tpu"], "tpu"),
        (["{folder}", "--prompt", "a", "--weights", "int4"], "int4"),
        (["{folder}", "--prompt", "a", "--speculate", "-1"], "speculate is -1"),
        (["{folder}", "--prompt", "a", "--draft", "{folder}"], "say how many with --speculate"),
        (["{folder}", "--prompt", "a", "--draft", "{tmp}/nowhere", "--speculate", "2"], "there is no "),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_ends_in_one_clear_line(folder, tmp_path, capfd, words, said):
    words = [word.format(folder=folder, tmp=tmp_path) for word in words]
    assert main(["sample", *words]) != 0
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("groundling: error: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.slow
def test_stdin_that_is_not_utf_8_ends_in_one_clear_line(folder):
    done = run(str(folder), stdin=b"abc\xff")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"groundling: error: the prompt on stdin is not UTF-8: byte 3; convert it first\n"


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    fields = [
        "prompt",
        "num-samples",
        "checkpoint",
        "device",
        "max-new-tokens",
        "temperature",
        "top-k",
        "top-p",
        "min-p",
    ]
    for name in [*fields, "repetition-penalty", "seed", "stop"]:
        assert f"--{name} " in said
    assert "(default: 0.8)" in said


@pytest.mark.slow
def test_the_public_names_need_torch_only_when_they_are_used():
    code = (
        "import sys, groundling as g; assert 'torch' not in sys.modules; assert set(g.__all__) <= set(dir(g));"
        "from groundling import *; assert GPT.__name__ == 'GPT' and 'torch' in sys.modules;"
        "assert callable(generate) and callable(stream) and callable(load_bundle) and Bundle and GPTConfig"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    import groundling

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        groundling.nothing  # noqa: B018
