"""What must hold whatever is aligned: masks, normalisation, first ratios, ln 2, advantages, gradients."""

import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from groundling.align.chat_vocab import with_rows
from groundling.align.data import held_out
from groundling.align.dpo import DpoObjective, Pair, dpo_batches, dpo_loss, with_reference
from groundling.align.logprobs import Policy, score_rows
from groundling.align.lora import LoraConfig, adapt, merged_state
from groundling.align.replies import Reply
from groundling.align.reward.model import RewardModel, pack_replies, rewards_of, scores_of
from groundling.align.reward.train import bradley_terry
from groundling.align.rl.grpo import group_advantages
from groundling.align.rl.objective import ClippedObjective
from groundling.align.rl.ppo import (
    KlControl,
    ValueBatch,
    ValueObjective,
    explained_variance,
    generalized_advantages,
    token_rewards,
)
from groundling.align.rl.rollout import deduplicated_rewards, policy_batches, reply_logprobs, whitened
from groundling.align.rl.rounds import Round
from groundling.align.sft import SftObjective, sft_batches
from groundling.data.examples.encoding import Encoded
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.loss import IGNORE
from groundling.model.packer import Packer, groups_of_rows, packed_size
from groundling.model.packing import pack, plan
from groundling.system.runtime import unwrap
from groundling.text.chat.messages import Message
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.step import train_step

T, V = 24, 13


def plainly() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(3)
    return GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=T, vocab_size=V)).double().eval()


def sequences(n: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    draw = torch.Generator().manual_seed(seed)

    def ids(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (1,), generator=draw))
        return torch.randint(V, (length,), generator=draw).tolist()

    return [(ids(1, 12), ids(1, 12)) for _ in range(n)]


@given(st.lists(st.integers(1, T), min_size=1, max_size=30))
def test_packed_sequences_neither_overlap_nor_get_lost(lengths: list[int]) -> None:
    packing = plan(lengths, T)
    taken = torch.zeros(packing.shape)
    for (row, start), length in zip(packing.placements, lengths, strict=True):
        taken[row, start : start + length] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(lengths)


@given(st.lists(st.integers(1, T), min_size=1, max_size=30), st.integers(1, 4))
def test_groups_keep_the_order_and_never_take_more_rows(lengths: list[int], n_rows: int) -> None:
    groups = groups_of_rows(lengths, T, n_rows)
    assert [i for group in groups for i in group] == list(range(len(lengths)))
    assert all(plan([lengths[i] for i in group], T).shape[0] <= n_rows for group in groups)


def test_the_target_of_a_sequences_last_position_is_none() -> None:
    rows = pack([[1, 2, 3], [4, 5], [6]], 6)
    assert rows.packing.collect(rows.targets_BT)[0].tolist() == [2, 3, IGNORE]
    assert rows.packing.collect(rows.targets_BT)[1].tolist() == [5, IGNORE]
    assert rows.packing.collect(rows.idx_BT)[2].tolist() == [6]


def test_fine_tuning_trains_on_assistant_tokens_only(gpt: GPT) -> None:
    """Packed, the loss is the sum of the sequences' own, each over what was said."""
    examples = [Encoded([*a, *b], [False] * len(a) + [True] * len(b)) for a, b in sequences(9)]
    objective = SftObjective(gpt, plainly)
    batches = sft_batches(examples, Packer(T, 2))
    together = sum(objective(batch).item() for batch in batches)
    alone = 0.0
    for example in examples:
        logprobs_TV = gpt(torch.tensor([example.ids]))[0].log_softmax(-1)
        alone -= sum(
            logprobs_TV[place - 1, id].item()
            for place, (id, said) in enumerate(zip(example.ids, example.loss_mask, strict=True))
            if said
        )
    assert together == pytest.approx(alone, rel=1e-10)
    assert sum(batch.n_targets for batch in batches) == sum(sum(example.loss_mask) for example in examples)


