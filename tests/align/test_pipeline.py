"""The steps of `groundling chatgpt`: their settings, printed commands and dependencies."""

import json
import shlex
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from groundling.align.pipeline import chatgpt as pipeline
from groundling.align.pipeline.command_line import changed_fields, to_argv
from groundling.align.pipeline.recipe import ChatgptConfig, steps
from groundling.align.rl.ppo import PpoConfig
from groundling.align.sft import SftConfig
from groundling.config import from_dict, parse, to_toml
from groundling.errors import ConfigError
from groundling.train.optim.optimizers import OptimConfig

STORED = Path(__file__).with_name("chatgpt_commands.txt").read_text("utf-8").splitlines()
"""Commands that `groundling chatgpt` printed when its recipe consisted of command lines."""


def stored_runs() -> list[tuple[ChatgptConfig, list[list[str]]]]:
    runs: list[tuple[ChatgptConfig, list[list[str]]]] = []
    for is_run, lines in groupby(STORED, lambda line: line.startswith("$ ")):
        words = [shlex.split(line.removeprefix("$ "))[1:] for line in lines]
        if is_run:
            runs.append((parse(ChatgptConfig, words[0][1:], "groundling chatgpt"), []))
        else:
            runs[-1][1].extend(words)
    return runs


@pytest.mark.parametrize("number", range(3), ids=["default", "smoke", "own settings"])
def test_the_settings_of_each_step_are_those_of_the_recipe_of_command_lines(number: int) -> None:
    config, commands = stored_runs()[number]
    for step, words in zip(steps(config), commands, strict=True):
        verb = step.verb.split()
        assert words[: len(verb)] == verb
        assert parse(type(step.config), words[len(verb) :], "x") == step.config


def test_the_printed_command_equals_the_step() -> None:
    for step in steps(ChatgptConfig(path="a b/base", out_dir=Path("o ut"), seeds=(3,), context=128)):
        words = shlex.split(step.command())[1 + len(step.verb.split()) :]
        assert parse(type(step.config), words, "x") == step.config


def test_a_command_line_keeps_every_kind_of_value() -> None:
    config = SftConfig(path="base", out_dir=Path("-x"), grad_clip=None, resume="if-present", seed=1)
    config = replace(config, optim=replace(config.optim, decay_all=True, betas=(0.5, 0.6)), dropout=0.25)
    words = to_argv(config)
    assert words[0] == "base"
    assert {"--out-dir=-x", "--grad-clip", "None", "--resume", "if-present", "--optim.decay-all"} < set(words)
    assert parse(SftConfig, words, "x") == config
    ppo = PpoConfig(path="base", no_end=-3.5, value_optim=OptimConfig(lr=1e-7))
    assert parse(PpoConfig, to_argv(ppo), "x") == ppo
    assert changed_fields(SftConfig(path="base")) == {"path": "base"}


def test_steps_depend_on_the_steps_whose_output_they_read() -> None:
    found = steps(ChatgptConfig(path="base", out_dir=Path("out"), seeds=(1,)))
    inputs = {step.output.name: {path.name for path in step.inputs} for step in found}
    assert inputs == {
        "sft": {"base"},
        "rankings.sqlite": {"sft"},
        "reward": {"sft", "rankings.sqlite"},
        "dpo-1": {"sft", "rankings.sqlite"},
        "grpo-1": {"sft", "reward"},
        "ppo-1": {"sft", "reward"},
        "without-kl": {"sft", "reward"},
        "verse.sqlite": {"sft"},
        "reward-verse": {"sft", "verse.sqlite"},
        "over-optimised": {"sft", "reward-verse"},
        "report": set(inputs) - {"report", "verse.sqlite", "reward-verse"} | {"base"},
    }


def test_a_resumed_step_takes_unset_settings_from_its_run(tmp_path: Path, monkeypatch) -> None:
    """A default may have changed since the run began."""
    step = steps(ChatgptConfig(path="base", out_dir=tmp_path, seeds=(1,)))[0]
    monkeypatch.setattr(type(step), "has_good_checkpoint", lambda self: True)
    assert step.config_to_run() == replace(step.config, resume=True)
    step.output.mkdir()
    (step.output / "run.toml").write_text(to_toml(replace(step.config, log_every=7, path="moved")), "utf-8")
    assert step.config_to_run() == replace(step.config, log_every=7, resume=True)
    (step.output / "summary.json").write_text('{"failed": true}', "utf-8")
    assert step.config_to_run() == replace(step.config, overwrite=True)


def test_settings_recorded_by_earlier_versions_are_read(tmp_path: Path) -> None:
    words = ["base", "--out-dir", str(tmp_path), "--data.path", "chats.jsonl", "--data.max-reply", "40"]
    config = parse(ChatgptConfig, words, "groundling chatgpt")
    data = ["--data.path", "chats.jsonl", "--data.max-prompt", "60", "--data.max-reply", "40"]
    recipe = {"path": "base", "gold": "warm", "smoke": False, "data": data, "max_new_tokens": 48}
    (tmp_path / "chatgpt.json").write_text(json.dumps(recipe), "utf-8")
    pipeline._require_same_recipe(config)
    assert json.loads((tmp_path / "chatgpt.json").read_text("utf-8")) == recipe
    with pytest.raises(ConfigError, match="choose another --out-dir"):
        pipeline._require_same_recipe(replace(config, context=64))


def test_changed_fields_go_over_a_base() -> None:
    base = SftConfig(path="base", epochs=3.0)
    changed = changed_fields(SftConfig(path="other", optim=replace(base.optim, lr=1.0)))
    assert changed == {"path": "other", "optim": {"lr": 1.0}}
    assert from_dict(SftConfig, changed, base) == replace(base, path="other", optim=replace(base.optim, lr=1.0))
