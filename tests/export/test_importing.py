"""What `transformers` saved is, as a bundle, the same model; what our model cannot be is refused by name."""

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import tokenizers
import torch
import transformers
from exportkit import (
    BASE,
    CHARACTERS,
    KINDS,
    ROTARY,
    TEXT,
    assert_equal,
    assert_same_logits,
    lively,
    make_bundle,
    save,
    tokenizer_of,
)
from safetensors.torch import load_file, save_file
from test_hf import CONFIGS, exported
from transformers import AutoModelForCausalLM, AutoTokenizer

from groundling.bundle import load_bundle
from groundling.cli import main
from groundling.text import sentence_piece
from groundling.text.serialize import fingerprint, save_tokenizer

NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
GPT2 = {"n_layer": 2, "n_head": 3, "n_embd": 33, "n_positions": 19, "vocab_size": 53, **NO_ENDS}
LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_size": 36,
    "intermediate_size": 44,
    "max_position_embeddings": 19,
    "vocab_size": 53,
    "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
    **NO_ENDS,
}
QWEN3 = {**LLAMA, "head_dim": 12, "hidden_size": 32}
THEIRS = {
    "GPT2": GPT2,
    "GPT2 untied": {**GPT2, "n_inner": 50, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    "GPT2 relu2": {**GPT2, "activation_function": "relu2", "n_head": 1},
    "Llama": LLAMA,
    "Llama wide heads": {**LLAMA, "head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "Llama biases": {**LLAMA, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
    "Qwen3": {**QWEN3, "tie_word_embeddings": True},
    "Qwen3 untied": {**QWEN3, "num_key_value_heads": 1},
}


def made(name: str):
    """A model of `transformers`, with random weights."""
    family = name.split()[0]
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    return lively(getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**THEIRS[name])))


@pytest.fixture
def characters(tmp_path):
    (tmp_path / "characters").mkdir()
    save_tokenizer(CHARACTERS, tmp_path / "characters")
    return str(tmp_path / "characters")


@pytest.fixture
def imported(tmp_path, characters):
    """Imports a folder by the command, with our own tokenizer, and loads the bundle."""

    def run(folder):
        assert main(["import", "hf", str(folder), str(tmp_path / "b"), "--tokenizer", characters, "--overwrite"]) == 0
        return load_bundle(tmp_path / "b")

    return run


@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_made_gives_the_same_logits_here(tmp_path, imported, name):
    theirs = made(name)
    theirs.save_pretrained(tmp_path / "theirs")
    bundle = imported(tmp_path / "theirs")
    assert_same_logits(theirs, bundle.model)
    assert bundle.config.tie_weights == theirs.config.tie_word_embeddings
    assert bundle.config.bias == (name.startswith("GPT2") or name == "Llama biases")


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Qwen3"])
def test_a_config_of_transformers_4_says_the_same(tmp_path, imported, name):
    theirs = made(name)
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    values = json.loads(file.read_text())
    rope = values.pop("rope_parameters", {"rope_theta": None})
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": "float32"}
    file.write_text(json.dumps({**values, **old}))
    assert_same_logits(theirs, imported(tmp_path / "theirs").model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_and_keeps_every_bit(tmp_path, imported, dtype):
    theirs = made("Qwen3").to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    bundle = imported(tmp_path / "theirs")
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {torch.float32}
    # By `.to(dtype)` their rotary angles were rounded too; loaded anew they are not.
    assert_same_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32), bundle.model)


def test_many_files_are_one_model(tmp_path, imported):
    theirs = made("Llama")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert_same_logits(theirs, imported(tmp_path / "theirs").model)


