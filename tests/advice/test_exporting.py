"""Advice about exports and imports, followed."""

import dataclasses
import io
import json
import shlex
import shutil

import pytest
import torch
from advicekit import FOLLOWED, follows, parsed
from test_f33_round_trip import without_a_piece_for_a_space

from groundling.bundle import load_bundle, save_bundle
from groundling.bundle.weights import plain_state_dict
from groundling.export.families import GPT2
from groundling.export.weights import TRANSPOSED, to_theirs
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.bpe import BPETokenizer, train_bpe
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.gpt2 import END_OF_TEXT
from groundling.text.sentence_piece import train_sentencepiece
from groundling.text.serialize import save_tokenizer

LETTERS = CharTokenizer("\n abcdefgh")
SMALL = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=LETTERS.vocab_size)
ROTARY = dataclasses.replace(SMALL, norm="rmsnorm", mlp="swiglu", position="rotary", bias=False)
SAY = ("--prompt", "a", "--max-new-tokens", "2")


@pytest.fixture
def bundle(tmp_path):
    """Writes bundles: `bundle(config, tokenizer)` is a folder."""

    def write(config=SMALL, tokenizer=LETTERS, name="bundle"):
        torch.manual_seed(0)
        save_bundle(tmp_path / name, GPT(dataclasses.replace(config, vocab_size=tokenizer.vocab_size)), tokenizer)
        return tmp_path / name

    return write


FAMILIES = {
    "norm rmsnorm {} --model.norm layernorm": (dataclasses.replace(SMALL, norm="rmsnorm"), "--model.norm layernorm"),
    "mlp swiglu {} --model.mlp gelu": (dataclasses.replace(SMALL, mlp="swiglu"), "--model.mlp gelu"),
    "qk_norm {} --model.no-qk-norm": (dataclasses.replace(SMALL, qk_norm=True), "--model.no-qk-norm"),
    "norm layernorm {} --model.norm rmsnorm": (dataclasses.replace(ROTARY, norm="layernorm"), "--model.norm rmsnorm"),
    "mlp {} {} --model.mlp swiglu": (dataclasses.replace(ROTARY, mlp="relu"), "--model.mlp swiglu"),
    "qk_norm with biases: Qwen3 has none in its MLP; train with --model.no-bias": (
        dataclasses.replace(ROTARY, qk_norm=True, bias=True),
        "--model.no-bias",
    ),
    "n_embd {} is not a multiple of n_head {}, and transformers refuses such a Llama; train with another n_head, or as "
    "a Qwen3 with --model.qk-norm": (dataclasses.replace(ROTARY, n_head=3, head_size=4), "--model.qk-norm"),
    "with learned positions: no family has this; train with": (
        dataclasses.replace(SMALL, norm="rmsnorm"),
        "--model.norm layernorm",
    ),
    "with rotary positions: no family has this; train with": (
        dataclasses.replace(ROTARY, norm="layernorm"),
        "--model.norm rmsnorm",
    ),
}
FOLLOWED.update(FAMILIES)


@pytest.mark.parametrize("template", FAMILIES)
def test_a_model_of_no_family(advised, bundle, template, tmp_path, request):
    request.node.advice = [template]
    config, flags = FAMILIES[template]
    said = advised.refused("export", "hf", bundle(config), tmp_path / "out")
    assert flags in said
    before = [f"--{'model'}.{name}={value}" for name, value in dataclasses.asdict(config).items()
              if value is not None and not isinstance(value, bool)]  # fmt: skip
    before += [
        f"--model.{'' if value else 'no-'}{name.replace('_', '-')}"
        for name, value in dataclasses.asdict(config).items()
        if isinstance(value, bool)
    ]
    trained = parsed(["pretrain", *before, *flags.split()]).model
    advised.works("export", "hf", bundle(trained), tmp_path / "out")


@follows(
    "mlp is {}, and llama.cpp computes every GPT-2 with GELU; train with --model.mlp gelu, or export to Hugging Face"
)
def test_a_gpt2_that_llama_cpp_computes_otherwise(advised, bundle, tmp_path):
    relu = bundle(dataclasses.replace(SMALL, mlp="relu"))
    advised.refused("export", "gguf", relu, tmp_path / "m.gguf")
    advised.works("export", "hf", relu, tmp_path / "out")
    advised.works("export", "gguf", bundle(name="gelu"), tmp_path / "m.gguf")


OF_TOKENIZERS = {
    "a {} tokenizer cannot be exported to GGUF: llama.cpp's has no bytes for unknown characters, not even for a "
    "newline; train with --data.tokenizer.kind bpe, or export to Hugging Face": lambda text: train_sentencepiece(
        [text], "unigram", 300
    ),
    "this character tokenizer cannot be exported to GGUF: {} of its {} characters are more than one byte in UTF-8 "
    "({}), and llama.cpp's tokens without merges are single bytes; train with --data.tokenizer.kind bpe, or export to "
    "Hugging Face": lambda text: CharTokenizer("abé"),
    "this sp_bpe tokenizer has no piece for a space, and llama.cpp would write U+2581 for each; train with "
    "--data.tokenizer.kind bpe, or export to Hugging Face": lambda text: without_a_piece_for_a_space("sp_bpe"),
}
FOLLOWED.update(OF_TOKENIZERS)


