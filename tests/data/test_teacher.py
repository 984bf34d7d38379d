"""Models as teachers: of each token of the text the mean of what they predict, and a run that learns from it."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from groundling.bundle import load_bundle
from groundling.data.corpus import DataConfig, prepare
from groundling.data.teacher import TeacherConfig, learn_from_models
from groundling.errors import CheckpointError, ConfigError
from groundling.train.pretrain import pretrain

CPU = torch.device("cpu")


@pytest.fixture
def corpus(tiny_config):
    return prepare(tiny_config().data, block_size=16)


def predictions(model, ids_N, place, start):
    """The model's distribution of the token at `place`, when it has read from `start` on."""
    with torch.inference_mode():
        return model(ids_N[None, start:place])[0, -1].softmax(-1)


def test_each_token_is_predicted_from_the_window_that_knows_most_before_it(finished_run, corpus):
    tokens = corpus.train.ids[:75]
    bundle = load_bundle(finished_run)
    table_NV = learn_from_models(tokens, corpus.tokenizer, [str(finished_run)], CPU)([0], 74)[0]
    ids_N = torch.from_numpy(tokens.astype(np.int64))
    # Windows of 16 from 0, 12, 24, 36, 48, and the last from 58; from the second on their first 4 are told already.
    start_of = dict.fromkeys(range(1, 17), 0)
    for start in (12, 24, 36, 48, 58):
        start_of |= dict.fromkeys(range(max(start_of) + 1, start + 17), start)
    assert max(start_of) == 74
    for place, start in start_of.items():
        expected_V = predictions(bundle.model, ids_N, place, start)
        torch.testing.assert_close(table_NV[place - 1].float(), expected_V, rtol=2e-3, atol=1e-4)


def test_two_models_teach_their_mean(finished_run, tiny_config, corpus):
    pretrain(tiny_config("other", seed=5, steps=3))
    other = str(tiny_config("other").out_dir)
    tables = [
        learn_from_models(corpus.train.ids, corpus.tokenizer, models, CPU)([0], 500).float()
        for models in ([str(finished_run)], [other], [str(finished_run), other])
    ]
    assert not torch.equal(tables[0], tables[1])
    torch.testing.assert_close((tables[0] + tables[1]) / 2, tables[2], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(tables[2].sum(-1), torch.ones(1, 500), rtol=0, atol=2e-2)


def test_a_text_shorter_than_a_window_can_be_taught(finished_run, corpus):
    table_NV = learn_from_models(corpus.train.ids[:9], corpus.tokenizer, [str(finished_run)], CPU)([0], 8)[0]
    ids_N = torch.from_numpy(corpus.train.ids[:9].astype(np.int64))
    expected_V = predictions(load_bundle(finished_run).model, ids_N, 8, 0)
    torch.testing.assert_close(table_NV[7].float(), expected_V, rtol=2e-3, atol=1e-4)


def test_a_run_learns_what_its_teacher_says(finished_run, tiny_config):
    """Taught by the other model alone, a student comes nearer to it than one that the text teaches."""

    def distance(run):
        student, teacher = load_bundle(run).model, load_bundle(finished_run).model
        idx_BT = torch.from_numpy(prepare(tiny_config().data, 16).train.ids[:320].astype(np.int64)).view(20, 16)
        with torch.inference_mode():
            ours, theirs = student(idx_BT).log_softmax(-1), teacher(idx_BT).log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()

    how = {"steps": 60, "eval_every": 60, "save_every": 60, "model": {"dropout": 0.0}}
    taught = tiny_config("taught", teacher=TeacherConfig(weight=1.0, fades=False, models=(str(finished_run),)), **how)
    alone = tiny_config("alone", **how)
    pretrain(taught)
    pretrain(alone)
    assert distance(taught.out_dir) < 0.5 * distance(alone.out_dir)


def test_a_run_goes_on_with_the_teachers_it_began_with(finished_run, tiny_config, tmp_path):
    model = tmp_path / "teacher"
    shutil.copytree(finished_run / "bundle", model)
    taught = tiny_config("taught", steps=3, teacher=TeacherConfig(weight=1.0, models=(str(model),)))
    pretrain(taught)
    goes_on = dataclasses.replace(taught, steps=6, resume=True)
    pretrain(dataclasses.replace(tiny_config("other", seed=5)))
    kept = tmp_path / "kept"
    model.rename(kept)
    shutil.copytree(tmp_path / "other" / "bundle", model)
    with pytest.raises(CheckpointError, match="or a model that taught it is not the one"):
        pretrain(goes_on)
    shutil.rmtree(model)
    kept.rename(model)
    unbroken = dataclasses.replace(taught, out_dir=tmp_path / "unbroken", steps=6)
    assert pretrain(goes_on).val_loss == pretrain(unbroken).val_loss
    weights = [(run.out_dir / "bundle" / "model.safetensors").read_bytes() for run in (goes_on, unbroken)]
    assert weights[0] == weights[1]


def test_a_teacher_that_is_not_there_costs_nothing(finished_run, tiny_config, tmp_path):
    """The run that would be overwritten stays as it is."""
    config = tiny_config("run")
    pretrain(config)
    taught = TeacherConfig(weight=0.5, models=(str(finished_run), str(tmp_path / "nobody")))
    with pytest.raises(CheckpointError, match=r"there is no .*nobody"):
        pretrain(dataclasses.replace(config, overwrite=True, teacher=taught))
    assert load_bundle(config.out_dir).config.n_embd == 16
    with pytest.raises(ConfigError, match="a run cannot teach itself"):
        dataclasses.replace(config, overwrite=True, teacher=TeacherConfig(models=(str(config.out_dir / "bundle"),)))


def test_a_teacher_of_another_alphabet_is_refused(finished_run, tiny_config, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("quite another alphabet: 0123456789. " * 200, encoding="utf-8")
    other = dataclasses.replace(tiny_config("other"), data=DataConfig(path=str(text)))
    pretrain(other)
    models = (str(finished_run), str(other.out_dir))
    with pytest.raises(ConfigError, match="another tokenizer"):
        pretrain(tiny_config("run", teacher=TeacherConfig(weight=0.5, models=models)))
