"""`pretrain --init-from`: a run that begins with any bundle, on any text, with the bundle's model and tokenizer."""

import dataclasses
import shutil

import pytest
import torch

from groundling.bundle import load_bundle, save_adapter, save_bundle
from groundling.bundle.adapter import Adapter, base_at
from groundling.bundle.weights import plain_state_dict
from groundling.config import to_toml
from groundling.errors import ConfigError, DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.bpe import train_bpe
from groundling.text.build import TokenizerConfig
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.serialize import fingerprint
from groundling.train.arguments import parse_arguments
from groundling.train.distill.table import TeacherConfig
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.pretrain import main, pretrain

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16}
STILL = OptimConfig(lr=1e-30, weight_decay=0.0)
"""A learning rate that moves no weight: what a run saves is what it began with."""


@pytest.fixture
def letters(story):
    return CharTokenizer.from_text(story.read_text(encoding="utf-8"))


@pytest.fixture
def initial(tmp_path, letters):
    """Makes bundles of every sort: `initial("chat")` is a folder."""

    def write(kind, **sizes):
        torch.manual_seed(11)
        tokenizer, spare, chat = letters, 0, None
        if kind == "pairs":
            tokenizer = train_bpe(["the king and the fool did speak of love so well " * 20], 280)
        if kind == "padded":
            spare = 7
        if kind == "chat":
            spare, chat = 4, RoleTokens.after(letters.vocab_size)
        config = GPTConfig(**{**SIZES, **sizes}, dropout=0.1, vocab_size=tokenizer.vocab_size + spare)
        model = GPT(config)
        with torch.no_grad():
            for parameter in model.parameters():  # no zeros, which the smallest step would move
                parameter += 0.01 + torch.rand_like(parameter)
        save_bundle(tmp_path / kind, model, tokenizer, chat=chat)
        if kind != "adapter":
            return tmp_path / kind
        bundle = load_bundle(tmp_path / kind)
        change = {
            name: (torch.randn(tensor.shape[0], 2) * 0.1, torch.randn(2, tensor.shape[1]) * 0.1)
            for name, tensor in plain_state_dict(bundle.model).items()
            if name.endswith("c_fc.weight")
        }
        tensors = {
            f"{name}|{side}": part for name, pair in change.items() for side, part in zip("ba", pair, strict=True)
        }
        save_adapter(tmp_path / "added", Adapter.from_tensors(tensors, 1.0), base_at(tmp_path / kind), bundle)
        return tmp_path / "added"

    return write


@pytest.fixture
def beginning(tiny_config):
    """Makes a run that begins with a bundle; the model's settings are left to that."""

    def make(bundle, name="run", **changes):
        model = changes.pop("model", GPTConfig())
        config = tiny_config(name, **{"steps": 1, "eval_every": None, "save_every": 1, "optim": STILL, **changes})
        return dataclasses.replace(config, init_from=str(bundle), model=model)

    return make


def weights(folder):
    return plain_state_dict(load_bundle(folder).model)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["letters", "pairs", "padded", "chat", "adapter"])
def test_a_run_begins_with_the_weights_the_tokenizer_and_the_chat_of_any_bundle(kind, initial, beginning):
    source = initial(kind)
    config = beginning(source)
    pretrain(config)
    ours, theirs = load_bundle(config.out_dir), load_bundle(source)
    assert equal(weights(config.out_dir), weights(source))
    assert ours.config == theirs.config
    assert fingerprint(ours.tokenizer) == fingerprint(theirs.tokenizer)
    assert ours.chat == theirs.chat
    assert (ours.chat is not None) == (kind == "chat")
    assert load_bundle(config.out_dir, checkpoint="last").chat == theirs.chat


@pytest.mark.slow
def test_a_run_or_its_checkpoint_can_be_the_bundle_and_training_continues(finished_run, beginning):
    for number, source in enumerate((finished_run, finished_run / "checkpoints" / "step-00000006")):
        config = beginning(source, f"run-{number}", optim=OptimConfig(lr=1e-3))
        pretrain(config)
        assert not equal(weights(config.out_dir), weights(source))
        assert weights(config.out_dir).keys() == weights(source).keys()


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_the_context_may_become_shorter(initial, beginning, position):
    source = initial("letters", position=position)
    config = beginning(source, model=dataclasses.replace(load_bundle(source).config, block_size=8, dropout=0.3))
    pretrain(config)
    ours, theirs = load_bundle(config.out_dir), load_bundle(source)
    assert (ours.config.block_size, ours.config.dropout) == (8, 0.3)
    idx_BT = torch.arange(8)[None]
    torch.testing.assert_close(ours.model(idx_BT), theirs.model(idx_BT), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_embd": 32, "n_layer": 3}, "model.n_layer: 2 -> 3; model.n_embd: 16 -> 32"),
        ({"block_size": 32}, "model.block_size: 16 -> 32"),
        ({"norm": "rmsnorm"}, "model.norm: layernorm -> rmsnorm"),
    ],
    ids=str,
)
def test_a_model_that_disagrees_is_refused_by_name(initial, beginning, changes, said):
    source = initial("letters")
    config = beginning(source, model=dataclasses.replace(load_bundle(source).config, **changes))
    with pytest.raises(ConfigError, match=said):
        pretrain(config)
    assert not (config.out_dir / "run.toml").exists()


