"""The stages on a model that trains in seconds: each does what it is for, and refuses what it cannot do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stagekit import FAST, e_share, write_base, write_conversations, write_rankings

from groundling.align import dpo, sft
from groundling.align.chat import Chat
from groundling.align.chat_vocab import with_chat
from groundling.align.data import ChatDataConfig, read_prompt_splits
from groundling.align.preferences.judgement import Candidate, Judgement
from groundling.align.preferences.store import Rankings
from groundling.align.replies import ReplySampler
from groundling.align.reward import train as reward
from groundling.align.rl import grpo, ppo, trainer
from groundling.bundle import load_bundle, load_chat_bundle, save_bundle
from groundling.bundle.weights import plain_state_dict
from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.export.cli import main as export_main
from groundling.model.gpt import GPT
from groundling.sample.sampler import SamplingConfig
from groundling.system.signals import ASKED_TO_STOP
from groundling.text.chat.messages import Message
from groundling.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers, and a reward model."""
    root = tmp_path_factory.mktemp("stages")
    write_base(root / "base")
    write_conversations(root / "chats.jsonl")
    write_rankings(root / "rankings.sqlite")
    data = ("--data.path", str(root / "chats.jsonl"))
    assert sft.main([str(root / "base"), "--out-dir", str(root / "sft"), "--epochs", "40", *data, *FAST]) == 0
    argv = [str(root / "sft"), "--rankings", str(root / "rankings.sqlite"), "--out-dir", str(root / "reward")]
    assert reward.main([*argv, "--epochs", "6", *FAST]) == 0
    shorter = write_base(root / "shorter-base", block_size=32)
    argv = [str(shorter), "--rankings", str(root / "rankings.sqlite"), "--out-dir", str(root / "shorter")]
    assert reward.main([*argv, "--epochs", "0.1", *FAST]) == 0
    return root


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def same_weights(a: GPT, b: GPT) -> bool:
    ours, theirs = plain_state_dict(a), plain_state_dict(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def replies_of(bundle_folder: Path) -> list[str]:
    bundle = with_chat(load_bundle(bundle_folder))
    assert bundle.chat is not None
    prompt = [bundle.chat.user, *bundle.tokenizer.encode("abc"), bundle.chat.end, bundle.chat.assistant]
    sampler = ReplySampler(bundle, max_new_tokens=40)
    return [reply.text for (reply,) in sampler.reply([prompt] * 200, seed=5)]


def share_of_e(bundle_folder: Path) -> float:
    return sum(map(e_share, replies_of(bundle_folder))) / 200


@pytest.mark.slow
def test_fine_tuning_teaches_how_long_replies_are(folder):
    """In the conversations they have four letters; a model that knows nothing ends anywhere."""
    before, after = (sum(len(text) == 4 for text in replies_of(folder / name)) for name in ("base", "sft"))
    assert before < 40
    assert after > 150
    first, *_, last = [record for record in records(folder / "sft") if "val_loss" in record]
    assert last["val_loss"] < first["val_loss"] - 0.3


def test_an_overfitted_conversation_is_reproduced_with_its_end(tmp_path):
    """FAULTS row 24: a model that never learned its end goes on for ever."""
    row = {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "dead bee"}]}
    (tmp_path / "one.jsonl").write_text((json.dumps(row) + "\n") * 20, encoding="utf-8")
    base = write_base(tmp_path / "base")
    flags = ["--data.path", str(tmp_path / "one.jsonl"), "--epochs", "60", "--n-replies", "0", "--batch-size", "8"]
    assert sft.main([str(base), "--out-dir", str(tmp_path / "sft"), *flags, *FAST]) == 0
    chat = Chat(load_chat_bundle(tmp_path / "sft"), SamplingConfig(temperature=0.0, max_new_tokens=40))
    assert "".join(chat.reply("abc")) == "dead bee"
    assert [message.role for message in chat.messages] == ["user", "assistant"]


