"""Row 70: a stage of alignment that was stopped or killed, and resumed, is to the bit the one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from stagekit import FAST, write_base, write_conversations, write_rankings

from groundling.align import dpo, sft
from groundling.align.checkpoint import StageCheckpoints
from groundling.align.preferences import simulate
from groundling.align.preferences.store import Rankings
from groundling.align.reward import train as reward
from groundling.align.rl import grpo, ppo, trainer
from groundling.align.stage import Stage
from groundling.bundle import load_bundle
from groundling.bundle.layout import find_bundle
from groundling.errors import CheckpointError, ConfigError
from groundling.sample.engine import Engine
from groundling.storage import atomic
from groundling.storage.manifest import write_manifest
from groundling.train import loop, run_folder

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


class Unbroken(dict[str, Path]):
    """Stages from their begin to their end, each made when it is asked for."""

    def __init__(self, begun: Path, root: Path) -> None:
        super().__init__()
        self._begun, self._root = begun, root

    def __missing__(self, name: str) -> Path:
        assert STAGES[name][0].main(arguments(self._begun, name, self._root / name)) == 0
        self[name] = self._root / name
        return self[name]


@pytest.fixture(scope="module")
def unbroken(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Each stage, from its begin to its end."""
    return Unbroken(begun, tmp_path_factory.mktemp("unbroken"))


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
    """Call `happen` at the n-th moment: an update, a step of decoding, or an operation on a file."""
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

    for module in (loop, trainer):
        monkeypatch.setattr(module, "train_step", before(module.train_step))
    monkeypatch.setattr(Engine, "step", before(Engine.step))
    atomic.observers[:] = [tick]


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
        atomic.observers.clear()
        stopped += code != 0
    assert stopped == n_times
    assert outcome(run) == outcome(unbroken[name])
    assert summary_of(run) == summary_of(unbroken[name])
    assert not (run / "checkpoints").exists(), "a stage that has finished needs none"


@pytest.mark.parametrize(
    "name", [name if name in ("sft", "ppo") else pytest.param(name, marks=pytest.mark.slow) for name in STAGES]
)
def test_stopped_twice_and_resumed(name, begun, tmp_path, unbroken, monkeypatch):
    def stop():
        signal.raise_signal(signal.SIGTERM)

    check_in_pieces(name, begun, tmp_path, unbroken, monkeypatch, stop, n_times=2, farthest=60)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_killed_ten_times_and_resumed(name, begun, tmp_path, unbroken, monkeypatch):
    check_in_pieces(name, begun, tmp_path, unbroken, monkeypatch, kill, n_times=10, farthest=70)


