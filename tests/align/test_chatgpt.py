"""All stages after one another on Tiny Shakespeare, from a model that knows nothing to the report."""

import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from groundling.align.pipeline import chatgpt as pipeline
from groundling.align.pipeline.command_line import to_argv
from groundling.align.report import build as report
from groundling.align.rl import trainer
from groundling.bundle import save_bundle
from groundling.config import parse
from groundling.data import datasets
from groundling.errors import CheckpointError, ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.bpe import train_bpe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke version of `make chatgpt`, with two seeds."""
    root = tmp_path_factory.mktemp("chatgpt")
    # Byte pairs, for whole words are drawn even by a model that knows nothing, and the rater likes some better.
    tokenizer = train_bpe([datasets.get("tiny_shakespeare").read_text("utf-8")[:200_000]], 1000)
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=160, vocab_size=tokenizer.vocab_size))
    save_bundle(root / "base", model, tokenizer)
    argv = [str(root / "base"), "--out-dir", str(root / "all"), "--seeds", "1", "2", "--smoke"]
    assert pipeline.main(argv) == 0
    return root


def test_the_report_has_a_row_for_every_way_to_reply(folder: Path) -> None:
    figures = json.loads((folder / "all/report/report.json").read_text("utf-8"))
    assert [row["name"] for row in figures["rows"]] == ["base", "SFT", "best of 2", "DPO", "GRPO", "PPO"]
    assert figures["without_kl"]["name"] == "GRPO without KL"
    for row in figures["rows"]:
        assert len(row["win_seeds"]) == 2
        assert 0 <= row["win_low"] <= row["win_rate"] <= row["win_high"] <= 1
    kl = {row["name"]: row["kl"] for row in figures["rows"]}
    assert kl["base"] is None
    assert kl["SFT"] == 0
    assert len(figures["replies"]) == 8
    assert set(figures["replies"][0]) == {"prompt", *kl, "GRPO without KL"}


def test_the_page_is_self_contained(folder: Path) -> None:
    page = (folder / "all/report/index.html").read_text("utf-8")
    sources_of = re.findall(r"(?:src|href)='([^']*)'", page)
    assert len(sources_of) == 8, "frontier, over-optimisation, fine-tuning, rater, calibration, DPO, GRPO, PPO"
    assert all(each.startswith("data:image/png;base64,") for each in sources_of)
    assert "<script" not in page
    assert "http" not in page
    table = (folder / "all/report/table.md").read_text("utf-8").splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        *("base", "SFT", "best of 2", "DPO", "GRPO", "PPO", "GRPO without KL"),
    ]


def test_the_report_shows_the_rater(folder: Path) -> None:
    """The smoke run's noise is 0.2: near gaps are tossed up, and of wide ones nearly all are got right."""
    figures = json.loads((folder / "all/report/report.json").read_text("utf-8"))
    rater, courses, over = (figures[name] for name in ("rater", "courses", "over_optimisation"))
    assert rater["noise"] == 0.2
    assert len(rater["golds"]) == 24 * 4
    assert all(-1 <= gold <= 1 for gold in rater["golds"])
    pairs = sum(each["pairs"] for each in rater["preferred"])
    right = sum(each["share"] * each["pairs"] for each in rater["preferred"])
    expected = sum(each["pairs"] / (1 + math.exp(-each["gap"] / 0.2)) for each in rater["preferred"])
    assert pairs > 20
    assert abs(right - expected) < 3 * math.sqrt(pairs) / 2
    assert [(course["gold"], len(course["rounds"])) for course in over] == [("warm", 2), ("verse", 2)]
    assert {name: len(runs) for name, runs in courses.items()} == {"sft": 1, "dpo": 2, "grpo": 2, "ppo": 2}


def test_finished_stages_are_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that left no checkpoint is; those after it go on from what it leaves."""
    (folder / "all/ppo-2/summary.json").write_text('{"ended": "asked to stop"}', "utf-8")
    before = {name: (folder / f"all/{name}/metrics.jsonl").stat().st_mtime_ns for name in ("sft", "ppo-1", "ppo-2")}
    argv = [str(folder / "base"), "--out-dir", str(folder / "all"), "--seeds", "1", "2", "--smoke"]
    assert pipeline.main(argv) == 0
    after = {name: (folder / f"all/{name}/metrics.jsonl").stat().st_mtime_ns for name in before}
    assert [name for name in before if before[name] != after[name]] == ["ppo-2"]
    assert capsys.readouterr().err.count("already done") == 3 + 2 * 3 + 1 + 3 - 1


def test_an_interrupted_stage_is_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the weights that it had when nobody interrupted it."""
    run = folder / "all/ppo-2"
    before = (run / "bundle/model.safetensors").read_bytes()
    shutil.rmtree(run)
    argv = [str(folder / "base"), "--out-dir", str(folder / "all"), "--seeds", "1", "2", "--smoke"]
    with monkeypatch.context() as patches:
        step, updates = trainer.train_step, iter(range(100))

        def stopping(*args, **named):
            if next(updates) == 2:
                signal.raise_signal(signal.SIGTERM)
            return step(*args, **named)

        patches.setattr(trainer, "train_step", stopping)
        assert pipeline.main(argv) == 128 + signal.SIGTERM
    capsys.readouterr()
    assert pipeline.main(argv) == 0
    assert f"resuming from {run / 'checkpoints'}" in capsys.readouterr().err
    assert (run / "bundle/model.safetensors").read_bytes() == before


