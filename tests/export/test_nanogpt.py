"""A checkpoint of nanoGPT is the same model here but for its GELU; what is more than tensors and plain data is refused.

Its model is `transformers`' GPT-2 with the exact GELU, and its matrices the other way round: that is the oracle.
"""

import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from exportkit import assert_same_logits, lively
from transformers import GPT2Config, GPT2LMHeadModel

from groundling.bundle import load_bundle
from groundling.cli import main
from groundling.text import gpt2
from groundling.text.char import CharTokenizer
from groundling.text.serialize import save_tokenizer

TEXT = "First Citizen:\nSpeak, speak.\n"
SIZES = {"n_layer": 2, "n_head": 3, "n_embd": 33, "block_size": 19, "vocab_size": len(set(TEXT))}
MATRICES = ("c_attn.weight", "c_fc.weight", "c_proj.weight")


def nanogpt(bias: bool = True, **sizes):
    """Its model, and the weights as it saves them."""
    sizes = {**SIZES, **sizes}
    block_size = sizes.pop("block_size")
    config = GPT2Config(**sizes, n_positions=block_size, activation_function="gelu", bos_token_id=0, eos_token_id=0)
    model = lively(GPT2LMHeadModel(config))
    if not bias:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter *= not name.endswith(".bias")
    weights = {
        name: tensor.T.contiguous() if name.endswith(MATRICES) else tensor.clone()
        for name, tensor in model.state_dict().items()
        if bias or not name.endswith(".bias")
    }
    return model, weights


def write(path, weights, **changes):
    stored = {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]},
        "model_args": {**SIZES, "bias": True, "dropout": 0.2},
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "device": "cpu"},
    }
    torch.save({**stored, **changes}, path)
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def with_the_exact_gelu(model):
    for block in model.h:
        block.mlp.activation = F.gelu
    return model


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "none"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."], ids=["plain", "compiled"])
def test_its_logits_are_ours_with_its_gelu_and_near_with_our_own(tmp_path, text, bias, prefix):
    theirs, weights = nanogpt(bias)
    weights = {prefix + name: tensor for name, tensor in weights.items()}
    file = write(tmp_path / "ckpt.pt", weights, model_args={**SIZES, "bias": bias, "dropout": 0.2})
    assert main(["import", "nanogpt", str(file), str(tmp_path / "b"), "--text", str(text)]) == 0
    bundle = load_bundle(tmp_path / "b")
    assert (bundle.config.bias, bundle.config.tie_weights, bundle.config.dropout) == (bias, True, 0.2)
    assert bundle.tokenizer.encode("Speak") == CharTokenizer.from_text(TEXT).encode("Speak")
    idx_BT = torch.arange(SIZES["block_size"])[None] % SIZES["vocab_size"]
    with torch.no_grad():
        error = (theirs(idx_BT).logits - bundle.model(idx_BT)).abs().max()
    assert 1e-5 < error < 1e-2
    assert_same_logits(theirs, with_the_exact_gelu(bundle.model))


def test_a_padded_vocabulary_and_an_output_matrix_of_its_own(tmp_path):
    theirs, weights = nanogpt(vocab_size=50304, n_layer=1)
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1.0
    file = write(tmp_path / "ckpt.pt", weights, model_args={**SIZES, "n_layer": 1, "vocab_size": 50304})
    assert main(["import", "nanogpt", str(file), str(tmp_path / "b"), "--tokenizer", "gpt2"]) == 0
    bundle = load_bundle(tmp_path / "b")
    assert (bundle.config.vocab_size, bundle.config.tie_weights, bundle.config.bias) == (50304, False, True)
    assert bundle.tokenizer.kind == "gpt2"
    theirs.lm_head.weight = torch.nn.Parameter(weights["lm_head.weight"])
    assert_same_logits(theirs, with_the_exact_gelu(bundle.model))


