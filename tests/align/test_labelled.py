"""`groundling reward --preferences`: pairs from a file, and replies that were only called good or bad."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from stagekit import FAST, write_base

from groundling.align.chat_vocab import with_chat
from groundling.align.preferences.encoding import ZERO_REWARD, Ranked, ranked_rows
from groundling.align.reward import train as reward
from groundling.align.reward.model import load_reward_model, pack_replies, rewards_of, scores_of
from groundling.align.reward.train import RewardObjective, pair_batches
from groundling.bundle import load_bundle
from groundling.errors import ConfigError, DataError
from groundling.model.packer import Packer
from groundling.system.runtime import nullcontext
from groundling.text.chat.messages import Message

PROMPTS = ["abcd"[: n % 4 + 1] + "abcd"[n % 3] * (n // 4) for n in range(40)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("labelled") / "base")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(path):
    """Every prompt once: good replies are of e, bad ones of a."""
    rows = [
        {"prompt": p, "completion": ("e" if n % 2 else "a") * 5, "label": bool(n % 2)} for n, p in enumerate(PROMPTS)
    ]
    return write(path, rows)


def pairs(path):
    return write(path, [{"prompt": prompt, "chosen": "e" * 5, "rejected": "a" * 5} for prompt in PROMPTS])


@pytest.mark.parametrize("make", [labelled, pairs])
def test_a_reward_model_learns_from_a_file(base, tmp_path, make):
    path, out = make(tmp_path / "rows.jsonl"), tmp_path / "reward"
    argv = [str(base), "--preferences", str(path), "--out-dir", str(out), "--epochs", "12", "--batch-size", "8", *FAST]
    assert reward.main(argv) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"] == 1
    model, bundle = load_reward_model(out)
    chat, tokenizer = bundle.chat, bundle.tokenizer
    ids = chat.prompt((Message("user", "dd"),), tokenizer)
    good, bad = scores_of(
        model, [(ids, [*tokenizer.encode(text), chat.end]) for text in ("eeeee", "aaaaa")], nullcontext
    )
    assert good > bad
    if make is labelled:
        assert good > 0 > bad, "good and bad are told apart at 0"


def test_the_loss_of_labels_is_that_of_logistic_regression(base, tmp_path):
    bundle = with_chat(load_bundle(base))
    rows = [{"prompt": "ab", "completion": text, "label": good} for text, good in (("eee", True), ("aa", False))]
    path = write(tmp_path / "rows.jsonl", rows)
    answers, left_out = ranked_rows(path, bundle, 48)
    assert left_out.line() == ""
    assert [answer.pairs for answer in answers] == [[(0, ZERO_REWARD, 1.0)], [(ZERO_REWARD, 0, 1.0)]]
    model = reward.RewardModel(bundle.model)
    torch.nn.init.normal_(model.head_weight)
    (batch,) = pair_batches(answers, Packer(48, 8))
    loss = RewardObjective(model, nullcontext)(batch)
    exchanges = [answer.sequences[0] for answer in answers]
    packed, owners_BT = pack_replies(exchanges, 48)
    scores_N = rewards_of(model(packed.idx_BT, packed.layout), owners_BT, 2)
    expected = F.binary_cross_entropy_with_logits(scores_N, torch.tensor([1.0, 0.0]), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not math.isclose(scores_N[0].item(), scores_N[1].item())


def test_unusable_rows_are_counted(base, tmp_path):
    bundle = with_chat(load_bundle(base))
    rows = [
        {"prompt": "ab", "chosen": "e", "rejected": "e"},
        {"prompt": "ab", "chosen": " ", "rejected": "e"},
        {"prompt": "ab", "chosen": "e" * 60, "rejected": "a"},
        {"prompt": "xyz", "chosen": "e", "rejected": "a"},
        {"prompt": "ab", "chosen": "e", "rejected": "a"},
    ]
    answers, left_out = ranked_rows(write(tmp_path / "rows.jsonl", rows), bundle, 48)
    assert [type(answer) for answer in answers] == [Ranked]
    assert left_out.undecided == 3
    assert "1 cannot be encoded (first" in left_out.line()


def test_swapped_files_are_identified(base, tmp_path):
    from groundling.align.preferences.store import Rankings

    database, rows = tmp_path / "rankings.sqlite", pairs(tmp_path / "rows.jsonl")
    Rankings(database).close()
    out = ["--out-dir", str(tmp_path / "run")]
    with pytest.raises(DataError, match=r"rows.jsonl is lines of JSON; an SQLite file .*--preferences"):
        reward.main([str(base), "--rankings", str(rows), *out])
    with pytest.raises(DataError, match=r"rankings.sqlite is an SQLite database; JSON is expected.*--rankings"):
        reward.main([str(base), "--preferences", str(database), *out])
    with pytest.raises(ConfigError, match="gold is given with preferences"):
        reward.main([str(base), "--preferences", str(rows), "--gold", "e_share", *out])