@pytest.mark.parametrize("template", OF_TOKENIZERS)
def test_a_tokenizer_that_gguf_cannot_hold(advised, bundle, template, tmp_path, story, request):
    request.node.advice = [template]
    text = story.read_text(encoding="utf-8")
    refused = bundle(ROTARY, OF_TOKENIZERS[template](text))
    advised.refused("export", "gguf", refused, tmp_path / "m.gguf")
    advised.works("export", "hf", refused, tmp_path / "out")
    advised.works("tokenizer", "train", "--kind", "bpe", "--vocab-size", "300", "--out-dir", tmp_path / "t",
                  "--data.path", story)  # fmt: skip
    advised.works("export", "gguf", bundle(ROTARY, train_bpe([text], 300), "pairs"), tmp_path / "m.gguf")


@follows(
    "the tokenizer has learned {} as ordinary text, and llama.cpp would take it for the end of the text; take it out "
    "of the training text, or export to Hugging Face"
)
def test_an_end_of_text_that_was_learned(advised, bundle, tmp_path):
    values = train_bpe(["the king did speak of love " * 20], 300).to_json()["tokenizers"]
    known = values["model"]["vocab"]
    for length in range(2, len(END_OF_TEXT) + 1):  # as training makes of a text that is full of it
        known.setdefault(END_OF_TEXT[:length], len(known))
        values["model"]["merges"].append([END_OF_TEXT[: length - 1], END_OF_TEXT[length - 1]])
    refused = bundle(ROTARY, BPETokenizer(json.dumps(values)))
    advised.refused("export", "gguf", refused, tmp_path / "m.gguf")
    advised.works("export", "hf", refused, tmp_path / "out")
    without = train_bpe(["the king did speak of love " * 20], 300)
    advised.works("export", "gguf", bundle(ROTARY, without, "without"), tmp_path / "m.gguf")


def test_an_imported_end_of_text_is_the_end(bundle, tmp_path, capfd):
    """It is in the vocabulary, and no merge leads to it: `train another tokenizer` was no advice for that."""
    from groundling.cli import main
    from groundling.export.gguf_vocabulary import CONTROL, vocabulary_of

    values = train_bpe(["the king did speak of love " * 20], 300).to_json()["tokenizers"]
    values["model"]["vocab"][END_OF_TEXT] = len(values["model"]["vocab"])
    tokenizer = BPETokenizer(json.dumps(values))
    said = vocabulary_of(tokenizer)
    assert (said.ends, said.end_is_added) == ((tokenizer.vocab_size - 1,), False)
    assert said.types[said.ends[0]] == CONTROL
    assert main(["export", "gguf", str(bundle(ROTARY, tokenizer)), str(tmp_path / "m.gguf")]) == 0


@follows(
    "the unigram tokenizer has the piece {}, and Hugging Face's would take <0x41> in a text for a byte; train with "
    "--data.tokenizer.kind bpe, or sp_bpe, to export"
)
def test_a_unigram_piece_that_spells_a_byte(advised, bundle, tmp_path):
    text = "".join(f"<0{a}{b} of <0{b} " for a in "abcdefgh" for b in "klmnopq") * 20
    advised.refused("export", "hf", bundle(ROTARY, train_sentencepiece([text], "unigram", 320)), tmp_path / "out")
    advised.works("export", "hf", bundle(ROTARY, train_bpe([text], 300), "pairs"), tmp_path / "out")
    others = bundle(ROTARY, train_sentencepiece([text], "sp_bpe", 320), "others")
    advised.works("export", "hf", others, tmp_path / "another")


@follows(
    "{} exists; choose another name, or --overwrite to replace an earlier export",
    "{} is not an earlier export, and was left alone; choose another name",
)
@pytest.mark.parametrize("kind", ["hf", "gguf", "bundle"])
def test_what_stands_at_out(advised, bundle, kind, tmp_path):
    words = ("export", kind, bundle())
    advised.works(*words, tmp_path / "out")
    advised.refused(*words, tmp_path / "out")
    advised.works(*words, tmp_path / "out", "--overwrite")
    advised.works(*words, tmp_path / "another")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    advised.refused(*words, tmp_path / "mine", "--overwrite")
    advised.works(*words, tmp_path / "third")


# Imports


@pytest.fixture
def theirs(bundle, tmp_path, advised):
    """A folder as transformers has it: our own export."""
    advised.works("export", "hf", bundle(), tmp_path / "theirs")
    return tmp_path / "theirs"


@follows(
    "{} exists; choose another name, or --overwrite to replace an earlier import",
    "{} is not an earlier import (its {} says), and was left alone; choose another name",
    "sample from it: groundling sample {}",
)
def test_where_an_import_goes(advised, theirs, bundle, tmp_path):
    words = ("import", "hf", theirs)
    said = advised.works(*words, tmp_path / "out")
    advised.works(*said.rpartition("groundling ")[2].split(), *SAY)
    advised.refused(*words, tmp_path / "out")
    advised.works(*words, tmp_path / "out", "--overwrite")
    advised.works(*words, tmp_path / "another")
    advised.refused(*words, bundle(name="trained"), "--overwrite")
    advised.works(*words, tmp_path / "third")