def test_how_a_batch_is_cut_into_rows_changes_no_update() -> None:
    """A mean of the micro-batches' means would: their counts differ."""
    examples = [Encoded([*a, *b], [False] * len(a) + [True] * len(b)) for a, b in sequences(12, seed=1)]
    after = []
    for n_rows in (1, 3, 100):
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=T, vocab_size=V)).double()
        stats = train_step(
            SftObjective(gpt, plainly), sft_batches(examples, Packer(T, n_rows)), Optimizers(gpt, OptimConfig(lr=1e-2))
        )
        after.append((stats.loss, torch.cat([p.flatten() for p in gpt.parameters()])))
    for loss, weights in after[1:]:
        assert loss == pytest.approx(after[0][0], rel=1e-10)
        torch.testing.assert_close(weights, after[0][1], rtol=1e-7, atol=1e-10)


def test_a_batch_without_reply_tokens_changes_nothing(gpt: GPT) -> None:
    before = [p.clone() for p in gpt.parameters()]
    batches = sft_batches([Encoded([1, 2, 3], [False] * 3)], Packer(T, 2))
    stats = train_step(SftObjective(gpt, plainly), batches, Optimizers(gpt, OptimConfig(weight_decay=0.0)))
    assert (stats.loss, stats.grad_norm) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, gpt.parameters(), strict=True))


def test_replies_are_scored_as_alone(gpt: GPT) -> None:
    """Only what was said counts, among what can be said."""
    policy, pairs = Policy(gpt, 11, plainly), [([1, 2], [3, 10]), ([4], [5, 6, 7]), ([1, 2, 3, 4, 5], [10])]
    scored = score_rows(pairs, T)
    sums = scored.sums(policy.score(scored))
    for (prompt, said), found in zip(pairs, sums, strict=True):
        logprobs = gpt(torch.tensor([[*prompt, *said]]))[0, :, :11].log_softmax(-1)
        expected = sum(logprobs[len(prompt) - 1 + i, id].item() for i, id in enumerate(said))
        assert float(found) == pytest.approx(expected, rel=1e-9)


