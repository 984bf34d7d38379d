"""Rows of fine-tuning are as wide as the examples need, not as wide as the context."""

import dataclasses
import json
from contextlib import nullcontext

import pytest
import torch

from groundling.align.dpo import Pair, dpo_batches
from groundling.align.logprobs import Policy, scored_groups
from groundling.align.preferences.encoding import Ranked
from groundling.align.replies import Reply
from groundling.align.reward.train import pair_batches
from groundling.align.sft import SftObjective, main, sft_batches
from groundling.bundle import load_bundle, save_bundle
from groundling.data.examples.encoding import Encoded
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.packer import MIN_WIDTH, Packer, exchange_sizes
from groundling.text.char import CharTokenizer

CONTEXT = 8192
CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=CONTEXT, vocab_size=16, position="rotary")


def ids_of(n: int, seed: int) -> list[int]:
    return torch.randint(1, 16, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def example(n: int, seed: int) -> Encoded:
    return Encoded(ids_of(n, seed), [i >= n // 2 for i in range(n)])


def test_a_row_is_as_wide_as_the_longest_example():
    packer = Packer(CONTEXT, 16)
    assert packer.row_width([40, 400, 12]) == 448
    assert packer.row_width([40]) == MIN_WIDTH == 256
    assert Packer(64, 16).row_width([40]) == 64, "a small context stays as it is, and so do its figures"
    assert packer.row_width([8190]) == CONTEXT
    assert packer.row_width([]) == 256


def test_one_long_example_widens_only_the_rows_of_its_neighbours():
    found = [(len(numbers), width) for numbers, width in Packer(CONTEXT, 16).widths([100] * 70 + [5000] + [300] * 100)]
    assert found == [(64, 256), (64, 5056), (43, 320)]


def test_a_step_of_conversations_is_not_as_wide_as_the_context():
    examples = [example(100 + 10 * i, i) for i in range(31)]
    batches = sft_batches(examples, Packer(CONTEXT, 16))
    assert max(batch.idx_BT.size(1) for batch in batches) <= 448
    assert max(batch.idx_BT.size(0) for batch in batches) <= 16


@torch.no_grad()
def test_the_width_of_rows_changes_no_loss():
    examples = [example(30 + 17 * i, i) for i in range(20)]
    torch.manual_seed(0)
    objective = SftObjective(GPT(CONFIG).double().eval(), nullcontext)
    losses = []
    for longest in (CONTEXT, 353, 400):
        batches = sft_batches(examples, Packer(longest, 4))
        losses.append(sum(float(objective(batch)) for batch in batches))
    by_hand = sum(float(objective(sft_batches([one], Packer(CONTEXT, 1))[0])) for one in examples)
    assert losses == pytest.approx([by_hand] * 3, rel=1e-12)


def test_replies_to_one_prompt_still_share_it():
    prompt = ids_of(300, 0)
    exchanges = [(prompt, ids_of(40, seed)) for seed in range(8)]
    assert exchange_sizes(exchanges) == [299 + 8 * 41] * 8, "less than two of them take"
    ((group, width),) = Packer(CONTEXT, 16).group_exchanges(exchanges)
    assert (group, width) == (list(range(8)), 640)
    short = [([1, 2], ids_of(200, seed)) for seed in range(36)]
    assert max(width for _, width in Packer(CONTEXT, 16).group_exchanges(short)) == 448, "no wider than two replies"


def test_pairs_answers_and_replies_are_not_as_wide_as_the_context():
    packer = Packer(CONTEXT, 4)
    pairs = [Pair((ids_of(200, i), ids_of(90, i)), (ids_of(200, i), ids_of(60, i + 1))) for i in range(12)]
    assert max(batch.scored.idx_BT.size(1) for batch in dpo_batches(pairs, packer)) <= 384
    answers = [Ranked((), [pair.chosen, pair.rejected], ["", ""], [(0, 1, 1.0)]) for pair in pairs]
    assert max(batch.idx_BT.size(1) for batch in pair_batches(answers, packer)) <= 384
    replies = [Reply(*pair.chosen, True, "") for pair in pairs]
    groups = list(scored_groups(replies, packer))
    assert sorted(number for group, _ in groups for number in group) == list(range(12))
    assert max(scored.idx_BT.size(1) for _, scored in groups) <= 320
    torch.manual_seed(0)
    policy = Policy(GPT(CONFIG).double().eval(), 16, nullcontext)
    sums = {
        n: float(s) for group, scored in groups for n, s in zip(group, scored.sums(policy.score(scored)), strict=True)
    }
    for number, reply in enumerate(replies):
        ((_, alone),) = scored_groups([reply], Packer(CONTEXT, 1))
        assert sums[number] == pytest.approx(float(alone.sums(policy.score(alone))[0]), rel=1e-12)


@pytest.fixture
def chats(tmp_path):
    letters = CharTokenizer("\n abcdefghijk")
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, block_size=1024, vocab_size=letters.vocab_size, position="learned")
    save_bundle(tmp_path / "base", GPT(config), letters)
    rows = [{"messages": [{"role": "user", "content": "abc " * 20}, {"role": "assistant", "content": "dab " * (9 + i)}]}
            for i in range(20)]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def sft_words(folder, *words: str) -> list[str]:
    fixed = ["--data.path", str(folder / "chats.jsonl"), "--epochs", "1", "--batch-size", "6", "--n-replies", "0"]
    return [str(folder / "base"), "--out-dir", str(folder / "out"), *fixed, "--runtime.device", "cpu", *words]


def test_max_length_and_context_are_options_of_a_stage(chats, capsys):
    assert main(sft_words(chats, "--max-length", "120", "--context", "500")) == 0
    assert "lost" in capsys.readouterr().err, "what is longer is shortened, and counted"
    assert load_bundle(chats / "out").config.block_size == 500
    assert load_bundle(chats / "out").model.positions.wpe.weight.shape == (500, 16)


@pytest.mark.parametrize(("words", "said"), [
    (("--max-length", "1025"), "max_length is 1025; the model's context is 1,024 tokens: give"),
    (("--max-length", "501", "--context", "500"), "max_length is 501; the model's context is 500 tokens"),
    (("--max-length", "0"), "max_length is 0"),
    (("--context", "2000"), "context is 2000; that of"),
])  # fmt: skip
def test_lengths_that_cannot_be_are_refused(chats, words, said):
    with pytest.raises(ValueError, match=said):
        main(sft_words(chats, *words))
    assert not (chats / "out" / "bundle").exists()
