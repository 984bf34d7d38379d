"""How long all stages take is said at their start, and corrected as they end."""

import dataclasses

import pytest
from stagekit import write_base, write_conversations, write_rankings

from groundling.align.chat_vocab import with_chat
from groundling.align.data import read_prompt_splits
from groundling.align.pipeline import chatgpt as pipeline
from groundling.align.pipeline.time_estimate import N_DIALOGUES, REFERENCE, SECONDS, Clock, Speed, measure, step_key
from groundling.bundle import load_bundle
from groundling.system.runtime import RuntimeConfig

ALL = [step_key(step.verb, step.output) for step in pipeline.steps(pipeline.ChatgptConfig(path="base"))]


def test_the_estimate_equals_the_reference_on_its_machine():
    assert Clock(ALL, REFERENCE).seconds_left == pytest.approx(1_070, abs=100)
    twice = Speed(2 * REFERENCE.training, 2 * REFERENCE.decoding)
    assert Clock(ALL, twice).seconds_left == pytest.approx(2 * Clock(ALL, REFERENCE).seconds_left)
    assert Clock(["ppo"], Speed(10 * REFERENCE.training, REFERENCE.decoding)).seconds_left == 10 * 43 + 18
    assert Clock(["sft", "ppo"], REFERENCE, scale=3.0).seconds_left == 3 * 64 + 61
    assert Clock(["reward"], REFERENCE, scale=3.0).seconds_left == pytest.approx(197 * 5000 / N_DIALOGUES)


def test_stages_that_take_longer_correct_it():
    clock, foretold = Clock(ALL, REFERENCE), Clock(ALL, REFERENCE).seconds_left
    for name in ALL:
        before = clock.seconds_left
        clock.end(2 * sum(SECONDS[name]))
        assert clock.seconds_left <= 2 * foretold
        if name == "reward":  # more than a tenth has passed by now
            assert clock.seconds_left == pytest.approx(2 * (foretold - 64 - 205 - 197))
        elif name == "sft":
            assert before - 64 < clock.seconds_left < 2 * (before - 64)
    assert clock.seconds_left == 0


def test_the_scale_is_that_of_the_dialogues():
    assert len(read_prompt_splits(pipeline.ChatgptConfig(path="base").data).train) == N_DIALOGUES


def test_measuring_leaves_the_model_unchanged(tmp_path):
    bundle = with_chat(load_bundle(write_base(tmp_path / "base")))
    before = {name: tensor.clone() for name, tensor in bundle.model.state_dict().items()}
    speed = measure(bundle, RuntimeConfig(device="cpu"))
    assert 0 < speed.training < 60
    assert 0 < speed.decoding < 60
    assert all((before[name] == tensor).all() for name, tensor in bundle.model.state_dict().items())
    assert all(parameter.grad is None for parameter in bundle.model.parameters())


def test_the_estimate_is_logged_first_and_after_each_stage(tmp_path, monkeypatch, capsys):
    real = pipeline.steps
    quick = lambda config: [dataclasses.replace(step, run=lambda config: 0) for step in real(config)]  # noqa: E731
    monkeypatch.setattr(pipeline, "steps", quick)
    monkeypatch.setattr(pipeline, "measure", lambda bundle, config: REFERENCE)
    write_conversations(tmp_path / "chats.jsonl")
    argv = [str(write_base(tmp_path / "base")), "--out-dir", str(tmp_path / "out"), "--max-new-tokens", "8"]
    assert pipeline.main([*argv, "--data.path", str(tmp_path / "chats.jsonl")]) == 0
    first, *lines = [line for line in capsys.readouterr().err.splitlines() if "left for all" in line]
    assert first.startswith("17 stages; about ")
    assert len(lines) == 17
    assert lines[-1].endswith("about 0 s left for all")


def test_steps_to_repeat_are_known_after_a_kill(tmp_path, monkeypatch):
    """Stages that follow one which runs again are not done, though that one has finished when the kill comes."""
    out, ran = tmp_path / "out", []
    argv = [str(write_base(tmp_path / "base")), "--out-dir", str(out), "--max-new-tokens", "8", "--seeds", "1"]
    argv += ["--smoke", "--data.path", str(write_conversations(tmp_path / "chats.jsonl"))]
    out.mkdir()
    for name in ("rankings", "verse"):
        write_rankings(out / f"{name}.sqlite", n=1)
    folders = ("sft", "reward", "dpo-1", "grpo-1", "ppo-1", "without-kl", "reward-verse", "over-optimised")
    for name in folders:
        (out / name).mkdir()
        if name != "reward":
            (out / name / "summary.json").write_text('{"ended": "finished", "failed": false}', encoding="utf-8")
    for name in ("ppo-1", "reward"):
        (out / name / "checkpoints/step-00000001").mkdir(parents=True)  # without a manifest
    real = pipeline.steps

    def running(step):
        def run(config):
            name = step.output.name
            ran.append((name, getattr(config, "overwrite", None)))
            if len(ran) == 2:
                raise KeyboardInterrupt
            (out / name).mkdir(exist_ok=True)
            (out / name / "summary.json").write_text('{"ended": "finished", "failed": false}', encoding="utf-8")
            return 0

        return dataclasses.replace(step, run=run)

    monkeypatch.setattr(pipeline, "steps", lambda config: [running(step) for step in real(config)])
    with pytest.raises(KeyboardInterrupt):
        pipeline.main(argv)
    assert pipeline.main(argv) == 0
    names = [name for name, _ in ran]
    assert names == ["reward", "grpo-1", "grpo-1", "ppo-1", "without-kl", "report"]
    assert {overwrite for name, overwrite in ran if name != "report"} == {True}, "there is no good checkpoint"
