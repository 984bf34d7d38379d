"""Row 62: a stage of alignment that was stopped or killed, and resumed, is to the bit the one that was not."""

import json
import random
import signal
from pathlib import Path

import pytest
from stagekit import FAST, write_base, write_conversations, write_rankings

from groundling import atomicio
from groundling.align import dpo, grpo, learner, ppo, reward, sft
from groundling.sample.engine import Engine
from groundling.train import loop

TIMES = ("train_s", "eta_s", "seconds")
ROUNDS = ("--reward", "stagekit:reward", "--replies", "16", "--max-new-tokens", "8", "--steps", "4", "--gold", "verse")
STAGES = {
    "sft": (sft, "base", ("--epochs", "3", "--dropout", "0.1", "--n-replies", "4")),
    "adapters": (sft, "base", ("--epochs", "3", "--lora.rank", "2", "--lora.keep", "--n-replies", "0")),
    "reward": (reward, "sft", ("--epochs", "1", "--dropout", "0.1")),
    "dpo": (dpo, "sft", ("--epochs", "2")),
    "grpo": (grpo, "sft", (*ROUNDS, "--group", "4", "--passes", "2")),
    "ppo": (ppo, "sft", (*ROUNDS, "--passes", "2", "--kl-control", "adaptive")),
}


class Killed(BaseException):
    """As SIGKILL: nothing is said, and nothing is saved."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages begin with."""
    root = tmp_path_factory.mktemp("begun")
    write_base(root / "base")
    write_conversations(root / "chats.jsonl")
    write_rankings(root / "rankings.sqlite")
    assert sft.main([*arguments(root, "sft", root / "sft"), "--n-replies", "0"]) == 0
    return root


@pytest.fixture(scope="module")
def unbroken(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each stage, from its begin to its end."""
    root = tmp_path_factory.mktemp("unbroken")
    for name in STAGES:
        assert STAGES[name][0].main(arguments(begun, name, root / name)) == 0
    return {name: root / name for name in STAGES}


def arguments(begun: Path, name: str, run: Path) -> list[str]:
    method, source, flags = STAGES[name]
    data = ["--rankings" if method in (reward, dpo) else "--data.path", "rankings.sqlite"]
    if method not in (reward, dpo):
        data[1] = "chats.jsonl"
    data[1] = str(begun / data[1])
    return [str(begun / source), *data, "--out-dir", str(run), *FAST, "--log-every", "1", *flags]


def outcome(run: Path) -> tuple[bytes, list[dict]]:
    """The weights, and the record without times."""
    (weights,) = [
        path for path in (run / "bundle").iterdir() if path.suffix == ".safetensors" and "head" not in path.name
    ]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
    return weights.read_bytes(), records


def at_moment(monkeypatch: pytest.MonkeyPatch, number: int, happen) -> None:
    """Something happens at the so-manieth moment: an update, a step of decoding, or an operation on a file."""
    count = [0]

    def tick(*_):
        count[0] += 1
        if count[0] == number:
            happen()

    def before(function):
        def call(*args, **named):
            tick()
            return function(*args, **named)

        return call

    for module in (loop, learner):
        monkeypatch.setattr(module, "train_step", before(module.train_step))
    monkeypatch.setattr(Engine, "step", before(Engine.step))
    atomicio.observers[:] = [tick]


def kill() -> None:
    raise Killed


def check_in_pieces(name, begun, tmp_path, unbroken, monkeypatch, happen, n_times, farthest) -> None:
    method, run, draw, stopped = STAGES[name][0], tmp_path / "run", random.Random(name), 0
    argv = [*arguments(begun, name, run), "--save-every", "1" if method in (grpo, ppo) else "2"]
    code = None
    while code != 0:
        with monkeypatch.context() as patches:
            if stopped < n_times:
                at_moment(patches, draw.randint(1, farthest), happen)
            try:
                code = method.main([*argv, "--resume", "if-present"])
            except (Killed, SystemExit):
                code = -1
        atomicio.observers.clear()
        stopped += code != 0
    assert stopped == n_times
    assert outcome(run) == outcome(unbroken[name])
    assert not (run / "checkpoints").exists(), "a stage that has finished needs none"


@pytest.mark.parametrize("name", STAGES)
def test_stopped_twice_and_resumed(name, begun, tmp_path, unbroken, monkeypatch):
    def stop():
        signal.raise_signal(signal.SIGTERM)

    check_in_pieces(name, begun, tmp_path, unbroken, monkeypatch, stop, n_times=2, farthest=60)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_killed_ten_times_and_resumed(name, begun, tmp_path, unbroken, monkeypatch):
    check_in_pieces(name, begun, tmp_path, unbroken, monkeypatch, kill, n_times=10, farthest=70)