def test_replies_that_share_a_prompt_are_scored_as_alone(gpt: GPT) -> None:
    """As many as fit read it once; a prompt of one id, and a group that is longer than a row, work too."""
    shared = [([1, 2, 3], [n % 10 + 1] * (n % 4 + 1)) for n in range(9)]
    pairs = [*shared, ([7], [1, 2]), ([7], [3]), ([1, 2, 3], [5, 5]), ([1, 2], [10])]
    assert packed_size(pairs, T) < sum(len(prompt) + len(said) for prompt, said in pairs)
    policy, scored = Policy(gpt, V, plainly), score_rows(pairs, T)
    values = scored.reply_values(policy.score(scored))
    for pair, found in zip(pairs, values, strict=True):
        alone = score_rows([pair], T)
        torch.testing.assert_close(found, alone.reply_values(policy.score(alone))[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scored.spread_reply_values(values), policy.score(scored).float())
    for n_rows in (1, 2):
        groups = [group for group, _ in Packer(T, n_rows).group_exchanges(pairs)]
        assert [i for group in groups for i in group] == list(range(len(pairs)))
        assert all(score_rows([pairs[i] for i in group], T).idx_BT.size(0) <= n_rows for group in groups)


@pytest.mark.parametrize("n_rows", [1, 2, 50])
def test_the_first_ratio_is_one(gpt: GPT, n_rows: int) -> None:
    policy = Policy(gpt, V, plainly)
    replies = [Reply(prompt, said, True, "") for prompt, said in sequences(10, seed=2)]
    old = reply_logprobs(policy, replies, Packer(T, 3))
    round_ = Round(replies, [0.0] * 10, old, old, [torch.ones(len(r.ids)) for r in replies])
    objective = ClippedObjective(policy, 0.2)
    for batch in policy_batches(round_, range(10), Packer(T, n_rows)):
        loss = objective(batch)
        assert loss.item() == pytest.approx(-batch.n_targets, abs=1e-5)  # the advantages are 1
    assert objective.pop_metrics()["first_ratio_off"] < 1e-6
    assert round_.kl() == 0


def test_beyond_the_clip_the_gradient_is_zero(gpt: GPT) -> None:
    """The gradient is zero where the ratio left the clip in the advantage's direction, and not where it went astray."""
    policy = Policy(gpt, V, plainly)
    reply = Reply([1, 2], [3, 4, 5], True, "")
    now = reply_logprobs(policy, [reply], Packer(T, 4))
    for shift, advantage, moves in ((-1.0, 1.0, False), (-1.0, -1.0, True), (1.0, -1.0, False), (1.0, 1.0, True)):
        old = [now[0] + shift]  # the ratio is exp(-shift)
        round_ = Round([reply], [0.0], old, old, [torch.full((3,), advantage)])
        (batch,) = policy_batches(round_, [0], Packer(T, 4))
        gpt.zero_grad()
        ClippedObjective(policy, 0.2)(batch).backward()
        length = sum(float(p.grad.abs().sum()) for p in gpt.parameters() if p.grad is not None)
        assert (length > 0) == moves


def test_where_policy_and_reference_are_one_the_loss_is_ln_2(gpt: GPT) -> None:
    policy = Policy(gpt, V, plainly)
    sides = sequences(16, seed=4)
    pairs = [Pair((a[0], a[1]), (a[0], b[1])) for a, b in zip(sides[0::2], sides[1::2], strict=True)]
    known = with_reference(policy, pairs, Packer(T, 3))
    for smoothing in (0.0, 0.2):
        objective = DpoObjective(policy, "sigmoid", 0.1, smoothing)
        losses = [objective(batch) for batch in dpo_batches(known, Packer(T, 2))]
        assert sum(losses).item() == pytest.approx(len(pairs) * math.log(2), rel=1e-5)
    ipo = DpoObjective(policy, "ipo", 0.1, 0.0)
    losses = [ipo(batch) for batch in dpo_batches(known, Packer(T, 2))]
    assert sum(losses).item() == pytest.approx(len(pairs) * 25, rel=1e-3)


def test_label_smoothing_is_the_mean_over_wrong_and_right_labels() -> None:
    gaps = torch.linspace(-3, 3, 7)
    right, wrong = dpo_loss(gaps, "sigmoid", 0.3), dpo_loss(-gaps, "sigmoid", 0.3)
    torch.testing.assert_close(dpo_loss(gaps, "sigmoid", 0.3, 0.1), 0.9 * right + 0.1 * wrong)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0, 1))
def test_advantages_are_those_of_the_sum_written_out(rewards: list[float], lambda_: float) -> None:
    """GAE against its definition: sums over all that follows, not a recursion."""
    values = torch.linspace(-1, 2, len(rewards))
    found = generalized_advantages(torch.tensor(rewards), values, lambda_)
    n = len(rewards)
    deltas = [rewards[t] + (float(values[t + 1]) if t + 1 < n else 0.0) - float(values[t]) for t in range(n)]
    expected = [sum(lambda_ ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_lambda_1_is_the_return_minus_the_value() -> None:
    rewards, values = torch.tensor([0.0, -1.0, 3.0]), torch.tensor([0.5, 0.2, 7.0])
    found = generalized_advantages(rewards, values, 1.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 2.0, 3.0]) - values)


@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8), st.floats(-10, 10), st.floats(0.1, 10))
def test_moving_and_scaling_a_groups_rewards_changes_no_advantage(
    rewards: list[float], by: float, times: float
) -> None:
    values = torch.tensor(rewards, dtype=torch.float64).view(2, 4)
    if values.std(1).min() < 1e-2:  # what differs by less counts as equal
        return
    moved = values.clone()
    moved[1] = moved[1] * times + by  # the other group's advantages stay too
    a, b = (group_advantages(each.flatten(), 4, divide_by_spread=True) for each in (values, moved))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("divide_by_spread", [True, False])
def test_rewards_that_differ_by_rounding_give_no_advantage(divide_by_spread: bool) -> None:
    """A policy that always says the same has scores that differ in their last bits, by their place in a batch."""
    noise = 1e-6 * torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert group_advantages(0.3 + noise, 4, divide_by_spread=divide_by_spread).tolist() == [0] * 8


