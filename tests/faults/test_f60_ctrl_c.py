"""Row 60: Ctrl-C is heard while a library works, and what takes long says so.

The work would take hours: a process that ends has heard the signal.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from groundling.system.progress import Progress
from groundling.text import trainers
from prockit import children, is_alive


@pytest.fixture(scope="module")
def long_text(tmp_path_factory):
    """Words that nobody has heard of, so that there is no end of pairs to be merged."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    chance = random.Random(0)
    with path.open("w") as file:
        for _ in range(30):
            file.write("".join(chance.choices("abcdefghijklmnopqrstuvwxyz    \n", k=1_000_000)))
    return path


def wait_until(holds, what):
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.02)


def heed_ctrl_c():
    """A shell lets what it starts in the background ignore SIGINT, these tests too, and what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "number", "code", "said"),
    [
        (("tokenizer", "train", "--kind", "bpe"), signal.SIGINT, 130, "groundling: interrupted"),
        (("tokenizer", "train", "--kind", "unigram"), signal.SIGINT, 130, "groundling: interrupted"),
        (("pretrain", "--data.tokenizer.kind", "bpe"), signal.SIGINT, 130, "groundling: interrupted"),
        (("pretrain", "--data.tokenizer.kind", "bpe"), signal.SIGTERM, 143, "stopped as asked before the first step"),
        (("tokenizer", "train", "--kind", "unigram"), signal.SIGKILL, -9, ""),
    ],
)
def test_training_a_tokenizer_ends_when_it_is_told_to(tmp_path, long_text, words, number, code, said):
    prefix = "--" if words[0] == "tokenizer" else "--data.tokenizer."
    flags = [f"{prefix}vocab-size", "300000", f"{prefix}train-chars", "40000000", "--out-dir", str(tmp_path / "out")]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "groundling", *words, "--data.path", str(long_text), *flags],
            env={**os.environ, "GROUNDLING_CACHE": str(tmp_path / "cache")},
            stderr=file,
            stdout=file,
            start_new_session=True,
            preexec_fn=heed_ctrl_c,
        )
    try:
        wait_until(lambda: "training the tokenizer" in log.read_text() or process.poll() is not None, "its training")
        (child,) = children(process.pid)
        process.send_signal(number)
        assert process.wait(timeout=30) == code, log.read_text()
        wait_until(lambda: not is_alive(child), "the end of the child")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert said in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list((tmp_path / "out").glob("tokenizer.json"))


def test_a_trainer_that_dies_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(trainers, "_START", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(trainers.TrainingError, match=r"was ended by signal 9; if memory ran out") as error:
        trainers.train("bpe", ["a b"], 300)
    assert "\n" not in str(error.value)


def test_a_text_that_fails_on_the_way_leaves_no_child(monkeypatch):
    started = []
    popen = subprocess.Popen

    def start(*args, **named):
        started.append(popen(*args, **named))
        return started[-1]

    monkeypatch.setattr(trainers.subprocess, "Popen", start)

    def texts():
        yield "a b"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        trainers.train("bpe", texts(), 300)
    assert [child.poll() for child in started] == [-9]


@pytest.mark.parametrize(("ends", "is_torn_down"), [("raise KeyboardInterrupt", False), ("pass", True)])
def test_an_interrupted_command_does_not_wait_for_the_interpreter_s_end(ends, is_torn_down):
    """Which takes PyTorch and a long text apart, a second or two after the word "interrupted"."""
    script = f"""
import atexit
from groundling import cli
def run(argv):
    print("said")
    {ends}
    return 0
cli._run = run
atexit.register(print, "torn down")
cli.console()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if is_torn_down else 130)
    assert ended.stdout.split("\n")[:-1] == ["said", "torn down"][: 1 + is_torn_down]
    assert ended.stderr == ("" if is_torn_down else "groundling: interrupted\n")


def test_long_work_says_what_it_is_and_how_far(capfd):
    with Progress("reading the text", total=200, first_s=0.001) as progress:
        progress.advance(50)
        said = ""
        while "25%" not in said:  # the thread's first line may be older than the advance
            time.sleep(0.001)
            said += capfd.readouterr().err
    assert "groundling: reading the text: 25%, " in said


def test_short_work_says_nothing(capfd):
    with Progress("reading the text", first_s=1e6):
        pass
    assert capfd.readouterr().err == ""