@pytest.mark.parametrize(("name", "prefix"), [("GPT2", "transformer."), ("Qwen3", "model.")])
def test_names_without_the_prefix_and_old_buffers_are_understood(tmp_path, imported, name, prefix):
    theirs = made(name)
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    weights = {key.removeprefix(prefix): value for key, value in load_file(file).items()}
    weights |= {"h.0.attn.bias": torch.ones(1, 1, 19, 19), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    weights |= {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    weights["lm_head.weight"] = theirs.get_output_embeddings().weight.detach().clone()  # tied, and there all the same
    save_file(weights, file)
    assert_same_logits(theirs, imported(tmp_path / "theirs").model)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_export_comes_back_as_it_was(tmp_path, name):
    bundle = make_bundle(dataclasses.replace(CONFIGS[name], dropout=0.15, attention_dropout=0.05))
    exported(bundle, tmp_path)
    assert main(["import", "hf", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    assert_equal(load_bundle(tmp_path / "back"), bundle)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "gpt2" else k for k in KINDS])
def test_each_tokenizer_comes_back_as_it_was(tmp_path, story, kind):
    ours = tokenizer_of(kind, story.read_text(encoding="utf-8"))
    bundle = make_bundle(dataclasses.replace(BASE, vocab_size=ours.vocab_size), ours)
    exported(bundle, tmp_path)
    assert main(["import", "hf", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    assert_equal(load_bundle(tmp_path / "back"), bundle)


@pytest.mark.parametrize("kind", ["char skip", pytest.param("gpt2", marks=pytest.mark.slow), "bpe"])
def test_what_transformers_has_trained_on_comes_back_with_its_tokenizer(tmp_path, story, kind):
    """Saved by `transformers`, whose files are laid out otherwise; a bias that has grown is kept."""
    ours = tokenizer_of(kind, story.read_text(encoding="utf-8"))
    bundle = make_bundle(dataclasses.replace(BASE, vocab_size=ours.vocab_size, bias=False, n_kv_head=6), ours)
    model, tokenizer = exported(bundle, tmp_path)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias += 0.5
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    assert main(["import", "hf", str(tmp_path / "trained"), str(tmp_path / "back")]) == 0
    back = load_bundle(tmp_path / "back")
    assert back.config == dataclasses.replace(bundle.config, bias=True)
    assert fingerprint(back.tokenizer) == fingerprint(ours)
    assert_same_logits(model, back.model)


def test_our_note_is_not_believed_where_it_says_something_else(tmp_path):
    exported(make_bundle(ROTARY), tmp_path)
    file = tmp_path / "out" / "config.json"
    values = json.loads(file.read_text())
    for note in ({**values["groundling"], "rope_theta": 9.0}, {"n_layer": "many"}, {"mlp": "relu2"}, {"rm": 1}, {}):
        file.write_text(json.dumps({**values, "groundling": note}))
        assert main(["import", "hf", str(tmp_path / "out"), str(tmp_path / "back"), "--overwrite"]) == 0
        assert load_bundle(tmp_path / "back").config == ROTARY


REFUSED_CONFIGS = [
    ("GPT2", {"model_type": "mistral"}, "model_type is 'mistral'; gpt2, llama, qwen3 can be imported"),
    ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("GPT2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
    ("GPT2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True"),
    ("GPT2", {"add_cross_attention": True}, "add_cross_attention is True"),
    ("GPT2", {"activation_function": "gelu"}, "activation_function is 'gelu'; our model has only gelu_new, relu"),
    ("GPT2", {"n_embd": None}, "n_embd is None; it must be a whole number"),
    ("GPT2", {"n_layer": "2"}, "n_layer is '2'; it must be a whole number"),
    ("GPT2", {"n_head": 5}, "n_embd 33 is not a multiple of n_head 5"),
    ("GPT2", {"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'; it must be a number"),
    ("GPT2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
    ("GPT2", {"n_embd": 10**5, "n_head": 1}, "does not fit its config"),
    ("GPT2", {"n_embd": 2**40, "n_head": 1}, "it must be a whole number of at most 10,000,000"),
    ("GPT2", {"n_layer": 10**5}, "100,000 layers are more than the 10,000"),
    ("Llama", {"layer_types": 5, "rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    ("Llama", {"layer_types": ["sliding_attention"]}, "layer_types has sliding_attention"),
    ("Llama", {"rope_theta": float("inf"), "rope_parameters": None}, "rope_theta is inf; it must be a number"),
    ("Llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; our model has only silu"),
    ("Llama", {"attention_bias": True}, "attention_bias is True and mlp_bias False; our one `bias` is for both"),
    ("Llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is of type 'linear'"),
    ("Llama", {"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters is of type 'llama3'"),
    ("Llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is of type 'yarn'"),
    ("Llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "our rotary angles turn whole heads"),
    ("Llama", {"rope_parameters": {"rope_theta": "high"}}, "it must be a number"),
    ("Llama", {"rope_parameters": [1]}, "rope_parameters is [1]; it must be an object"),
    ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("Llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    ("Qwen3", {"attention_bias": True}, "attention_bias is True; our model is built for False only"),
    ("Qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("Qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
    ("Qwen3", {"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
    ("Qwen3", {"model_type": "qwen2"}, "model_type is 'qwen2'"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model of each family as `transformers` saves it; whoever changes something takes a copy."""
    root = tmp_path_factory.mktemp("theirs")
    for name in ("GPT2", "Llama", "Qwen3"):
        made(name).save_pretrained(root / name)
    return root


def refused(capfd, folder, out, *words: str) -> str:
    """The one line that says why; and nothing is left behind."""
    capfd.readouterr()
    assert main(["import", "hf", str(folder), str(out), *words]) != 0
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("groundling: error: ")
    assert shown.err.count("\n") == 1
    assert not out.exists()
    return shown.err


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED_CONFIGS, ids=[said for *_, said in REFUSED_CONFIGS])
def test_a_config_that_ours_cannot_be_is_refused_by_name(folders, tmp_path, capfd, name, changes, said):
    shutil.copytree(folders / name, tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert said in refused(capfd, tmp_path / "theirs", tmp_path / "out")


def change_weights(**changes):
    def change(folder):
        file = folder / "model.safetensors"
        weights = load_file(file) | {name.replace("__", "."): value for name, value in changes.items()}
        save_file({name: value for name, value in weights.items() if value is not None}, file)

    return change


def to_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def to_shards(weight_map):
    def change(folder):
        index = folder / "model.safetensors.index.json"
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        index.write_text(json.dumps({"weight_map": weight_map}))

    return change


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


BROKEN = [
    (change_weights(transformer__ln_f__bias=None), "transformer.ln_f.bias is missing, expected (33,)"),
    (change_weights(transformer__ln_g=torch.ones(2)), "transformer.ln_g is unexpected: the model has no such tensor"),
    (
        change_weights(transformer__h__0__mlp__c_fc__weight=torch.ones(132, 33)),
        "transformer.h.0.mlp.c_fc.weight is (132, 33), expected (33, 132)",
    ),
    (change_weights(transformer__ln_f__bias=torch.ones(33).to(torch.int8)), "is of type torch.int8, expected float32"),
    (change_weights(transformer__ln_f__bias=torch.ones(33).to(torch.float8_e4m3fn)), "of type torch.float8_e4m3fn"),
    (
        change_weights(lm_head__weight=torch.ones(53, 33)),
        "lm_head.weight differ, and its config says that they are tied",
    ),
    (to_pickle, "holds its weights as a pickle (pytorch_model.bin), which is never opened here"),
    (cut, "is not a readable safetensors file"),
    (to_shards({"a": "a.safetensors"}), "no file holds a, and model.safetensors.index.json names it"),
    (to_shards({"a": "b.safetensors"}), "b.safetensors is missing, and model.safetensors.index.json names it"),
    (to_shards({"a": "../a.safetensors"}), "it does not say which file holds which tensor"),
    (to_shards(["a"]), "it does not say which file holds which tensor"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors and no model.safetensors.index"),
    (
        lambda folder: (folder / "config.json").unlink(),
        "has no config.json; give a folder that transformers could load",
    ),
    (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
    (lambda folder: (folder / "config.json").write_text("{}"), "model_type is None"),
    (lambda folder: None, "has no tokenizer.json; give another with --tokenizer"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be read"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_a_folder_that_is_not_whole_ends_in_one_clear_line(folders, tmp_path, capfd, change, said):
    shutil.copytree(folders / "GPT2", tmp_path / "theirs")
    change(tmp_path / "theirs")
    assert said in refused(capfd, tmp_path / "theirs", tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(folders, tmp_path, capfd):
    said = refused(capfd, folders / "GPT2", tmp_path / "out", "--tokenizer", "gpt2")
    assert "the gpt2 tokenizer has 50,257 ids and the model 53; they do not belong together" in said


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere"])
def test_a_folder_that_is_not_there_is_said_so(tmp_path, capfd, name):
    assert f"{name} is not a folder" in refused(capfd, name, tmp_path / "out")


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_ends_in_one_line(tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "groundling", "import", "hf", "someone/some-model", str(tmp_path / "out")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("groundling: error: there is no folder 'someone/some-model', and it")
    assert "Traceback" not in done.stderr


def test_what_stands_at_out_is_left_alone(folders, tmp_path, characters, capfd):
    trained = save(make_bundle(BASE), tmp_path / "trained")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    for out in (trained, tmp_path / "full", tmp_path / "full" / "mine.txt"):
        words = ["import", "hf", str(folders / "GPT2"), str(out), "--tokenizer", characters]
        assert main(words) == 1
        assert f"{out} exists; choose another name, or --overwrite" in capfd.readouterr().err
        assert main([*words, "--overwrite"]) == 1
        assert f"{out} is not an earlier import" in capfd.readouterr().err
    assert before == {path.name: path.read_bytes() for path in trained.iterdir()}


# Tokenizers that were not exported from here.


def byte_level(text: str, **parts):
    """A byte-level BPE with special tokens, as others train it."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=parts.pop("prefix", False))
    found.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end of it|>", "<|é|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    found.train_from_iterator([text], trainer)
    for name, part in parts.items():
        setattr(found, name, part)
    return found


@pytest.fixture
def with_tokenizer(tmp_path):
    """A folder with a model large enough for any tokenizer, and this one."""

    def make(found, n_ids=320):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, "vocab_size": n_ids}))
        model.save_pretrained(tmp_path / "theirs")
        found.save(str(tmp_path / "theirs" / "tokenizer.json"))
        return tmp_path / "theirs"

    return make


def test_a_byte_level_tokenizer_of_others_becomes_ours_and_special_tokens_are_never_cut_from_text(
    tmp_path, with_tokenizer, story
):
    text = story.read_text(encoding="utf-8")
    theirs = byte_level(
        text,
        normalizer=tokenizers.normalizers.NFC(),
        post_processor=tokenizers.processors.TemplateProcessing(single="<|é|> $A", special_tokens=[("<|é|>", 1)]),
    )
    theirs.add_tokens(["<think>"])
    folder = with_tokenizer(theirs)
    assert main(["import", "hf", str(folder), str(tmp_path / "b")]) == 0
    ours = load_bundle(tmp_path / "b").tokenizer
    assert ours.kind == "bpe"
    assert ours.vocab_size == theirs.get_vocab_size() < 320
    for string in (text[:2000], TEXT, "e\u0301"):
        assert ours.encode(string) == theirs.encode(string, add_special_tokens=False).ids
    for special in ("<|end of it|>", "<|é|>", "<think>"):
        id = theirs.token_to_id(special)
        assert ours.piece(id) == special
        assert ours.decode([id]) == theirs.decode([id]) == ("<think>" if special == "<think>" else "")
        assert theirs.token_to_id(special) not in ours.encode(f"a{special} b")
        assert ours.decode(ours.encode(f"a{special} b")) == f"a{special} b"


def of_gpt2s_pair(folder):
    model = AutoTokenizer.from_pretrained(folder).backend_tokenizer.model
    (folder / "tokenizer.json").unlink()
    model.save(str(folder))


@pytest.mark.parametrize("kind", [pytest.param("gpt2", marks=pytest.mark.slow), "bpe"])
def test_vocab_and_merges_alone_are_enough_for_a_gpt2(tmp_path, story, kind, capfd):
    ours = tokenizer_of(kind, story.read_text(encoding="utf-8"))
    for name, config in (("gpt2", BASE), ("llama", ROTARY)):
        (tmp_path / name).mkdir()
        exported(make_bundle(dataclasses.replace(config, vocab_size=ours.vocab_size), ours), tmp_path / name)
        of_gpt2s_pair(tmp_path / name / "out")
    assert main(["import", "hf", str(tmp_path / "gpt2" / "out"), str(tmp_path / "back")]) == 0
    back = load_bundle(tmp_path / "back").tokenizer
    assert back.kind == kind
    assert back.encode("the king\n d'accord") == ours.encode("the king\n d'accord")
    said = refused(capfd, tmp_path / "llama" / "out", tmp_path / "other")
    assert "has no tokenizer.json" in said, "how a Llama's text is cut before vocab.json is used is not known"


def word_piece():
    return tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))


REFUSED_TOKENIZERS = [
    (lambda text: byte_level(text, prefix=True), "tokenizer.json asks for add_prefix_space, a space before each text"),
    (
        lambda text: byte_level(text, normalizer=tokenizers.normalizers.Lowercase()),
        "changes text before it is cut (Low",
    ),
    (lambda text: byte_level(text, pre_tokenizer=tokenizers.pre_tokenizers.Whitespace()), "does not work on bytes"),
    (lambda text: word_piece(), "is a tokenizer of kind WordPiece that does not work on bytes"),
    (lambda text: tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 1, "b": 2}, "a")), "kind WordLevel that does"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED_TOKENIZERS, ids=[said for _, said in REFUSED_TOKENIZERS])
def test_a_tokenizer_that_is_not_byte_level_bpe_is_refused(tmp_path, with_tokenizer, story, capfd, make, said):
    folder = with_tokenizer(make(story.read_text(encoding="utf-8")))
    assert re.search(re.escape(said), refused(capfd, folder, tmp_path / "out"))


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json"])
def test_a_space_before_each_text_is_refused_by_name_and_without_it_the_ids_are_theirs(
    tmp_path, with_tokenizer, story, capfd, where
):
    """The advice, followed: only the first word is then cut otherwise. `transformers` obeys either file."""
    text = story.read_text(encoding="utf-8")
    folder = with_tokenizer(byte_level(text, prefix=where == "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": where == "tokenizer_config.json"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert f"{folder / where} asks for add_prefix_space" in refused(capfd, folder, tmp_path / "out")
    file = folder / where
    file.write_text(re.sub(r'("add_prefix_space": ?)true', r"\1false", file.read_text()))
    assert main(["import", "hf", str(folder), str(tmp_path / "b")]) == 0
    ours = load_bundle(tmp_path / "b").tokenizer
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for string in ("a", " a", text[:500], TEXT):
        assert ours.encode(string) == theirs.encode(string, add_special_tokens=False).ids
        assert ours.decode(ours.encode(string)) == string


def test_a_sentencepiece_model_of_others_is_not_taken_for_ours(tmp_path, with_tokenizer, story, capfd):
    """Theirs may put a space before each text: only what we would have written ourselves is believed."""
    text = story.read_text(encoding="utf-8")
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    folder = with_tokenizer(unigram, n_ids=330)
    model = sentence_piece.train_sentencepiece([text], "unigram", 320)
    (folder / "tokenizer.model").write_bytes(base64.b64decode(model.to_json()["model"]))
    assert "is a tokenizer of kind Unigram that does not work on bytes" in refused(capfd, folder, tmp_path / "out")
    (folder / "tokenizer.model").write_bytes(b"something else")
    assert "is a tokenizer of kind Unigram" in refused(capfd, folder, tmp_path / "out")


def test_it_says_what_it_made(folders, tmp_path, characters, capsys):
    assert main(["import", "hf", str(folders / "GPT2"), str(tmp_path / "b"), "--tokenizer", characters]) == 0
    said = capsys.readouterr().out.splitlines()
    n_parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folders / "GPT2").parameters())
    assert said[0] == (
        f"{tmp_path / 'b'}: GPT2LMHeadModel, {n_parameters:,} parameters, the char tokenizer with "
        f"{CHARACTERS.vocab_size} ids, and {53 - CHARACTERS.vocab_size} unused ids in the model"
    )
    assert said[1] == f"sample from it: groundling sample {tmp_path / 'b'}"