def test_equal_replies_get_equal_rewards() -> None:
    """And is asked about once."""
    replies = [Reply([1], [2, 3], True, "a"), Reply([1], [4], True, "b"), Reply([1], [2, 3], True, "a")]
    asked = list[Reply]()

    def rewards(different: Sequence[Reply]) -> list[float]:
        asked.extend(different)
        return [float(number) for number, _ in enumerate(different)]

    assert deduplicated_rewards(rewards, replies) == [0, 1, 0]
    assert len(asked) == 2
    other_prompt = [replies[0], Reply([9], [2, 3], True, "a")]
    assert deduplicated_rewards(rewards, other_prompt) == [0, 1]


def test_token_rewards_are_the_kl_penalty_and_a_final_reward() -> None:
    """Counted by hand: at 0.5 a nat, an id that gained 0.2 nats costs 0.1, and one that lost them brings as much."""
    new, old = torch.tensor([-1.0, -2.0]), torch.tensor([-1.2, -1.8])
    torch.testing.assert_close(token_rewards(3.0, new, old, 0.5), torch.tensor([-0.1, 3.1]))


def test_a_value_is_updated_no_further_than_the_clip(gpt: GPT) -> None:
    """The larger of the two squares counts, so that a guess beyond the clip learns nothing by moving on."""
    model = RewardModel(gpt, scale=1.0)  # guesses 0 everywhere
    pairs = [([1, 2], [3, 4])]
    scored = score_rows(pairs, T)

    def loss(old: float, came: float) -> float:
        rows = [scored.spread_reply_values([torch.full((2,), value)]) for value in (old, came)]
        return ValueObjective(model, 0.2, plainly)(ValueBatch(scored, *rows)).item() / 2

    assert loss(0.0, 1.0) == pytest.approx(0.5 * 1.0)  # unmoved: both squares are 1
    assert loss(1.0, 0.5) == pytest.approx(0.5 * 0.25)  # moved from 1 to 0: near is 0.8, squares 0.25 and 0.09
    assert loss(1.0, 0.0) == pytest.approx(0.5 * 0.64)  # all is right, but the clip allows 0.8 only
    model.head_bias.grad = None
    rows = [scored.spread_reply_values([torch.full((2,), value)]) for value in (1.0, 0.0)]
    ValueObjective(model, 0.2, plainly)(ValueBatch(scored, *rows)).backward()
    assert float(model.head_bias.grad.abs()) == 0


def test_explained_variance_is_1_for_perfect_values_and_0_for_constant_ones() -> None:
    came = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(came + 5, came) == pytest.approx(1)  # a constant is not counted
    assert explained_variance(torch.zeros(3), came) == pytest.approx(0)
    assert explained_variance(-came, came) == pytest.approx(-3)
    assert explained_variance(came, torch.ones(3)) == 0


def test_the_kl_of_grpo_is_the_positive_estimate(gpt: GPT) -> None:
    """exp(gap) - gap - 1 of each id, gap = log p_ref - log p: zero and flat where both are one, and never negative."""
    policy, reply = Policy(gpt, V, plainly), Reply([1, 2], [3, 4, 5], True, "")
    now = reply_logprobs(policy, [reply], Packer(T, 4))
    gaps = torch.tensor([0.3, -0.7, 0.0])
    round_ = Round([reply], [0.0], now, [now[0] + gaps], [torch.zeros(3)])
    (batch,) = policy_batches(round_, [0], Packer(T, 4))
    loss = ClippedObjective(policy, 0.2, kl_coef=0.5)(batch)
    assert loss.item() == pytest.approx(0.5 * sum(math.exp(g) - g - 1 for g in gaps.tolist()), rel=1e-5)
    assert loss.item() > 0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0, 0.99))
def test_no_prompt_is_in_both_splits(numbers: list[int], part: float) -> None:
    asked = [(Message("user", str(number)),) for number in numbers]
    kept = held_out(asked, part)
    sides = [{messages for messages, is_kept in zip(asked, kept, strict=True) if is_kept == side} for side in (0, 1)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) <= len(sides[0])
    assert bool(sides[1]) == (part > 0 and len(set(asked)) > 1)