def test_it_says_what_it_made_and_that_the_gelu_differs(tmp_path, text, capsys):
    file = write(tmp_path / "ckpt.pt", nanogpt()[1])
    save_tokenizer(CharTokenizer.from_text(TEXT), tmp_path)
    assert main(["import", "nanogpt", str(file), str(tmp_path / "b"), "--tokenizer", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path / 'b'}: nanoGPT, 28,")
    assert "the char tokenizer with 18 ids; its exact GELU becomes the tanh approximation" in said[0]
    assert said[1] == f"sample from it: groundling sample {tmp_path / 'b'}"


class Canary:
    """What a pickle can do: on being read it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("layout", ["inside", "alone", "old"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, text, capfd, layout):
    canary, file = tmp_path / "canary", tmp_path / "ckpt.pt"
    if layout == "inside":
        write(file, nanogpt()[1], config=Canary(canary))
    elif layout == "alone":
        file.write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save({"model": Canary(canary)}, file, _use_new_zipfile_serialization=False)
    assert "damaged, or holds code, which is never run here" in refused(capfd, tmp_path, file, "--text", str(text))
    assert not canary.exists()


def refused(capfd, tmp_path, file, *words: str) -> str:
    """The one line that says why; and nothing is left behind."""
    capfd.readouterr()
    assert main(["import", "nanogpt", str(file), str(tmp_path / "b"), *words]) != 0
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("groundling: error: ")
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "b").exists()
    return shown.err


BROKEN = [
    ({"model": None}, "is not a checkpoint of nanoGPT: it has no 'model' with its 'model_args'"),
    ({"model_args": {"n_layer": 2}}, "its model_args have no n_head"),
    ({"model_args": {**SIZES, "n_head": 2}}, "n_embd 33 is not a multiple of n_head 2"),
    ({"model_args": {**SIZES, "n_layer": 1}}, "has the weights of 2 layers, and its config says 1"),
    ({"model_args": {**SIZES, "bias": False}}, "transformer.h.0.attn.c_attn.bias is unexpected"),
    ({"model_args": {**SIZES, "n_layer": 3}}, "has the weights of 2 layers, and its config says 3"),
]


@pytest.mark.parametrize(("changes", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_what_is_no_checkpoint_of_nanogpt_is_refused(tmp_path, text, capfd, changes, said):
    file = write(tmp_path / "ckpt.pt", nanogpt()[1], **changes)
    assert said in refused(capfd, tmp_path, file, "--text", str(text))


def test_a_list_or_no_file_is_refused(tmp_path, text, capfd):
    torch.save([1], tmp_path / "list.pt")
    assert "it holds a list" in refused(capfd, tmp_path, tmp_path / "list.pt", "--text", str(text))
    assert "there is no file" in refused(capfd, tmp_path, tmp_path / "none.pt", "--text", str(text))


def test_a_text_that_it_was_not_trained_on_is_refused(tmp_path, capfd):
    file, other = write(tmp_path / "ckpt.pt", nanogpt()[1]), tmp_path / "other.txt"
    other.write_text("abc")
    said = refused(capfd, tmp_path, file, "--text", str(other))
    assert "has 3 different characters and the model 18 tokens; give the whole text" in said
    other.write_bytes(b"\xff")
    assert "cannot be read" in refused(capfd, tmp_path, file, "--text", str(other))
    assert "cannot be read" in refused(capfd, tmp_path, file, "--text", str(tmp_path / "none.txt"))
    assert "the gpt2 tokenizer has 50,257 ids and the model 18" in refused(capfd, tmp_path, file, "--tokenizer", "gpt2")


@pytest.mark.parametrize("words", [[], ["--text", "a.txt", "--tokenizer", "gpt2"]], ids=["none", "two"])
def test_there_is_one_tokenizer(tmp_path, capfd, words):
    said = refused(capfd, tmp_path, tmp_path / "ckpt.pt", *words)
    assert "give either --text" in said


def test_the_texts_line_ends_are_read_as_nanogpt_reads_them(tmp_path, text):
    text.write_bytes(TEXT.replace("\n", "\r\n").encode())
    file = write(tmp_path / "ckpt.pt", nanogpt()[1])
    assert main(["import", "nanogpt", str(file), str(tmp_path / "b"), "--text", str(text)]) == 0
    assert load_bundle(tmp_path / "b").tokenizer.vocab_size == len(set(TEXT))


def test_a_folder_named_gpt2_goes_before_the_name(tmp_path, monkeypatch):
    from groundling.export.import_cli import _named_tokenizer

    monkeypatch.chdir(tmp_path)
    assert isinstance(_named_tokenizer("gpt2"), gpt2.GPT2Tokenizer)
    (tmp_path / "gpt2").mkdir()
    save_tokenizer(CharTokenizer(TEXT[0]), tmp_path / "gpt2")
    assert _named_tokenizer("gpt2").kind == "char"
