"""Advice of the stages after pretraining, of the ladder, and of the safety stage, followed."""

import dataclasses
import io
import json
import shlex
import shutil
import signal

import pytest
import torch
from advicekit import follows, parsed

from groundling.align import sft
from groundling.align.example_loader import ExampleFeed
from groundling.align.pipeline import chatgpt as pipeline
from groundling.align.preferences.judgement import Candidate, Judgement
from groundling.align.preferences.store import Rankings
from groundling.align.report import policies
from groundling.align.report.collect import read_stage_summary
from groundling.align.reward.model import RewardModel, first_blocks, save_reward_model
from groundling.bundle import load_bundle, save_bundle
from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s4_multi_head import MultiHeadModel
from groundling.ladder.s9_production import fold_bias
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.storage.manifest import write_manifest
from groundling.system import distributed
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens
from groundling.train import loop

LETTERS = CharTokenizer(" abcde")
FAST = ("--runtime.device", "cpu", "--runtime.dtype", "float32", "--log-every", "1")


@pytest.fixture
def talker(tmp_path):
    """A model that answers."""
    torch.manual_seed(0)
    chat = RoleTokens.after(LETTERS.vocab_size)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=48, vocab_size=LETTERS.vocab_size + 4)
    save_bundle(tmp_path / "talker", GPT(config), LETTERS, chat=chat)
    return tmp_path / "talker"


@pytest.fixture
def conversations(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "ab" * n}, {"role": "assistant", "content": "cde"}]}
            for n in range(1, 9)]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path / "c.jsonl"


@follows(
    "try again with lower learning rates, for example: {} --overwrite",
    "{} already holds a run; {}remove it (--overwrite), or choose another --out-dir",
)
def test_a_stage_that_diverges(advised, talker, conversations, tmp_path):
    words = ["sft", talker, "--data.path", conversations, "--out-dir", tmp_path / "sft", *FAST, "--n-replies", "0"]
    words += ["--schedule.warmup-steps", "0", "--schedule.kind", "constant", "--batch-size", "2", "--epochs", "1"]
    said = advised.refused(*words, "--optim.lr", "1e2", "--optim.weight-decay", "0")
    advised.refused(*words)
    flags = shlex.split(said.partition("for example: ")[2])
    assert flags[0] == "--optim.lr"
    advised.works(*words, *flags)
    advised.works(*words, "--out-dir", tmp_path / "another")


@pytest.fixture
def stopped(talker, conversations, tmp_path, monkeypatch):
    """The words of a stage, and those of SIGTERM after its second step."""
    words = ["sft", talker, "--data.path", conversations, "--out-dir", tmp_path / "sft", *FAST, "--n-replies", "0"]
    words += ["--batch-size", "2", "--epochs", "2"]

    def stop(*more):
        with monkeypatch.context() as patches:
            step, stats = loop.train_step, []

            def second(*args, **named):
                stats.append(step(*args, **named))
                if len(stats) == 2:
                    signal.raise_signal(signal.SIGTERM)
                return stats[-1]

            patches.setattr(loop, "train_step", second)
            return sft.main([str(word) for word in (*words[1:], *more)])

    return words, stop


@follows(
    "groundling {} --resume --out-dir {}",
    "{} stopped as asked; resume with: {}",
    "{} has finished, and these settings are new: {}; start it again with --overwrite, or choose another --out-dir",
    "{} holds a run of {}; choose another --out-dir",
    "{} holds a run of {}; resume it with groundling {}",
    "{} holds no run to resume; start it without --resume",
    "{} is a stage that was interrupted before it saved a model; continue it: the same command with --resume",
)
def test_a_stage_that_was_interrupted(advised, stopped, talker, tmp_path, capfd):
    words, stop = stopped
    assert stop() == 128 + signal.SIGTERM
    said = capfd.readouterr().err
    advised.hears(said)
    (tmp_path / "sft" / "bundle").rename(tmp_path / "aside")
    advised.refused("sample", tmp_path / "sft")
    advised.refused("dpo", "--resume", "--out-dir", tmp_path / "sft")
    command = shlex.split(said.rpartition("resume with: groundling ")[2])
    assert command[0] == "sft"
    advised.works(*command)
    advised.works(*words, "--resume")
    more = advised.refused(*command, "--epochs", "3")
    assert "epochs: 2.0 -> 3.0" in more
    for name in ("env.json", "run.toml"):
        (tmp_path / "sft" / name).unlink()
    advised.refused(
        "dpo", talker, "--preferences", tmp_path / "none", "--resume", "if-present", "--out-dir", tmp_path / "sft"
    )
    advised.works(*words, "--epochs", "3", "--overwrite")
    advised.works(*words, "--out-dir", tmp_path / "another")
    advised.refused(*words, "--out-dir", tmp_path / "third", "--resume")
    advised.works(*words, "--out-dir", tmp_path / "third")