def test_stages_of_another_recipe_are_refused(folder: Path) -> None:
    argv = [str(folder / "base"), "--out-dir", str(folder / "all"), "--seeds", "1", "2", "--gold", "verse", "--smoke"]
    with pytest.raises(ConfigError, match="choose another --out-dir"):
        pipeline.main(argv)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--seeds", "1", "-2"], "must be at least 0"),
        (["--max-new-tokens", "159"], "it can be at most 152"),
        (["--gold", "cold"], "cold"),
    ],
)
def test_requirements_of_late_stages_are_checked_first(
    folder: Path, tmp_path: Path, flags: list[str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        pipeline.main([str(folder / "base"), "--out-dir", str(tmp_path / "out"), *flags])
    with pytest.raises(ConfigError, match="reward model: it scores"):
        pipeline.main([str(folder / "all/reward"), "--out-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_custom_conversations_reach_every_stage(tmp_path: Path) -> None:
    argv = ["base", "--data.path", "chats.jsonl", "--data.max-reply", "40", "--max-new-tokens", "77"]
    config = parse(pipeline.ChatgptConfig, argv, "groundling chatgpt")
    found = {step.verb: to_argv(step.config) for step in pipeline.steps(config)}
    for verb in ("sft", "rankings simulate", "grpo", "ppo", "align-report"):
        assert found[verb][found[verb].index("--data.path") + 1] == "chats.jsonl"
        assert found[verb][found[verb].index("--data.max-reply") + 1] == "40"
    assert "77" in found["ppo"]
    assert "77" in found["align-report"]


def test_rankings_of_an_earlier_model_are_not_added_to(folder: Path, tmp_path: Path) -> None:
    """Nor removed: somebody may have ranked."""
    kept = tmp_path / "rankings.sqlite"
    kept.write_bytes((folder / "all/rankings.sqlite").read_bytes())
    argv = [str(folder / "base"), "--out-dir", str(tmp_path), "--seeds", "1", "--smoke"]
    with pytest.raises(ConfigError, match="move it elsewhere"):
        pipeline.main(argv)
    assert kept.read_bytes() == (folder / "all/rankings.sqlite").read_bytes()


def test_stages_after_a_repeated_stage_run_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "all/reward/summary.json").unlink()
    argv = [str(folder / "base"), "--out-dir", str(folder / "all"), "--seeds", "1", "2", "--smoke"]
    assert pipeline.main(argv) == 0
    said = capsys.readouterr().err
    assert [name for name in ("sft", "rankings simulate") if f"\ngroundling {name} " not in said] == []
    kept = [line.split()[1] for line in said.splitlines() if line.endswith("already done")]
    verse = ["rankings", "reward", "grpo"]
    assert kept == ["sft", "rankings", "dpo", "dpo", *verse], "what read nothing of the reward model"


def test_rankings_are_refused_before_anything_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fine-tuning would be made anew, and with it all that follows; there are rankings of its replies."""
    kept = (folder / "all/sft/summary.json").rename(folder / "all/sft/kept.json")
    argv = [str(folder / "base"), "--out-dir", str(folder / "all"), "--seeds", "1", "2", "--smoke"]
    with pytest.raises(ConfigError, match="move it elsewhere"):
        pipeline.main(argv)
    kept.rename(folder / "all/sft/summary.json")
    assert "$ groundling" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--runs", "nowhere"], "nowhere is not a finished run"),
        (["--max-new-tokens", "160"], "max_new_tokens is 160"),
        (["--best-of", "1"], "each n must be at least 2"),
        (["--seeds", "1", "1"], "all different"),
        (["--gold", "wram"], "did you mean 'warm'"),
        (["--reward", "SFT"], "is not a reward model"),
    ],
)
def test_incomparable_models_are_refused(folder: Path, tmp_path: Path, flags: list[str], complaint: str) -> None:
    flags = [str(folder / "all/sft") if flag == "SFT" else flag for flag in flags]
    argv = [str(folder / "all/sft"), "--reward", str(folder / "all/reward"), "--out-dir", str(tmp_path / "r"), *flags]
    with pytest.raises((ConfigError, CheckpointError), match=re.escape(complaint)):
        report.main(argv)


def test_two_runs_do_not_go_with_three_seeds(folder: Path, tmp_path: Path) -> None:
    runs = ["--runs", str(folder / "all/ppo-1"), str(folder / "all/ppo-2")]
    argv = [str(folder / "all/sft"), "--reward", str(folder / "all/reward"), "--out-dir", str(tmp_path), *runs]
    with pytest.raises(ConfigError, match="2 runs, and seeds are 3"):
        report.main([*argv, "--prompts", "4", "--best-of", "2"])