def test_equal_rewards_give_no_advantage() -> None:
    assert group_advantages(torch.full((8,), 0.3), 4, divide_by_spread=True).tolist() == [0] * 8
    assert torch.cat(whitened([torch.full((3,), 2.0), torch.full((2,), 2.0)])).tolist() == [0] * 5
    assert whitened([torch.empty(0)])[0].tolist() == []


def test_bradley_terrys_gradient_is_that_of_finite_differences() -> None:
    scores = torch.tensor([0.3, -1.2, 0.9], dtype=torch.float64, requires_grad=True)
    pairs, wins = torch.tensor([[0, 1], [2, 1], [0, 2]]), torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: bradley_terry(s, pairs, wins), scores)
    tie = bradley_terry(torch.zeros(2), torch.tensor([[0, 1]]), torch.tensor([0.5]))
    assert float(tie) == pytest.approx(math.log(2))


def test_a_reward_does_not_depend_on_the_batch(gpt: GPT) -> None:
    model = RewardModel(gpt)
    with torch.no_grad():
        model.head_weight.normal_(generator=torch.Generator().manual_seed(0))
        model.head_bias.fill_(0.5)
    pairs = sequences(9, seed=6)
    crowd = scores_of(model, pairs, plainly, max_rows=2)
    assert crowd == pytest.approx([scores_of(model, [pair], plainly)[0] for pair in pairs], rel=1e-9)
    rows, owners_BT = pack_replies(pairs, T)
    ones = rewards_of(torch.ones(rows.idx_BT.shape), owners_BT, len(pairs))
    assert ones.tolist() == [len(said) for _, said in pairs]


@pytest.mark.parametrize("tie", [True, False])
def test_merged_adapters_equal_the_adapted_model(tie: bool) -> None:
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=T, vocab_size=V, tie_weights=tie)
    gpt = GPT(config).double()
    plain = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    adapt(gpt, LoraConfig(rank=2), V - 3, seed=0)
    idx = torch.randint(V, (2, T))
    before = gpt(idx)
    torch.testing.assert_close(before, _built(config, plain)(idx))  # B is zero
    optimizers = Optimizers(gpt, OptimConfig(lr=1e-2))
    for _ in range(2):
        examples = [Encoded(row.tolist(), [True] * T) for row in idx]
        train_step(SftObjective(gpt, plainly), sft_batches(examples, Packer(T, 2)), optimizers)
    merged = merged_state(gpt)
    torch.testing.assert_close(gpt(idx), _built(config, merged)(idx))
    assert not torch.allclose(gpt(idx), before)
    assert torch.equal(merged["wte.weight"][: V - 3], plain["wte.weight"][: V - 3])  # known words stay as they are
    assert not torch.equal(merged["wte.weight"][V - 3 :], plain["wte.weight"][V - 3 :])
    if tie:
        assert torch.equal(merged["wte.weight"], merged["lm_head.weight"])


def test_a_longer_vocabulary_keeps_the_logits_of_known_ids(gpt: GPT) -> None:
    longer = with_rows(gpt, V, V + 4)
    idx = torch.randint(V, (2, T))
    torch.testing.assert_close(longer(idx)[..., :V], gpt(idx))
    assert longer(idx).size(-1) == V + 4
    shorter = with_rows(gpt, 10, 14)  # four of the thirteen known to the tokenizer? no: ten, and three are padding
    assert shorter.config.vocab_size == 14
    torch.testing.assert_close(shorter(idx % 10)[..., :10], gpt(idx % 10)[..., :10])


def _built(config: GPTConfig, state: dict[str, torch.Tensor]) -> GPT:
    model = GPT(config).double()
    unwrap(model).load_state_dict(state)
    return model


def test_the_kl_coefficient_changes_by_at_most_two_percent() -> None:
    control = KlControl(0.1, target=6.0)
    for kl, factor in ((600.0, 1.02), (6.6, 1.01), (6.0, 1.0), (5.4, 0.99), (0.0, 0.98)):
        before = control.coef
        control.update(kl)
        assert control.coef == pytest.approx(before * factor)
    fixed = KlControl(0.1, target=None)
    fixed.update(600.0)
    assert fixed.coef == 0.1
