"""Teachers: n-gram counts, or the mean of what models predict; and a run that learns from them."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from groundling.bundle import load_bundle
from groundling.data.batches import Batches
from groundling.data.corpus import DataConfig, prepare
from groundling.errors import CheckpointError, ConfigError
from groundling.text.char import CharTokenizer
from groundling.train.distill.ngrams import leave_one_out
from groundling.train.distill.table import TeacherConfig, learn
from groundling.train.pretrain import pretrain

CPU = torch.device("cpu")
TEXT = ((np.arange(400) ** 2 // 3 + np.arange(400) // 7) % 5).astype(np.uint16)
FIVE = CharTokenizer("abcde")


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
    table_NV = learn(tokens, corpus.tokenizer, TeacherConfig(), [finished_run], CPU)([0], 74)[0]
    ids_N = torch.from_numpy(tokens.astype(np.int64))
    # Windows of 16 from 0, 12, 24, 36, 48, and the last from 58; from the second on their first 4 are told already.
    start_of = dict.fromkeys(range(1, 17), 0)
    for start in (12, 24, 36, 48, 58):
        start_of |= dict.fromkeys(range(max(start_of) + 1, start + 17), start)
    assert max(start_of) == 74
    for place, start in start_of.items():
        expected_V = predictions(bundle.model, ids_N, place, start)
        torch.testing.assert_close(table_NV[place - 1].float(), expected_V, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_two_models_teach_their_mean(finished_run, tiny_config, corpus):
    pretrain(tiny_config("other", seed=5, steps=3))
    other = str(tiny_config("other").out_dir)
    tables = [
        learn(corpus.train.ids, corpus.tokenizer, TeacherConfig(), models, CPU)([0], 500).float()
        for models in ([str(finished_run)], [other], [str(finished_run), other])
    ]
    assert not torch.equal(tables[0], tables[1])
    torch.testing.assert_close((tables[0] + tables[1]) / 2, tables[2], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(tables[2].sum(-1), torch.ones(1, 500), rtol=0, atol=2e-2)


def test_a_temperature_flattens_each_model_before_the_mean(finished_run, corpus):
    tokens, tokenizer = corpus.train.ids[:17], corpus.tokenizer
    table_NV = learn(tokens, tokenizer, TeacherConfig(temperature=2.0), [finished_run], CPU)([0], 16)[0]
    with torch.inference_mode():
        logits_TV = load_bundle(finished_run).model(torch.from_numpy(tokens[None, :16].astype(np.int64)))[0]
    torch.testing.assert_close(table_NV.float(), (logits_TV / 2.0).softmax(-1), rtol=2e-3, atol=1e-4)


def test_without_models_counts_teach():
    counts_NV = leave_one_out(torch.from_numpy(TEXT.astype(np.int64)), 5, 3, 1.5)
    table_NV = learn(TEXT, FIVE, TeacherConfig(order=3, smoothing=1.5), [], CPU)([0], 399)[0]
    assert torch.equal(table_NV, counts_NV[1:].half())


def test_distributions_stand_at_the_targets_of_their_batch():
    teacher = learn(TEXT, FIVE, TeacherConfig(order=3, smoothing=1.0), [], CPU)
    table_NV = leave_one_out(torch.from_numpy(TEXT.astype(np.int64)), 5, 3, 1.0).half()
    how = {"block_size": 8, "batch_size": 4, "micro_batch_size": 2, "seed": 3, "order": "epochs"}
    batches = Batches(TEXT, teacher=teacher, **how)
    places_of = Batches(np.arange(400, dtype=np.uint16), **how)
    for batch, places in zip(batches.next_step(), places_of.next_step(), strict=True):
        assert torch.equal(batch.teacher_probs_BTV, table_NV[places.targets_BT])
        assert batch.to(CPU).teacher_probs_BTV is batch.teacher_probs_BTV


def test_without_a_teacher_there_are_no_distributions():
    assert Batches(TEXT, block_size=8, batch_size=2).next_step()[0].teacher_probs_BTV is None


@pytest.mark.slow
@pytest.mark.parametrize("models", [[], ["nobody"]])
def test_a_table_that_would_fill_the_memory_is_refused(models):
    tokenizer = CharTokenizer("".join(map(chr, range(256, 50_256))))
    with pytest.raises(ConfigError, match=r"would take [37]00\.0 GB to make.*set teacher\.weight to 0"):
        learn(np.zeros(1_000_000, np.uint16), tokenizer, TeacherConfig(), models, CPU)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weight": 1.5}, "weight is 1.5"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"order": 0}, "order is 0"),
        ({"smoothing": 0.0}, "smoothing is 0"),
        ({"smoothing": math.inf}, "smoothing is inf"),
        ({"models": ("runs/a",)}, r"teacher\.models is given and teacher\.weight is 0"),
        ({"recipes": ("speedrun",)}, r"teacher\.recipes is given and teacher\.weight is 0"),
    ],
)
def test_a_teacher_that_cannot_work_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        TeacherConfig(**fields)


def test_a_text_shorter_than_a_window_can_be_taught(finished_run, corpus):
    table_NV = learn(corpus.train.ids[:9], corpus.tokenizer, TeacherConfig(), [finished_run], CPU)([0], 8)[0]
    ids_N = torch.from_numpy(corpus.train.ids[:9].astype(np.int64))
    expected_V = predictions(load_bundle(finished_run).model, ids_N, 8, 0)
    torch.testing.assert_close(table_NV[7].float(), expected_V, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_trains_on_its_teacher(finished_run, tiny_config):
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


@pytest.mark.slow
def test_a_resumed_run_keeps_its_teachers(finished_run, tiny_config, tmp_path):
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
    goes_on = dataclasses.replace(goes_on, teacher=dataclasses.replace(goes_on.teacher, models=(str(kept),)))
    unbroken = dataclasses.replace(goes_on, out_dir=tmp_path / "unbroken", resume=False)
    assert pretrain(goes_on).figures["val_loss"] == pretrain(unbroken).figures["val_loss"]
    weights = [(run.out_dir / "bundle" / "model.safetensors").read_bytes() for run in (goes_on, unbroken)]
    assert weights[0] == weights[1]


def test_a_missing_teacher_overwrites_nothing(finished_run, tiny_config, tmp_path):
    """The run that would be overwritten stays as it is."""
    config = tiny_config("run")
    pretrain(config)
    taught = TeacherConfig(weight=0.5, models=(str(finished_run), str(tmp_path / "nobody")))
    with pytest.raises(CheckpointError, match=r"there is no .*nobody"):
        pretrain(dataclasses.replace(config, overwrite=True, teacher=taught))
    assert load_bundle(config.out_dir).config.n_embd == 16
    with pytest.raises(ConfigError, match=r"\(speedrun\): these models must be trained first; .groundling speedrun"):
        pretrain(dataclasses.replace(config, overwrite=True, teacher=TeacherConfig(weight=1.0, recipes=("speedrun",))))
    assert load_bundle(config.out_dir).config.n_embd == 16
    models = (str(config.out_dir / ".." / config.out_dir.name / "bundle"),)
    with pytest.raises(ConfigError, match="a run cannot teach itself"):
        dataclasses.replace(config, overwrite=True, teacher=TeacherConfig(weight=1.0, models=models))


@pytest.mark.slow
def test_a_teacher_with_another_tokenizer_is_refused(finished_run, tiny_config, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("quite another alphabet: 0123456789. " * 200, encoding="utf-8")
    other = dataclasses.replace(tiny_config("other"), data=DataConfig(path=str(text)))
    pretrain(other)
    models = (str(finished_run), str(other.out_dir))
    config = tiny_config("run")
    pretrain(config)
    with pytest.raises(ConfigError, match="another tokenizer"):
        pretrain(dataclasses.replace(config, overwrite=True, teacher=TeacherConfig(weight=0.5, models=models)))
    assert load_bundle(config.out_dir).config.n_embd == 16, "what would have been overwritten is still there"


def test_a_teacher_without_weights_is_refused_before_anything_is_overwritten(finished_run, tiny_config, tmp_path):
    config = tiny_config("run")
    pretrain(config)
    model = tmp_path / "teacher"
    shutil.copytree(finished_run / "bundle", model)
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        pretrain(dataclasses.replace(config, overwrite=True, teacher=TeacherConfig(weight=0.5, models=(str(model),))))
    assert load_bundle(config.out_dir).config.n_embd == 16