@pytest.mark.slow
def test_adapters_train_and_leave_known_embeddings_unchanged(folder, tmp_path):
    flags = ["--data.path", str(folder / "chats.jsonl"), "--epochs", "6", "--lora.rank", "4"]
    assert sft.main([str(folder / "base"), "--out-dir", str(tmp_path / "sft"), *flags, *FAST]) == 0
    before, after = load_bundle(folder / "base").model, load_bundle(tmp_path / "sft").model
    n = before.config.vocab_size
    assert (before.wte.weight == after.wte.weight[:n]).all()
    assert not (before.h[0].attn.c_attn.weight == after.h[0].attn.c_attn.weight).all()
    assert summary(tmp_path / "sft")["replies_ended"] > 0.9


@pytest.mark.parametrize("tied", [False, True])
def test_a_separate_adapter_equals_the_merged_model_exactly(folder, tmp_path, tied, capsys):
    """And loads wherever a model does: here it is fine-tuned again, and exported in one piece."""
    base = write_base(tmp_path / "base", tie_weights=tied)
    flags = ["--data.path", str(folder / "chats.jsonl"), "--epochs", "1", "--lora.rank", "2", *FAST, "--n-replies", "0"]
    assert sft.main([str(base), "--out-dir", str(tmp_path / "merged"), *flags]) == 0
    assert sft.main([str(base), "--out-dir", str(tmp_path / "kept"), *flags, "--lora.keep"]) == 0
    assert not list((tmp_path / "kept").rglob("model.safetensors"))
    whole, kept = load_bundle(tmp_path / "merged"), load_bundle(tmp_path / "kept")
    assert (whole.config, whole.chat) == (kept.config, kept.chat)
    assert same_weights(whole.model, kept.model)
    assert kept.model.lm_head.weight is kept.model.wte.weight or not tied

    assert sft.main([str(tmp_path / "kept"), "--out-dir", str(tmp_path / "twice"), *flags, "--lora.keep"]) == 0
    twice = load_bundle(tmp_path / "twice")
    assert not same_weights(twice.model, kept.model)
    assert export_main(["bundle", str(tmp_path / "twice"), str(tmp_path / "one")]) == 0
    assert "parameters" in capsys.readouterr().out
    (tmp_path / "merged").rename(tmp_path / "elsewhere")
    assert same_weights(load_bundle(tmp_path / "one").model, twice.model)


def test_an_adapter_names_its_missing_base(folder, tmp_path):
    base = write_base(tmp_path / "a" / "base")
    flags = ["--data.path", str(folder / "chats.jsonl"), "--epochs", "0.1", "--lora.rank", "2", "--n-replies", "0"]
    assert sft.main([str(base), "--out-dir", str(tmp_path / "a" / "kept"), *flags, *FAST, "--lora.keep"]) == 0
    before = load_bundle(tmp_path / "a" / "kept").model
    (tmp_path / "a").rename(tmp_path / "b")
    assert same_weights(load_bundle(tmp_path / "b" / "kept").model, before), "moved together"
    (tmp_path / "b" / "base").rename(tmp_path / "b" / "gone")
    with pytest.raises(CheckpointError, match="which does not exist"):
        load_bundle(tmp_path / "b" / "kept")
    other = GPT(load_bundle(tmp_path / "b" / "gone").config)
    save_bundle(tmp_path / "b" / "base", other, load_bundle(tmp_path / "b" / "gone").tokenizer)
    with pytest.raises(CheckpointError, match="adapter of a different model"):
        load_bundle(tmp_path / "b" / "kept")


def test_the_reward_model_learns_the_raters_preferences(folder):
    about = summary(folder / "reward")
    assert about["accuracy"] > 0.8
    assert about["accuracy_low"] < about["accuracy"] < about["accuracy_high"]
    assert sum(part["pairs"] for part in about["calibration"]) == 2 * about["pairs"]


