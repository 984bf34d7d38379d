"""The config of a run: what is refused, what is written down, and the presets that come with the package."""

import tomllib
from pathlib import Path

import pytest

from groundling.config import load_preset, parse, shipped_presets, to_toml
from groundling.errors import ConfigError, DataError
from groundling.train.pretrain import main, pretrain
from groundling.train.settings import PretrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def parsed(*words: str) -> PretrainConfig:
    return parse(PretrainConfig, words, "groundling pretrain")


@pytest.mark.parametrize(
    "bad",
    [
        "--steps 0",
        "--batch-size 0",
        "--micro-batch-size 0",
        "--log-every 0",
        "--keep-checkpoints 0",
        "--eval-every 0",
        "--save-every -1",
        "--sample-every 0",
        "--patience 0",
        "--patience 2 --eval-every None",
        "--grad-clip 0",
        "--grad-clip nan",
        "--average-decay 1",
        "--average-decay 0",
        "--seed -1",
        "--resume --overwrite",
        "--resume if-present --overwrite",
        "--resume never",
        "--init-from",
        "--init-from x --zero-init",
        "--order sorted",
        "--steps many",
        "--model.n-head 5",
        "--model.dropout 1",
        "--optim.kind sgd",
        "--optim.lr 0",
        "--schedule.kind step",
        "--schedule.final-fraction 2",
        "--runtime.device tpu",
        "--runtime.threads 0",
        "--data.val-fraction 0",
        "--data.tokenizer.kind words",
        "--learning-rate 1",
        "no_such_preset.toml",
        "stray",
    ],
)
def test_invalid_settings_are_refused_in_one_line(bad):
    with pytest.raises(ConfigError) as refused:
        parsed(*bad.split())
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) > 20


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("", False),
        ("--resume", True),
        ("--resume --steps 7", True),
        ("--steps 7 --resume", True),
        ("--resume True", True),
        ("--no-resume", False),
        ("--resume False", False),
        ("--resume if-present", "if-present"),
        ("--resume=if-present --steps 7", "if-present"),
        ("--resume if-present --no-resume", False),
    ],
)
def test_resume_is_a_bare_flag_or_takes_a_value(words, meant):
    config = parsed(*words.split())
    assert config.resume is meant or config.resume == meant
    assert config.steps == (7 if "7" in words else PretrainConfig.steps)


@pytest.mark.parametrize("resume", [False, True, "if-present"])
def test_resume_survives_toml(tmp_path, resume):
    config = PretrainConfig(resume=resume)
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    assert parsed(str(tmp_path / "c.toml")) == config


def test_a_batch_that_cannot_be_cut_evenly_is_refused_before_training(tiny_config):
    with pytest.raises(ConfigError, match="micro_batch_size 3 does not divide the 4"):
        pretrain(tiny_config(micro_batch_size=3))


def test_a_missing_device_is_refused_before_the_folder_is_created(tiny_config):
    config = tiny_config(runtime={"device": "mps"})
    with pytest.raises(ConfigError, match="'mps' is not available"):
        pretrain(config)
    assert not config.out_dir.exists()


def test_a_sink_that_does_not_exist_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"'carrier_pigeon'.*tensorboard or wandb"):
        pretrain(tiny_config(sinks=("carrier_pigeon",)))


def test_a_text_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.txt"):
        main(["--data.path", str(tmp_path / "nothing.txt"), "--out-dir", str(tmp_path / "run")])


def test_run_toml_read_back_is_the_config(tiny_config):
    config = tiny_config(steps=1, sample_prompt='a "quoted"\nprompt', sinks=(), average_decay=0.5, patience=3)
    pretrain(config)
    run_toml = config.out_dir / "run.toml"
    assert parsed(str(run_toml)) == config
    # The run fills in the size of the vocabulary by itself, so that run.toml can be used with another text.
    assert tomllib.loads(run_toml.read_text("utf-8"))["model"]["vocab_size"] == config.model.vocab_size


def test_the_default_config_survives_toml(tmp_path):
    (tmp_path / "c.toml").write_text(to_toml(PretrainConfig()), encoding="utf-8")
    assert parsed(str(tmp_path / "c.toml")) == PretrainConfig()


def test_there_are_presets():
    assert set(shipped_presets()) == {path.name for path in CONFIGS.glob("*.toml")}
    assert "shakespeare_char.toml" in shipped_presets()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_is_a_short_command_line(path):
    assert len(path.read_text("utf-8").splitlines()) <= 25
    config = parsed(str(path))
    assert config == parsed(path.name) == parsed(f"configs/{path.name}"), "it is found by its name, too"
    assert config != PretrainConfig(out_dir=config.out_dir)


def test_no_two_presets_write_into_one_folder():
    folders = [parsed(name).out_dir for name in shipped_presets()]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_flag_overrides_a_preset(path):
    config = parsed(path.name, "--steps", "7", "--optim.lr", "0.125", "--model.n-layer", "1")
    assert (config.steps, config.optim.lr, config.model.n_layer) == (7, 0.125, 1)
    assert config.model.block_size == load_preset(path.name).get("model", {}).get("block_size", 256)