@follows(
    "{} with other settings ({}); leave these flags out to take its own run.toml, "
    "or start a new run in another --out-dir",
    "{} makes {} steps, and {} has made {} already; give more, or start a new run in another --out-dir",
    "the models or the examples are not those that {} was started with; "
    "resume with those, or start a new run in another --out-dir",
    "{}; give all settings of the run as flags",
    "resume from its last checkpoint with lower learning rates: {} {}",
)
def test_a_stage_that_cannot_go_on(advised, stopped, talker, conversations, tmp_path):
    words, stop = stopped
    stop()
    shutil.copytree(tmp_path / "sft", tmp_path / "copy")
    resume = ["sft", "--resume", "--out-dir", tmp_path / "sft"]
    advised.refused(*resume, "--batch-size", "4")
    advised.refused(*resume, "--epochs", "0.1")
    (tmp_path / "d.jsonl").write_text(conversations.read_text(encoding="utf-8").replace("cde", "edc"), encoding="utf-8")
    advised.refused(*resume, "--data.path", tmp_path / "d.jsonl")
    (tmp_path / "sft" / "run.toml").write_text("epochs = [", encoding="utf-8")
    advised.refused(*resume)
    said = advised.refused(*words, "--resume", "--optim.lr", "1e3", "--schedule.kind", "constant")
    command = shlex.split(said.rpartition("lower learning rates: groundling ")[2])
    advised.works(*command, "--optim.lr", "1e-3")
    advised.works("sft", "--resume", "--out-dir", tmp_path / "copy", "--epochs", "2.5")
    advised.works(*words, "--data.path", tmp_path / "d.jsonl", "--batch-size", "4", "--out-dir", tmp_path / "another")


@follows("start again")
def test_a_stage_that_lost_a_rank(advised, talker, conversations, tmp_path):
    words = ["sft", talker, "--data.path", conversations, "--out-dir", tmp_path / "sft", *FAST, "--n-replies", "0"]
    advised.works(*words, "--epochs", "0.5")
    advised.hears("start again")
    advised.works(*words, "--epochs", "0.5", "--overwrite")
    with distributed.process_group(torch.device("cpu")):
        assert distributed.world_size() == 1