def answer(number: int, prompt: str, *texts: str) -> Judgement:
    shown = tuple(range(len(texts)))
    return Judgement(
        key=f"k{number}",
        messages=(Message("user", prompt),),
        candidates=tuple(Candidate(text, "nobody") for text in texts),
        shown=shown,
        choice=((0,), shown[1:]),
        rater="ann",
        time="2026-01-01T00:00:00+00:00",
    )


def test_all_replies_to_a_prompt_are_in_one_split(folder):
    """Replies too long for the context, and prompts that are cut to make room, change nothing about whose they are."""
    bundle = with_chat(load_bundle(folder / "base"))
    long_prompt = "abc" * 15
    answers = [answer(n, f"{'abcde'[n % 5]}a", "e", "a", "b" * 60) for n in range(20)]
    answers += [answer(20 + n, long_prompt, "e" * (n + 1), "a") for n in range(20)]
    found, left_out = reward.ranked(answers, bundle, 48)
    assert (len(found), left_out.line()) == (40, "")
    train, measured = reward.split_by_prompt(found, 0.3)
    sides = [{each.messages for each in side} for side in (train, measured)]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [4, 2]
    assert len(train) + len(measured) == 40


def test_unencodable_answers_are_counted_and_the_others_used(folder, tmp_path, capsys):
    with Rankings(tmp_path / "r.sqlite") as rankings:
        rankings.add_all([answer(0, "abz", "e", "a"), *(answer(n, "abc" + "de"[n % 2] * n, "e", "a") for n in (1, 2))])
    flags = ["--rankings", str(tmp_path / "r.sqlite"), "--out-dir", str(tmp_path / "run"), "--epochs", "1", *FAST]
    assert reward.main([str(folder / "sft"), *flags]) == 0
    assert "1 cannot be encoded (first the answer k0: " in capsys.readouterr().err


def test_without_gold_differences_there_is_no_margin(folder, tmp_path):
    """Rankings of people, and a measure that is 0 for all that they ranked."""
    with Rankings(tmp_path / "r.sqlite") as rankings:
        rankings.add_all([answer(n, "abcde"[n], "e", "a") for n in range(5)])
    flags = ["--rankings", str(tmp_path / "r.sqlite"), "--out-dir", str(tmp_path / "run"), "--epochs", "1", *FAST]
    assert reward.main([str(folder / "sft"), *flags, "--gold", "verse"]) == 0
    about = summary(tmp_path / "run")
    assert about["ceiling"] == 0.5
    assert "of_the_margin" not in about