@follows("chat with it: groundling chat {}")
def test_an_import_that_chats(advised, bundle, tmp_path, monkeypatch):
    ours = load_bundle(bundle(dataclasses.replace(SMALL, block_size=32)))
    model = GPT(dataclasses.replace(ours.config, vocab_size=LETTERS.vocab_size + 4))
    save_bundle(tmp_path / "talker", model, LETTERS, chat=RoleTokens.after(LETTERS.vocab_size))
    advised.works("export", "hf", tmp_path / "talker", tmp_path / "theirs")
    said = advised.works("import", "hf", tmp_path / "theirs", tmp_path / "it's here")
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n"))
    advised.works(*shlex.split(said.rpartition("groundling ")[2]), "--max-new-tokens", "3")


@follows(
    "{} is not a folder; give one with {} and {}",
    "{} has no {}; give a folder that transformers could load a model from",
    "{} has no {} and no {}; download the weights too",
    "give another with --tokenizer",
)
def test_a_folder_to_import(advised, theirs, tmp_path):
    out = tmp_path / "out"
    advised.refused("import", "hf", theirs / "config.json", out)
    (tmp_path / "empty").mkdir()
    advised.refused("import", "hf", tmp_path / "empty", out)
    shutil.move(theirs / "model.safetensors", tmp_path / "away.safetensors")
    advised.refused("import", "hf", theirs, out)
    shutil.move(tmp_path / "away.safetensors", theirs / "model.safetensors")
    (theirs / "tokenizer.json").unlink()
    advised.refused("import", "hf", theirs, out)
    save_tokenizer(LETTERS, tmp_path)
    advised.works("import", "hf", theirs, out, "--tokenizer", tmp_path)


@follows(
    "{} is missing, and {} names it; download the whole model",
    "{}: no file holds {}, and {} names it; download the model again",
)
def test_a_model_in_parts_that_is_not_whole(advised, theirs, tmp_path):
    weights = theirs / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    names = sorted(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, theirs / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (theirs / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    weights.unlink()
    shutil.move(theirs / "b.safetensors", tmp_path / "b")
    advised.refused("import", "hf", theirs, tmp_path / "out")
    save_file({name: tensors[name] for name in names[4:]}, theirs / "b.safetensors")
    advised.refused("import", "hf", theirs, tmp_path / "out")
    shutil.copy(tmp_path / "b", theirs / "b.safetensors")
    advised.works("import", "hf", theirs, tmp_path / "out")


@follows(
    '{}: the embedding and lm_head.weight differ, and its config says that they are tied; set "tie_word_embeddings" '
    "to false there if they are meant to differ",
    "the {} tokenizer has {} ids and the model {}; they do not belong together, so give the tokenizer it was trained "
    "with",
)
def test_what_does_not_belong_together(advised, theirs, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(theirs / "model.safetensors")
    table = next(name for name in tensors if name.endswith("wte.weight"))
    save_file({**tensors, "lm_head.weight": tensors[table] + 1}, theirs / "model.safetensors", {"format": "pt"})
    advised.refused("import", "hf", theirs, tmp_path / "out")
    config = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
    (theirs / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")
    advised.works("import", "hf", theirs, tmp_path / "out")
    (tmp_path / "long").mkdir()
    save_tokenizer(CharTokenizer("\n abcdefghijklm"), tmp_path / "long")
    advised.refused("import", "hf", theirs, tmp_path / "other", "--tokenizer", tmp_path / "long")
    save_tokenizer(LETTERS, tmp_path)
    advised.works("import", "hf", theirs, tmp_path / "other", "--tokenizer", tmp_path)


@follows(
    "there is no file {}; give the ckpt.pt of nanoGPT",
    "the text {} cannot be read: {}; give the UTF-8 file nanoGPT was trained on",
    "{} has {} different characters and the model {} tokens; give the whole text that it was trained on, or its "
    "tokenizer",
)
def test_a_checkpoint_of_nanogpt(advised, bundle, tmp_path):
    ours = load_bundle(bundle())
    named = to_theirs(plain_state_dict(ours.model), ours.config, GPT2)
    weights = {name: tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor for name, tensor in named.items()}
    sizes = {name: getattr(ours.config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    torch.save({"model": weights, "model_args": sizes}, tmp_path / "ckpt.pt")
    text = tmp_path / "input.txt"
    words = ("import", "nanogpt", tmp_path / "ckpt.pt", tmp_path / "out")
    advised.refused("import", "nanogpt", tmp_path / "none.pt", tmp_path / "out", "--text", text)
    advised.refused(*words, "--text", text)
    text.write_text("abc", encoding="utf-8")
    advised.refused(*words, "--text", text)
    text.write_text(LETTERS.symbols, encoding="utf-8")
    advised.works(*words, "--text", text)
    save_tokenizer(LETTERS, tmp_path)
    advised.works(*words, "--overwrite", "--tokenizer", tmp_path)