@follows("batch_size {} does not divide over {} ranks; make it a multiple of {}")
def test_examples_over_ranks(advised, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    advised.raises(lambda: ExampleFeed(10, 3, lambda numbers: [], 0))
    advised.done(ExampleFeed(10, 4, lambda numbers: [], 0))


@pytest.mark.slow
@follows(
    "{} holds stages made with {}, and now it is {}; choose another --out-dir",
    "{} has rankings of an earlier model's replies; move it elsewhere",
    "\nall stages in {} s; chat with one: groundling chat {}",
)
def test_a_small_chatgpt(advised, talker, tmp_path, monkeypatch, capfd):
    """That its stages run is shown in tests/align/test_chatgpt.py; here they only end well."""
    real = pipeline.steps
    ending_well = lambda config: [dataclasses.replace(step, run=lambda config: 0) for step in real(config)]  # noqa: E731
    monkeypatch.setattr(pipeline, "steps", ending_well)
    words = ["chatgpt", str(talker), "--out-dir", str(tmp_path / "all of it"), "--max-new-tokens", "8"]
    said = advised.works(*words)
    command = shlex.split(said.rpartition("chat with one: groundling ")[2])
    assert parsed(command).path == str(tmp_path / "all of it" / "ppo-1")
    for line in said.splitlines():  # each stage is shown as it would be typed
        if line.startswith("$ groundling "):
            assert parsed(shlex.split(line)[2:]) is not None
    advised.refused(*words, "--gold", "verse")
    advised.works(*words, "--gold", "verse", "--out-dir", tmp_path / "another")
    step = next(step for step in real(parsed(words)) if step.verb == pipeline.RANK)
    monkeypatch.setattr(pipeline, "has_rankings", lambda path: path.exists())
    rankings = step.output
    rankings.write_bytes(b"")
    advised.refused(*words)
    rankings.rename(tmp_path / "elsewhere")
    advised.works(*words)


@pytest.fixture
def judge(talker, tmp_path):
    """Makes reward models: `judge(bundle, name)` is a folder."""

    def write(bundle, name):
        save_reward_model(tmp_path / name, RewardModel(bundle.model), bundle, {})
        return tmp_path / name

    return write


@follows(
    "{} is not a reward model (it has no {}); `groundling reward` trains one",
    "the reward model {} has another chat template or tokenizer than the policy, or a shorter context; "
    "give one of the policy's family with --value-from",
    "there is no reward function {}: {}; give MODULE:FUNCTION",
)
def test_what_judges(advised, talker, judge, conversations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_rewards.py").write_text("def length(prompt, reply):\n    return len(reply)\n", encoding="utf-8")
    words = ["ppo", talker, "--data.path", conversations, "--out-dir", tmp_path / "ppo", *FAST, "--overwrite"]
    words += ["--steps", "1", "--replies", "2", "--minibatches", "1", "--max-new-tokens", "4"]
    advised.refused(*words, "--reward", "my_rewards:width")
    advised.works(*words, "--reward", "my_rewards:length")
    advised.refused(*words, "--reward", talker)
    with Rankings(tmp_path / "r.sqlite") as rankings:
        for number in range(12):
            rankings.add(ranked(number))
    advised.works("reward", talker, "--rankings", tmp_path / "r.sqlite", "--out-dir", tmp_path / "judge", *FAST,
                  "--held-out", "0.3", "--epochs", "1", "--batch-size", "4")  # fmt: skip
    advised.works(*words, "--reward", tmp_path / "judge")
    bundle = load_bundle(talker)
    other = dataclasses.replace(bundle, tokenizer=CharTokenizer(" abcdf"))
    advised.refused(*words, "--reward", "my_rewards:length", "--value-from", judge(other, "foreign"))
    advised.works(*words, "--reward", "my_rewards:length", "--value-from", tmp_path / "judge")


def ranked(number):
    return Judgement(
        key=f"k{number}",
        messages=(Message("user", "abcde"[number % 5] * (number % 7 + 1)),),
        candidates=(Candidate("eee", "one"), Candidate("abc", "two")),
        shown=(0, 1),
        choice=((0,), (1,)),
        rater="ann",
        time="2026-01-02T03:04:05+00:00",
    )


@follows(
    "{} is not a finished run of a stage (no readable {}); run the stage first",
    "no example is left to train on; the counts above say why",
    "{} has {} runs, and seeds are {}; give one run, or one for each",
)
def test_stages_that_others_need(advised, talker, conversations, tmp_path):
    advised.raises(lambda: read_stage_summary(tmp_path / "sft"))
    words = ["sft", talker, "--out-dir", tmp_path / "sft", *FAST, "--n-replies", "0", "--epochs", "0.5"]
    advised.works(*words, "--data.path", conversations)
    advised.done(read_stage_summary(tmp_path / "sft"))
    advised.raises(lambda: ExampleFeed(0, 3, lambda numbers: [], 0))
    unknown = tmp_path / "u.jsonl"
    unknown.write_text(conversations.read_text(encoding="utf-8").replace("cde", "XYZ"), encoding="utf-8")
    said = advised.refused(*words, "--data.path", unknown, "--overwrite")
    advised.done("the tokenizer cannot encode them" in said)  # the counts
    seeds = parsed(["align-report", "sft", "--runs", "a", "b"]).seeds
    advised.hears(f"ppo has 2 runs, and seeds are {len(seeds)}; give one run, or one for each")
    advised.done(parsed(["align-report", "sft", "--runs", "a", "b", "c"]).runs and len(seeds) == 3)


@follows("{} has another tokenizer, chat template or context than the fine-tuned model; compare models of one family")
def test_models_of_another_family(advised, talker):
    bundle = load_bundle(talker)
    other = dataclasses.replace(bundle, tokenizer=CharTokenizer(" abcdf"))
    advised.raises(lambda: policies.require_same_ids(bundle, other, "ppo"))
    policies.require_same_ids(bundle, load_bundle(talker), "ppo")
    advised.done()


@follows("this process has no user name; give a rater name: --rater NAME")
def test_a_rater_without_a_name(advised, tmp_path, monkeypatch):
    def nobody():
        raise OSError("no name")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    texts = [{"text": "a", "model": "one"}, {"text": "b", "model": "two"}]
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "Speak.", "candidates": texts}), encoding="utf-8")
    words = ("rank", tmp_path / "r.sqlite", "--candidates", tmp_path / "q.jsonl")
    advised.refused(*words)
    advised.works(*words, "--rater", "ann")