@pytest.mark.slow
def test_preference_files_and_the_other_loss_move_the_policy_too(folder, tmp_path):
    """And held-out pairs are of prompts that were not learned from."""
    rows = [{"prompt": "abcde"[n % 5] * (1 + n % 7), "chosen": "eee", "rejected": "abc"} for n in range(140)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    argv = [str(folder / "sft"), "--preferences", str(path), "--out-dir", str(tmp_path / "dpo"), "--held-out", "0.2"]
    assert dpo.main([*argv, *FAST, "--loss", "ipo", "--beta", "0.5", "--epochs", "4"]) == 0
    first, last = (records(tmp_path / "dpo")[place] for place in (1, -1))
    assert first["loss"] == pytest.approx(1, abs=1e-3), "(0 - 1 / (2 beta))^2"
    assert last["accuracy"] > 0.9
    assert share_of_e(tmp_path / "dpo") > share_of_e(folder / "sft") + 0.05


def test_a_run_beyond_stop_kl_ends_with_the_reason(folder, tmp_path):
    flags = ["--data.path", str(folder / "chats.jsonl"), "--steps", "30", "--replies", "32", "--max-new-tokens", "12"]
    argv = [str(folder / "sft"), "--reward", "stagekit:reward", "--out-dir", str(tmp_path / "run"), *flags, *FAST]
    assert ppo.main([*argv, "--kl-coef", "0", "--stop-kl", "0.5", "--optim.lr", "3e-3"]) == 0
    about, rows = summary(tmp_path / "run"), records(tmp_path / "run")
    assert about["reason"] == "the KL went beyond 0.5"
    assert about["kl"] == rows[-1]["kl"] > 0.5, "of the policy that is kept"
    assert all(row["kl"] <= 0.5 for row in rows[:-1])
    assert len(rows) < 30


def test_adaptive_kl_control_raises_the_coefficient(folder, tmp_path):
    flags = ["--data.path", str(folder / "chats.jsonl"), "--steps", "4", "--replies", "16", "--max-new-tokens", "12"]
    argv = [str(folder / "sft"), "--reward", "stagekit:reward", "--out-dir", str(tmp_path / "run"), *flags, *FAST]
    assert ppo.main([*argv, "--kl-control", "adaptive", "--target-kl", "1e-3", "--kl-coef", "0.1"]) == 0
    prices = [row["kl_coef"] for row in records(tmp_path / "run")]
    assert prices[0] == 0.1
    assert prices[1] == pytest.approx(0.098), "no nat in the first round: cheaper by the most that is allowed"
    assert prices[3] > prices[2] > prices[1]


def test_dpo_moves_the_policy_to_the_chosen_replies(folder, tmp_path):
    argv = [str(folder / "sft"), "--rankings", str(folder / "rankings.sqlite"), "--out-dir", str(tmp_path / "dpo")]
    assert dpo.main([*argv, *FAST, "--epochs", "2", "--optim.lr", "3e-3"]) == 0
    first, last = (records(tmp_path / "dpo")[place] for place in (1, -1))
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert last["accuracy"] > 0.7
    assert share_of_e(tmp_path / "dpo") > share_of_e(folder / "sft") + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("method", [grpo, ppo], ids=["grpo", "ppo"])
def test_the_first_ratio_is_one_in_bfloat16_too(folder, tmp_path, method):
    """What was drawn is scored in the rows that the first update will see: not a bit differs."""
    flags = ["--data.path", str(folder / "chats.jsonl"), "--steps", "3", "--replies", "48", "--minibatches", "3", *FAST]
    flags += ["--runtime.dtype", "bfloat16", "--micro-batch-rows", "2", "--max-new-tokens", "12"]
    argv = [str(folder / "sft"), "--reward", "stagekit:reward", "--out-dir", str(tmp_path / "run")]
    assert method.main([*argv, *flags]) == 0
    assert [row["first_ratio_off"] for row in records(tmp_path / "run")] == [0, 0, 0]
    assert records(tmp_path / "run")[0]["kl"] == 0


def test_a_failing_reward_function_is_a_user_error(folder, tmp_path):
    argv = [str(folder / "sft"), "--reward", "stagekit:failing", "--out-dir", str(tmp_path / "run"), *FAST]
    with pytest.raises(ConfigError, match=r"^stagekit:failing failed on the reply .*KeyError.*GROUNDLING_TRACEBACK=1"):
        grpo.main([*argv, "--data.path", str(folder / "chats.jsonl"), "--max-new-tokens", "12"])


@pytest.mark.slow
def test_a_reward_function_is_found_in_the_current_folder(folder, tmp_path):
    """By the installed command, whose own folder is elsewhere; and it is given the user's last words, and no others."""
    rows = [("abc", "dd"), ("eee", "aa"), ("cab", "b")]
    messages = [
        {"role": role, "content": text} for asked, said in rows for role, text in (("user", asked), ("assistant", said))
    ]
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 4, encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "def score(prompt, reply):\n    assert prompt in ('abc', 'eee', 'cab'), prompt\n    return len(reply)\n"
    )
    command = [Path(sys.executable).with_name("groundling"), "grpo", folder / "sft", "--reward", "mine:score", *FAST]
    command += ["--data.path", "chats.jsonl", "--out-dir", "run", "--steps", "2", "--replies", "16"]
    done = subprocess.run(
        [*map(str, command), "--max-new-tokens", "8"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", [grpo, ppo], ids=["grpo", "ppo"])
@pytest.mark.parametrize("source", ["model", "function"])
def test_rewards_move_the_policy(folder, tmp_path, method, source):
    rewards = str(folder / "reward") if source == "model" else "stagekit:reward"
    name = method.__name__.rpartition(".")[2]
    argv = [str(folder / "sft"), "--reward", rewards, "--out-dir", str(tmp_path / name)]
    flags = ["--data.path", str(folder / "chats.jsonl"), "--steps", "12", "--replies", "64", "--max-new-tokens", "16"]
    assert method.main([*argv, *flags, *FAST, "--optim.lr", "3e-3", "--kl-coef", "0.01"]) == 0
    rows = records(tmp_path / name)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert max(row["first_ratio_off"] for row in rows) < 1e-6
    assert rows[-1]["kl"] > 0
    assert summary(tmp_path / name)["reason"] == "finished"
    assert share_of_e(tmp_path / name) > share_of_e(folder / "sft") + 0.05
    if method is ppo:
        assert {"explained_variance", "kl_coef", "entropy", "clip_fraction", "length"} <= rows[-1].keys()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("method", [sft, grpo], ids=["sft", "grpo"])
def test_a_stopped_stage_keeps_its_model_and_logs_how_to_resume(folder, tmp_path, monkeypatch, method, number):
    """After its first update; whoever started it sees by the exit code that it is not finished."""
    module = trainer if method is grpo else loop
    monkeypatch.setattr(module, "train_step", stop_after_one(module.train_step, number))
    flags = ["--data.path", str(folder / "chats.jsonl"), "--out-dir", str(tmp_path / "run"), *FAST]
    if method is grpo:
        argv = [str(folder / "sft"), "--reward", "stagekit:reward", "--replies", "16", "--max-new-tokens", "12"]
        argv += ["--minibatches", "1", *flags]
    else:
        argv = [str(folder / "base"), *flags]
    assert method.main(argv) == 128 + number
    about = summary(tmp_path / "run")
    assert about["reason"] == ASKED_TO_STOP
    assert "val_loss" not in about, "that of the beginning is another model's"
    assert load_bundle(tmp_path / "run").chat is not None


def stop_after_one(train_step, number):
    def step(*args, **named):
        stats = train_step(*args, **named)
        signal.raise_signal(number)
        return stats

    return step


@pytest.mark.parametrize("name", ["asked.jsonl", "asked.txt"])
def test_a_file_of_prompts_is_enough_for_rollouts(folder, tmp_path, name):
    """What was never asked is never answered: the reward function sees the file's words and no others."""
    asked = ["abc", "eee", "cab", "dad"]
    lines = asked if name.endswith("txt") else [json.dumps({"prompt": each, "source": "here"}) for each in asked]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    seen = read_prompt_splits(ChatDataConfig(path=tmp_path / name))
    assert [[messages[-1].content for messages in part] for part in (seen.train, seen.val)] == [asked[:3], asked[3:]]
    flags = ["--data.path", str(tmp_path / name), "--steps", "1", "--replies", "16", "--max-new-tokens", "12", *FAST]
    flags += ["--reward", "stagekit:reward", "--out-dir", str(tmp_path / "grpo")]
    assert grpo.main([str(folder / "sft"), *flags]) == 0
    with pytest.raises(DataError, match=r"asked\.\w+"):
        sft.main([str(folder / "base"), "--data.path", str(tmp_path / name), "--out-dir", str(tmp_path / "s"), *FAST])


def test_training_prompts_are_not_used_for_evaluation(tmp_path):
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]} for text in "abca"]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "val.jsonl").write_text('{"prompt": "b"}\n{"prompt": "e"}\n{"prompt": "e"}\n', encoding="utf-8")
    (tmp_path / "train.jsonl").write_text('{"prompt": "b"}\n{"prompt": "c"}\n', encoding="utf-8")
    asked = read_prompt_splits(ChatDataConfig(path=tmp_path / "chats.jsonl"))
    assert ([each[-1].content for each in asked.train], asked.val) == (["a", "b", "c"], [])
    asked = read_prompt_splits(ChatDataConfig(path=tmp_path / "train.jsonl", val_path=tmp_path / "val.jsonl"))
    assert [each[-1].content for each in asked.val] == ["e"]