def test_a_tokenizer_that_disagrees_is_refused_by_name(initial, beginning):
    config = beginning(initial("letters"))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=TokenizerConfig(kind="bpe")))
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.kind: char -> bpe; leave them out"):
        pretrain(config)


def test_a_reward_model_is_refused(initial, beginning):
    source = initial("letters")
    bundle = load_bundle(source)
    save_bundle(source, bundle.model, bundle.tokenizer, head={"score.weight": torch.zeros(1, 16)})
    with pytest.raises(ConfigError, match="is a reward model"):
        pretrain(beginning(source))


def test_the_model_is_the_bundles_and_a_conflicting_flag_is_refused(initial, story, tmp_path):
    source = initial("letters")
    words = ["--init-from", str(source), "--data.path", str(story), "--out-dir", str(tmp_path / "run")]
    assert parse_arguments(words).model == load_bundle(source).config
    assert parse_arguments([*words, "--model.dropout", "0.5"]).model.n_embd == SIZES["n_embd"]
    with pytest.raises(ConfigError, match=r"model\.n_layer: 2 -> 6"):  # 6 is the default of a new model
        main([*words, "--model.n-layer", "6"])
    with pytest.raises(ConfigError, match=r"model\.n_layer: 2 -> 4.*model\.norm: layernorm -> rmsnorm"):
        main(["shakespeare_char.toml", *words])
    preset = tmp_path / "p.toml"
    preset.write_text(f'init_from = "{source}"\nsteps = 3\n', encoding="utf-8")
    config = parse_arguments([str(preset)])
    assert (config.model, config.steps) == (load_bundle(source).config, 3)


@pytest.mark.slow
def test_a_resumed_run_does_not_need_the_bundle(initial, beginning):
    """Its checkpoint has all of it; stopped and resumed is not stopped, bit for bit."""
    source = initial("chat")
    whole = beginning(source, "whole", steps=4, optim=OptimConfig(lr=1e-2))
    pretrain(whole)
    halves = dataclasses.replace(whole, out_dir=whole.out_dir.with_name("halves"))
    pretrain(dataclasses.replace(halves, steps=2))
    shutil.rmtree(source)
    assert main(["--resume", "--out-dir", str(halves.out_dir), "--steps", "4"]) == 0
    assert equal(weights(whole.out_dir), weights(halves.out_dir))
    assert load_bundle(halves.out_dir).chat is not None


@pytest.mark.slow
def test_its_run_toml_repeats_it(initial, beginning, tmp_path):
    config = beginning(initial("letters"), steps=2, optim=OptimConfig(lr=1e-2))
    pretrain(config)
    assert main([str(config.out_dir / "run.toml"), "--out-dir", str(tmp_path / "again")]) == 0
    assert equal(weights(config.out_dir), weights(tmp_path / "again"))


def test_unknown_characters_are_named_and_the_advice_works(initial, tmp_path, monkeypatch, capsys):
    source = initial("letters")
    text = tmp_path / "other.txt"
    text.write_text("the K\N{LATIN SMALL LETTER O WITH DIAERESIS}nig of love\n" * 60, encoding="utf-8")
    words = ["--init-from", str(source), "--data.path", str(text), "--out-dir", str(tmp_path / "run"), "--steps", "1"]
    words += ["--batch-size", "2", "--runtime.device", "cpu", "--runtime.compile", "off"]
    with pytest.raises(DataError, match=r"has 2 characters .*'K'.*leave them out with (.*)") as caught:
        main(words)
    advice = str(caught.value).partition("leave them out with ")[2].split()
    assert main([*words, *advice]) == 0
    assert load_bundle(tmp_path / "run").tokenizer.unknown == "skip"


def test_a_teacher_teaches_a_padded_model(initial, beginning):
    config = beginning(initial("padded"), teacher=TeacherConfig(weight=0.5), optim=OptimConfig(lr=1e-3), steps=2)
    assert pretrain(config).figures["steps"] == 2


def test_the_config_survives_toml(initial, beginning, tmp_path):
    config = beginning(initial("letters"))
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    assert parse_arguments([str(tmp_path / "c.toml")]) == config