def stopped_at(name: str, begun: Path, run: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of a stage that was stopped there."""
    argv = arguments(begun, name, run)
    with monkeypatch.context() as patches:
        at_moment(patches, moment, lambda: signal.raise_signal(signal.SIGTERM))
        assert STAGES[name][0].main(argv) == 128 + signal.SIGTERM
    atomic.observers.clear()
    return argv


def test_the_folder_knows_the_command(begun, tmp_path, unbroken, monkeypatch, capsys):
    """What a stopped stage says is enough to go on with it."""
    stopped_at("grpo", begun, tmp_path / "run", 50, monkeypatch)
    said = capsys.readouterr().err
    assert f"resume with: groundling grpo --resume --out-dir {tmp_path / 'run'}" in said
    assert load_bundle(tmp_path / "run").chat is not None, "what it has learned so far"
    assert grpo.main(["--resume", "--out-dir", str(tmp_path / "run")]) == 0
    assert outcome(tmp_path / "run") == outcome(unbroken["grpo"])
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert grpo.main(["--resume", "--out-dir", str(tmp_path / "run")]) == 0
    assert "has finished; nothing to do" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def forget_the_value_model(tensors, state):
    for name in list(tensors):
        if name.startswith("values|weights|"):
            tensors[name].zero_()


def forget_the_value_optimizer(tensors, state):
    for name in list(tensors):
        if name.startswith("values|optimizer|") and name.endswith("exp_avg"):
            tensors[name].zero_()


def forget_the_optimizer(tensors, state):
    for name in list(tensors):
        if name.startswith("policy|optimizer|") and name.endswith("exp_avg_sq"):
            tensors[name].fill_(1.0)


def forget_the_advantages(tensors, state):
    tensors["round|advantages"].zero_()


def forget_what_came(tensors, state):
    tensors["came"].zero_()


def forget_the_price_of_a_nat(tensors, state):
    state["facts"]["kl_coef"] = 9.0


def forget_what_was_seen(tensors, state):
    state["facts"]["seen"] = state["facts"]["seen"][:1]


def forget_nothing(tensors, state):
    pass


FORGET = [
    forget_nothing,
    forget_the_value_model,
    forget_the_value_optimizer,
    forget_the_optimizer,
    forget_the_advantages,
    forget_what_came,
    forget_the_price_of_a_nat,
    forget_what_was_seen,
]


@pytest.fixture(scope="module")
def in_a_round(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PPO, stopped between two updates of its second round."""
    run, updates = tmp_path_factory.mktemp("round") / "run", []
    with pytest.MonkeyPatch.context() as patches:
        train_step = trainer.train_step

        def step(*args, **named):
            stats = train_step(*args, **named)
            updates.append(stats)
            if len(updates) == 12:  # of the policy and of the values, in turns: eight a round
                signal.raise_signal(signal.SIGTERM)
            return stats

        patches.setattr(trainer, "train_step", step)
        assert ppo.main(arguments(begun, "ppo", run)) == 128 + signal.SIGTERM
    (saved,) = StageCheckpoints(run, torch.device("cpu")).finished()
    assert saved.name == "step-00000006"
    return run


def resealed(saved: Path, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """A checkpoint with other content, which its manifest vouches for."""
    facts = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    save_file(tensors, saved / "training.safetensors")
    atomic.write_json(saved / "state.json", state)
    write_manifest(saved, {name: facts[name] for name in ("run_id", "stage", "step")})


def without_last_number(name: str):
    def change(tensors, state):
        tensors[name] = tensors[name][:-1].clone()
        tensors[f"{name}.lengths"][-1] -= 1

    return change


def number_in(name: str, value: float):
    def change(tensors, state):
        tensors[name].view(-1)[0] = value

    return change


def no_round(tensors, state):
    for name in list(tensors):
        if name.startswith("round|"):
            del tensors[name]


def one_reply_less(tensors, state):
    for name in ("prompt", "said", "logprobs", "reference", "advantages"):
        n = int(tensors[f"round|{name}.lengths"][-1])
        tensors[f"round|{name}"] = tensors[f"round|{name}"][:-n].clone()
        tensors[f"round|{name}.lengths"] = tensors[f"round|{name}.lengths"][:-1].clone()
    tensors["round|rewards"] = tensors["round|rewards"][:-1].clone()


def fact(name: str, value: object):
    def change(tensors, state):
        state["facts"][name] = value

    return change


HOSTILE_ROUNDS = (
    *(no_round, one_reply_less, without_last_number("came"), without_last_number("guessed")),
    *(without_last_number(f"round|{name}") for name in ("logprobs", "reference", "advantages", "said")),
    *(number_in("round|prompt", value) for value in (999.0, -1.0, 0.5, float("nan"))),
    *(number_in("round|said", 999.0), number_in("round|said.lengths", 0.0), number_in("came", float("nan"))),
    *(number_in(f"round|{name}", float("inf")) for name in ("rewards", "logprobs", "reference", "advantages")),
    *(fact("seen", [{}]), fact("seen", [{"n": "1"}]), fact("kl_coef", float("nan")), fact("kl_coef", -1.0)),
)


def test_a_foreign_round_is_complete_or_refused(in_a_round, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(in_a_round, run)
    (saved,) = (run / "checkpoints").glob("step-*")
    sound = (saved / "training.safetensors").read_bytes(), (saved / "state.json").read_text(encoding="utf-8")
    for change in HOSTILE_ROUNDS:
        tensors, state = load(sound[0]), json.loads(sound[1])
        change(tensors, state)
        resealed(saved, tensors, state)
        with pytest.raises(CheckpointError, match=f"{saved} does not fit its run"):
            ppo.main(["--resume", "--out-dir", str(run)])
        assert saved.is_dir()


def test_an_invalid_data_position_is_refused(begun, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stopped_at("dpo", begun, run, 40, monkeypatch)
    (saved,) = (run / "checkpoints").glob("step-*")
    sound = load_file(saved / "training.safetensors"), json.loads((saved / "state.json").read_text(encoding="utf-8"))
    step = sound[1]["step"]
    assert step > 0
    for name, value in (
        *(("batches", {"next_sample": n}) for n in (-5, 10**400, 1.5, None)),
        *(("progress", {"step": n, "n_tokens": 1, "train_s": 1.0}) for n in (-(10**9), step + 1)),
        *(("progress", {"step": step, "n_tokens": 1, "train_s": s}) for s in (float("nan"), -1.0)),
    ):
        state = json.loads(json.dumps(sound[1]))
        state["facts"][name] = value
        resealed(saved, sound[0], state)
        with pytest.raises(CheckpointError, match=f"{saved} does not fit its run"):
            dpo.main(["--resume", "--out-dir", str(run)])
    for value in (float("nan"), float("inf")):
        tensors = {name: tensor.clone() for name, tensor in sound[0].items()}
        tensors["reference"][0, 0] = value
        resealed(saved, tensors, sound[1])
        with pytest.raises(CheckpointError, match="has no reference log-probabilities of these 231 pairs"):
            dpo.main(["--resume", "--out-dir", str(run)])


@pytest.mark.parametrize("forget", FORGET)
def test_a_checkpoint_without_one_of_its_parts_would_be_noticed(in_a_round, tmp_path, unbroken, forget):
    """Of a round that was begun: each part of the state matters."""
    run = tmp_path / "run"
    shutil.copytree(in_a_round, run)
    (saved,) = (run / "checkpoints").glob("step-*")
    tensors = load_file(saved / "training.safetensors")
    state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
    forget(tensors, state)
    resealed(saved, tensors, state)
    assert ppo.main(["--resume", "--out-dir", str(run)]) == 0
    assert (outcome(run) == outcome(unbroken["ppo"])) == (forget is forget_nothing)


@pytest.mark.parametrize(
    ("flags", "error", "complaint"),
    [
        (["--minibatches", "1"], CheckpointError, "was started with other settings .minibatches: 2 -> 1"),
        (["--steps", "1"], ConfigError, "steps makes 1 steps, and .* has made 2 already; give more"),
        (["--seed", "7"], CheckpointError, "seed: 1337 -> 7"),
        (["--reward", "stagekit:e_share_of"], CheckpointError, "not those that .* was started with"),
        (["--resume", "--overwrite"], ConfigError, "choose one"),
        ([], ConfigError, "already holds a run; resume it .--resume."),
    ],
)
def test_another_stage_is_not_resumed(in_a_round, begun, tmp_path, flags, error, complaint):
    run = tmp_path / "run"
    shutil.copytree(in_a_round, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    argv = arguments(begun, "ppo", run) if not flags else ["--out-dir", str(run), "--resume", *flags]
    with pytest.raises(error, match=complaint):
        ppo.main(argv)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}, "nothing is lost"


def test_changed_models_and_examples_are_refused(in_a_round, begun, tmp_path, unbroken):
    run = tmp_path / "run"
    shutil.copytree(in_a_round, run)
    write_conversations(tmp_path / "other.jsonl", n=60)
    for flags in (["--data.path", str(tmp_path / "other.jsonl")], [str(unbroken["dpo"])]):
        with pytest.raises(CheckpointError, match=r"not those that .* was started with"):
            ppo.main([*flags, "--resume", "--out-dir", str(run)])
    shutil.copytree(begun / "sft", tmp_path / "moved")
    shutil.copy(begun / "chats.jsonl", tmp_path / "moved.jsonl")
    flags = [str(tmp_path / "moved"), "--data.path", str(tmp_path / "moved.jsonl")]
    assert ppo.main([*flags, "--resume", "--out-dir", str(run)]) == 0
    assert outcome(run) == outcome(unbroken["ppo"])


def test_a_damaged_checkpoint_is_skipped(begun, tmp_path, unbroken, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patches:
        at_moment(patches, 250, kill)
        with pytest.raises(Killed):
            dpo.main([*arguments(begun, "dpo", run), "--save-every", "1"])
    atomic.observers.clear()
    older, newer = StageCheckpoints(run, torch.device("cpu")).finished()
    with (newer / "training.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match=f"{run} is a stage that was interrupted before it saved a model"):
        find_bundle(run)
    assert dpo.main(["--resume", "--out-dir", str(run)]) == 0
    said = capsys.readouterr().err
    assert f"skipped: {newer}" in said
    assert f"resuming from {older}" in said
    assert "scoring" not in said, "what the reference gives the pairs is known"
    assert outcome(run) == outcome(unbroken["dpo"])


def test_without_a_checkpoint_resume_is_refused(begun, tmp_path, in_a_round):
    with pytest.raises(CheckpointError, match="holds no run to resume; start it without --resume"):
        dpo.main(["--resume", "--out-dir", str(tmp_path / "none")])
    run = tmp_path / "run"
    shutil.copytree(in_a_round, run)
    with pytest.raises(CheckpointError, match="holds a run of ppo; resume it with groundling ppo"):
        grpo.main([*arguments(begun, "grpo", run), "--resume"])
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        ppo.main(["--resume", "--out-dir", str(run)])


def summary_of(run: Path) -> dict:
    """How it ended, but for times and places."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {name: value for name, value in summary.items() if name not in ("wall_s", "seconds", "config")}


def test_a_stage_stopped_before_its_first_step_is_resumed(begun, tmp_path, unbroken, monkeypatch):
    """Of some ranks only one may have been asked."""
    run, asked = tmp_path / "run", Stage.asked_to_stop

    def stop(stage):
        stage.stop.can_save = True
        signal.raise_signal(signal.SIGTERM)
        return asked(stage)

    with monkeypatch.context() as patches:
        patches.setattr(Stage, "asked_to_stop", stop)
        assert sft.main(arguments(begun, "sft", run)) == 128 + signal.SIGTERM
    assert sft.main(["--resume", "--out-dir", str(run)]) == 0
    assert outcome(run) == outcome(unbroken["sft"])


@pytest.mark.parametrize(("name", "flags"), [("sft", ()), ("grpo", ()), ("grpo", ("--stop-kl", "1e-6"))])
def test_a_short_stage_that_was_killed_between_its_model_and_its_summary(
    begun, tmp_path, unbroken, monkeypatch, name, flags
):
    """It has fewer steps than lie between two checkpoints."""
    run, main = tmp_path / "run", STAGES[name][0].main
    argv = [*arguments(begun, name, run), *flags]
    with monkeypatch.context() as patches:
        patches.setattr(Stage, "finish", lambda *_: kill())
        with pytest.raises(Killed):
            main(argv)
    before = outcome(run)
    assert main([*argv, "--resume", "if-present"]) == 0
    assert outcome(run) == before
    if not flags:
        assert summary_of(run) == summary_of(unbroken[name])
    else:
        assert summary_of(run)["reason"] == "the KL went beyond 1e-06"


def test_a_signal_after_the_last_step_stops_the_pipeline(begun, tmp_path, unbroken, monkeypatch):
    """The stage itself has finished."""
    run, finish = tmp_path / "run", Stage.finish

    def stopped(*args):
        signal.raise_signal(signal.SIGTERM)
        return finish(*args)

    with monkeypatch.context() as patches:
        patches.setattr(Stage, "finish", stopped)
        assert dpo.main(arguments(begun, "dpo", run)) == 128 + signal.SIGTERM
    assert summary_of(run) == summary_of(unbroken["dpo"])
    assert dpo.main(["--resume", "--out-dir", str(run)]) == 0


def test_one_rank_removes_the_leftovers_of_a_finished_stage(tmp_path, unbroken):
    run = tmp_path / "run"
    shutil.copytree(unbroken["sft"], run)
    (run / "checkpoints/step-00000001").mkdir(parents=True)
    (run / ".tmp-removed-checkpoints-1").mkdir()
    resume = ["--resume", "--out-dir", str(run)]
    with run_folder.locked(run), pytest.raises(CheckpointError, match="is being used by another process"):
        sft.main(resume)
    assert (run / "checkpoints").exists()
    assert sft.main(resume) == 0
    assert not [path for path in run.iterdir() if path.name == "checkpoints" or path.name.startswith(".tmp-")]


def test_a_stage_that_lost_its_model_has_not_finished(begun, tmp_path, unbroken):
    """It was to be made anew, and was killed while it removed the old one."""
    run = tmp_path / "run"
    shutil.copytree(unbroken["sft"], run)

    def observe(operation, path):
        if operation == "unlink" and ".tmp-removed-bundle" in str(path):
            raise Killed

    atomic.observers[:] = [observe]
    try:
        with pytest.raises(Killed):
            sft.main([*arguments(begun, "sft", run), "--overwrite"])
    finally:
        atomic.observers.clear()
    assert not (run / "bundle").exists()
    assert sft.main([*arguments(begun, "sft", run), "--resume", "if-present"]) == 0
    assert outcome(run) == outcome(unbroken["sft"])


def with_tensor(name: str, change):
    def spoil(tensors, state):
        tensors[name] = change(tensors[name])

    return spoil


def with_fact(name: str, value):
    def spoil(tensors, state):
        state["facts"][name] = value

    return spoil


def the_first(ending: str, change):
    def spoil(tensors, state):
        name = min(name for name in tensors if name.endswith(ending))
        tensors[name] = change(tensors[name])

    return spoil


def without(ending: str):
    def spoil(tensors, state):
        del tensors[min(name for name in tensors if name.endswith(ending))]

    return spoil


def of_another_step(tensors, state):
    state["step"] = 2**61


SPOIL = {
    "ppo": [
        with_tensor("round|said", lambda ids: ids + 10**9),
        with_tensor("round|said", lambda ids: ids + 0.5),
        with_tensor("round|prompt.lengths", lambda lengths: lengths - 1),
        with_tensor("round|logprobs", lambda values: values[None]),
        with_tensor("round|advantages", lambda values: values.bool()),
        with_tensor("round|reference.lengths", lambda lengths: lengths.flip(0)),
        with_tensor("round|rewards", lambda values: values[:3]),
        with_tensor("guessed.lengths", lambda lengths: lengths.flip(0)),
        without("came"),
        the_first("exp_avg", lambda values: values.flatten()[:1]),
        the_first("exp_avg_sq", lambda values: values.to(torch.int32)),
        without("|step"),
        with_tensor("generator|0|cpu", lambda values: values[:7]),
        with_fact("seen", [{}]),
        with_fact("figures", []),
        of_another_step,
    ],
    "dpo": [
        with_tensor("reference", lambda values: values.bool()),
        with_fact("n_tokens", -1),
        with_fact("batches", {"next_sample": 10**15}),
        with_fact("batches", {}),
    ],
}


@pytest.mark.parametrize("name", SPOIL)
def test_the_content_of_a_checkpoint_is_validated(in_a_round, begun, tmp_path, monkeypatch, name):
    """One whose manifest fits it, but made by somebody else: an error of one line, and nothing is lost."""
    run = tmp_path / "run"
    if name == "ppo":
        shutil.copytree(in_a_round, run)
    else:
        stopped_at(name, begun, run, 40, monkeypatch)
    (saved,) = (run / "checkpoints").glob("step-*")
    parts = ("training.safetensors", "state.json", "manifest.json")
    before = {part: (saved / part).read_bytes() for part in parts}
    facts = json.loads(before["manifest.json"])
    for spoil in SPOIL[name]:
        tensors, state = load_file(saved / parts[0]), json.loads(before["state.json"])
        spoil(tensors, state)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, saved / parts[0])
        atomic.write_json(saved / "state.json", state)
        write_manifest(saved, {key: facts[key] for key in ("run_id", "stage", "step")})
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            STAGES[name][0].main(["--resume", "--out-dir", str(run)])
        assert "\n" not in str(caught.value)
        for part in parts:
            (saved / part).write_bytes(before[part])
    assert STAGES[name][0].main(["--resume", "--out-dir", str(run)]) == 0


@pytest.mark.slow
def test_two_killed_ranks_are_resumed(begun, tmp_path):
    """With dropout: each has its own random generator."""
    argv = [*arguments(begun, "sft", tmp_path / "run")[:3], *FAST, "--log-every", "1", *STAGES["sft"][2]]
    argv += ["--save-every", "2", "--resume", "if-present", "--n-replies", "0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def run(folder, **more):
        words = [*command, "-m", "groundling", "sft", *argv, "--out-dir", str(folder)]
        return subprocess.run(words, env=here | more, capture_output=True, text=True, timeout=120, check=False)

    assert run(tmp_path / "whole").returncode == 0
    assert run(tmp_path / "run", GROUNDLING_KILL_AT="append@metrics.jsonl#7").returncode != 0
    done = run(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    done = run(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has finished; nothing to do") == 1


def test_lower_rates_are_taken_on_resume(in_a_round, tmp_path, unbroken, capsys):
    """They, the number of rounds and how often something is written may change; and what has changed is said."""
    run = tmp_path / "run"
    shutil.copytree(in_a_round, run)
    argv = ["--resume", "--out-dir", str(run), "--optim.lr", "1e-3", "--steps", "5", "--save-every", "2"]
    assert ppo.main(argv) == 0
    said = capsys.readouterr().err
    (changed,) = [line for line in said.splitlines() if line.startswith("changed ")]
    assert all(each in changed for each in ("steps: 4 -> 5", "save_every: 5 -> 2", "optim.lr: 0.01 -> 0.001"))
    assert len(outcome(run)[1]) == 5
    assert outcome(run)[1][0] == outcome(unbroken["ppo"])[1][0]


def simulation(begun: Path, rankings: Path) -> list[str]:
    argv = [str(begun / "sft"), "--rankings", str(rankings), "--gold", "verse", "--prompts", "90", "--candidates", "3"]
    return [*argv, "--data.path", str(begun / "chats.jsonl"), "--max-new-tokens", "8", "--seed", "3"]


def judgements(file: Path) -> dict[str, tuple]:
    with Rankings(file, must_exist=True) as rankings:
        return {each.key: (each.messages, each.candidates, each.shown, each.choice, each.rater) for each in rankings}


@pytest.mark.parametrize("interruption", [Killed, KeyboardInterrupt])
def test_simulated_rankings_are_committed_as_they_are_made(begun, tmp_path, monkeypatch, capsys, interruption):
    """And made only once: three interruptions, and then all are those of the unbroken command."""
    monkeypatch.setattr(simulate, "COMMIT_S", 0.0 if interruption is Killed else 1e9)
    whole, broken = tmp_path / "whole.sqlite", tmp_path / "broken.sqlite"
    assert simulate.main(simulation(begun, whole)) == 0
    assert not simulate.is_unfinished(whole)

    def interrupt():
        raise interruption

    kept = [0]
    for _ in range(3):
        with monkeypatch.context() as patches:
            step, count = Engine.step, iter(range(12))
            patches.setattr(
                Engine, "step", lambda engine, s=step, c=count: s(engine) if next(c, -1) >= 0 else interrupt()
            )
            atomic.observers.clear()  # only steps of decoding count
            with pytest.raises(interruption):
                simulate.main(simulation(begun, broken))
        assert simulate.is_unfinished(broken)
        kept.append(len(judgements(broken)))
    assert sorted(set(kept)) == kept, "each got further"
    assert judgements(broken).items() < judgements(whole).items()
    capsys.readouterr()
    assert simulate.main(simulation(begun, broken)) == 0
    said = capsys.readouterr().err
    assert f"{kept[-1]} of {len(judgements(whole))} rankings already exist" in said
    assert f"{len(judgements(whole)) - kept[-1]} new rankings" in said
    assert judgements(broken) == judgements(whole)


@pytest.mark.slow
def test_a_killed_process_is_resumed(begun, tmp_path, unbroken):
    """By SIGKILL, at five moments of its own."""
    run, draw = tmp_path / "run", random.Random(5)
    argv = [sys.executable, "-m", "groundling", "ppo", *arguments(begun, "ppo", run), "--save-every", "1"]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    code, kills = None, 0
    while code != 0:
        process = subprocess.Popen([*argv, "--resume", "if-present"], env=here, stderr=subprocess.PIPE)
        n_lines = draw.randint(1, 4) if kills < 5 else 10**9
        assert process.stderr is not None
        for number, _ in enumerate(process.stderr, 1):
            if number == n_lines:
                process.kill()
                kills += 1
        code = process.wait(timeout=120)
        assert code in (0, -signal.SIGKILL)
    assert kills > 2
    assert outcome(run) == outcome(unbroken["ppo"])
