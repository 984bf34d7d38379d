"""Row 61: what a file holds is data. No key of it is a flag of ours or of the library that reads command lines."""

import json

import pytest

from groundling import cli
from groundling.bundle import load_bundle, save_bundle
from groundling.errors import GroundlingError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.storage import atomic
from groundling.storage.manifest import write_manifest
from groundling.text.char import CharTokenizer
from groundling.train.checkpoints.checkpoint import Checkpoints, read_state

HOSTILE = [{"help": True}, {"tyro-print-completion": "bash"}, {"n_layer.help": True}, {"-h": True}]


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "victim"
    file.write_text("mine")
    return file


def write_keys(victim):
    return [{"tyro-write-completion": ["bash", str(victim)]}, *HOSTILE]


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert said.out == ""
    return code, said.err.strip()


@pytest.mark.parametrize("verb", ["sample", "export", "pretrain"])
def test_a_bundle_s_config_writes_nothing(tmp_path, victim, verb, capsys):
    bundle = tmp_path / "bundle"
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=3)
    save_bundle(bundle, GPT(config), CharTokenizer("abc"), {})
    assert load_bundle(bundle).model.config == config
    sound = json.loads((bundle / "config.json").read_text("utf-8"))
    words = {
        "sample": ["sample", bundle, "--prompt", "a"],
        "export": ["export", "bundle", bundle, tmp_path / "out"],
        "pretrain": ["pretrain", "--init-from", bundle, "--data.path", victim, "--out-dir", tmp_path / "run"],
    }[verb]
    for keys in write_keys(victim):
        atomic.write_json(bundle / "config.json", {**keys, **sound})
        write_manifest(bundle, {})
        code, said = run(capsys, *words)
        assert code == 1
        (line,) = said.splitlines()
        assert f"there is no setting '{next(iter(keys))}'" in line
        assert victim.read_text() == "mine"
        with pytest.raises(GroundlingError):
            load_bundle(bundle)


def test_a_run_s_settings_write_nothing(tiny, tmp_path, victim, capsys):
    folder = tmp_path / "run"
    tiny.pretrain(folder, steps=5)
    capsys.readouterr()
    sound = (folder / "run.toml").read_text("utf-8")
    for line in (f'tyro-write-completion = ["bash", "{victim}"]', "help = true", '"-h" = true'):
        (folder / "run.toml").write_text(f"{line}\n{sound}", encoding="utf-8")
        code, said = run(capsys, "pretrain", "--resume", "--out-dir", folder)
        assert code == 2
        assert "there is no setting" in said
        assert len(said.splitlines()) == 1
    assert victim.read_text() == "mine"


def test_a_checkpoint_s_settings_write_nothing(tiny, tmp_path, victim, facts_of):
    """They are compared with the run's own: what is no setting is a difference."""
    folder = tmp_path / "run"
    tiny.pretrain(folder, steps=5)
    newest = Checkpoints(folder / "checkpoints").finished()[-1]
    facts, record = facts_of(newest), read_state(newest)
    for keys in write_keys(victim):
        changed = {**record, "config": {**keys, **record["config"]}}
        atomic.write_json(newest / "state.json", changed)
        write_manifest(newest, {name: facts[name] for name in ("run_id", "step", "val_loss")})
        with pytest.raises(GroundlingError, match=next(iter(keys))) as refused:
            tiny.pretrain(folder, resume=True, steps=8)
        assert "\n" not in str(refused.value)
    assert victim.read_text() == "mine"