@pytest.mark.slow
def test_invalid_utf_8_does_not_end_a_conversation(folder, tmp_path):
    command = [sys.executable, "-m", "groundling", "chat", str(folder / "sft")]
    environment = os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, input=b"ab\xe9\nabc\n", capture_output=True, env=environment, check=False)
    assert done.returncode == 0
    assert b"U+DCE9" in done.stderr
    assert done.stdout.strip(), "the next line was answered"


def test_the_same_seed_gives_the_same_policy(folder, tmp_path):
    flags = ["--data.path", str(folder / "chats.jsonl"), "--steps", "2", "--replies", "16", "--max-new-tokens", "12"]
    argv = [str(folder / "sft"), "--reward", "stagekit:reward", *flags, *FAST]
    rewards = []
    for name in ("one", "two"):
        grpo.main([*argv, "--out-dir", str(tmp_path / name)])
        rewards.append([(row["reward"], row["kl"]) for row in records(tmp_path / name)])
    assert rewards[0] == rewards[1]


TALK = ("--reward", "stagekit:reward", "--data.path", "CHATS", "--max-new-tokens")


@pytest.mark.parametrize(
    ("method", "flags", "complaint"),
    [
        (dpo, ["BASE", "--rankings", "RANKINGS"], "is a base model, not a chat model"),
        (dpo, ["SFT"], "either --rankings or --preferences"),
        (dpo, ["SFT", "--rankings", "nowhere.sqlite"], "nowhere.sqlite"),
        (grpo, ["SFT", "--reward", "SFT"], "is not a reward model"),
        (grpo, ["SFT", "--reward", "stagekit:nothing"], "no reward function"),
        (grpo, ["SFT", "--reward", "stagekit:reward", "--group", "7"], "not a multiple"),
        (grpo, ["REWARD", "--reward", "REWARD"], "reward model: it scores"),
        (dpo, ["REWARD", "--rankings", "RANKINGS"], "reward model: it scores"),
        (sft, ["REWARD"], "reward model: it scores"),
        (sft, ["BASE", "--epochs", "inf"], "epochs is inf"),
        (grpo, ["SFT", *TALK, "41"], "it can be at most 40"),
        (ppo, ["SFT", *TALK, "12", "--value-from", "OTHER"], "has another chat template"),
        (ppo, ["SFT", "--reward", "nowhere"], "nowhere"),
        (sft, ["BASE", "--data.path", "nowhere.jsonl"], "nowhere.jsonl"),
        (sft, ["BASE", "--lora.alpha", "2"], "needs lora.rank"),
        (sft, ["BASE", "--lora.keep"], "needs lora.rank"),
        (reward, ["SFT", "--rankings", "RANKINGS", "--gold", "beauty"], "beauty"),
    ],
)
def test_invalid_settings_are_refused_in_one_line_and_change_nothing(folder, tmp_path, method, flags, complaint):
    names = {"BASE": folder / "base", "SFT": folder / "sft", "RANKINGS": folder / "rankings.sqlite"}
    names |= {"REWARD": folder / "reward", "OTHER": folder / "shorter", "CHATS": folder / "chats.jsonl"}
    argv = [str(names.get(flag, flag)) for flag in flags]
    kept = tmp_path / "out" / "metrics.jsonl"
    kept.parent.mkdir()
    kept.write_text("precious", encoding="utf-8")
    with pytest.raises((ConfigError, CheckpointError, DataError), match=complaint) as error:
        method.main([*argv, "--out-dir", str(tmp_path / "out"), "--overwrite"])
    assert "\n" not in str(error.value)
    assert kept.read_text(encoding="utf-8") == "precious"


def test_an_earlier_run_is_not_overwritten(folder):
    with pytest.raises(ConfigError, match="already holds a run"):
        sft.main([str(folder / "base"), "--out-dir", str(folder / "sft"), "--data.path", str(folder / "chats.jsonl")])