@follows("n_layer is {}, and the model has {} blocks; keep at least 1 and not more than these")
def test_blocks_to_keep(advised, talker):
    model = load_bundle(talker).model
    advised.raises(lambda: first_blocks(model, 3))
    advised.done(first_blocks(model, 2) is model and first_blocks(model, 1).config.n_layer == 1)


@follows(
    "got {} positions, but this model has only {}; pass idx[:, -{}:]",
    "n_embd={} cannot be shared by n_head={} heads; choose a multiple",
    "the bias of lm_head cannot be folded into the final norm (it misses by {}); with vocab_size {} and n_embd {}, "
    "make n_embd at least vocab_size",
)
def test_rungs(advised):
    model = EmbeddingModel(vocab_size=5, n_embd=8, block_size=4)
    idx = torch.zeros(1, 6, dtype=torch.long)
    advised.raises(lambda: model(idx))
    advised.done(model(idx[:, -4:]).shape == (1, 4, 5))
    advised.raises(lambda: MultiHeadModel(65, n_embd=10, n_head=4))
    advised.done(MultiHeadModel(65, n_embd=12, n_head=4))
    torch.manual_seed(0)
    advised.raises(lambda: fold_bias(torch.randn(9, 4), torch.randn(9)))
    advised.done(fold_bias(torch.randn(9, 9), torch.randn(9)).shape == (9,))


@pytest.mark.slow
@follows(
    "{} already exists and was not changed; choose another name",
    "there is nothing to evaluate; give --rules or --classifier",
    "{} is a classifier of version {}, and this groundling reads {}; train it again",
    "{}: write [[rule]], not [rule]",
    "{} may match more than {} characters; bound it: {0,50} in place of *",
)
def test_safety(advised, tmp_path):
    labelled = tmp_path / "l.jsonl"
    rows = [
        {"text": f"{'vile' if n % 2 else 'kind'} words {n}", "label": "unsafe" if n % 2 else "ok"} for n in range(80)
    ]
    labelled.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ("safety", "train", labelled, "--out")
    advised.works(*words, tmp_path / "c")
    advised.refused(*words, tmp_path / "c")
    advised.works(*words, tmp_path / "another")
    test = ("safety", "test", labelled, "--rules")
    advised.refused(*test, "off")
    advised.works(*test, "off", "--classifier", tmp_path / "c")
    advised.works(*test, "default")
    facts = json.loads((tmp_path / "c" / "classifier.json").read_text(encoding="utf-8"))
    (tmp_path / "c" / "classifier.json").write_text(json.dumps({**facts, "version": 99}), encoding="utf-8")
    write_manifest(tmp_path / "c", {})
    advised.refused(*test, "off", "--classifier", tmp_path / "c")
    advised.works(*words, tmp_path / "third")
    advised.works(*test, "off", "--classifier", tmp_path / "third")
    rules = tmp_path / "rules.toml"
    body = '\nname = "x"\nreason = "why"\naction = "block"\nwhere = ["reply"]\n'
    rules.write_text(f"[rule]{body}words = ['zounds']\n", encoding="utf-8")
    advised.refused(*test, rules)
    rules.write_text(f"[[rule]]{body}words = ['zounds']\n", encoding="utf-8")
    advised.works(*test, rules)
    rules.write_text(f"[[rule]]{body}pattern = 'a.*b'\n", encoding="utf-8")
    advised.refused(*test, rules)
    rules.write_text(f"[[rule]]{body}pattern = 'a.{{0,50}}b'\n", encoding="utf-8")
    advised.works(*test, rules)


@follows("stopped as asked before the first step; there is nothing to save, run it again")
def test_a_stage_that_is_stopped_at_once(advised, talker, conversations, tmp_path, monkeypatch, capfd):
    from groundling.align import example_training
    from groundling.cli import main

    real, calls = example_training.train, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(example_training, "train", stopping)
    words = ["sft", talker, "--data.path", conversations, "--out-dir", tmp_path / "sft", *FAST, "--n-replies", "0"]
    with pytest.raises(SystemExit, match="143"):
        main([*map(str, words), "--epochs", "0.5"])
    advised.hears(capfd.readouterr().err)
    advised.works(*words, "--epochs", "0.5")
