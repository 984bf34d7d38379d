"""An exported folder is, to `transformers`, the model and the tokenizer that we have; or a line says why not."""

import dataclasses
import json
import subprocess
import sys
import unicodedata

import pytest
import torch
import transformers
from exportkit import BASE, CHARACTERS, KINDS, ROTARY, TEXT, assert_same_logits, make_bundle, save, tokenizer_of
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from faultkit import crash_at
from groundling import generate
from groundling.cli import main
from groundling.errors import StorageError
from groundling.export.families import write_config
from groundling.export.hf import FILES, export_hf
from groundling.export.hf_tokenizer import tokenizer_spec
from groundling.text import gpt2, sentence_piece
from groundling.text.char import CharTokenizer

QWEN3 = dataclasses.replace(ROTARY, qk_norm=True)
CONFIGS = {
    "GPT2 as it was": BASE,
    "GPT2 without biases, untied, relu": dataclasses.replace(BASE, bias=False, tie_weights=False, mlp="relu"),
    "GPT2 relu2, narrow, padded": dataclasses.replace(BASE, mlp="relu2", n_hidden=41, vocab_size=37, norm_eps=1e-3),
    "Llama tied": ROTARY,
    "Llama with biases, untied": dataclasses.replace(ROTARY, bias=True, tie_weights=False, norm_eps=1e-3),
    "Llama with wide heads, padded": dataclasses.replace(ROTARY, head_size=10, vocab_size=37, n_kv_head=1),
    "Qwen3 tied": QWEN3,
    "Qwen3 with heads of another width": dataclasses.replace(QWEN3, n_embd=32, head_size=8, tie_weights=False),
}


def loaded(folder):
    """By the class that `transformers` picks, and nothing left over or drawn anew."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def exported(bundle, folder):
    assert main(["export", "hf", str(save(bundle, folder / "bundle")), str(folder / "out")]) == 0
    return loaded(folder / "out")


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_gives_our_logits_and_our_text(tmp_path, name):
    bundle = make_bundle(CONFIGS[name])
    model, tokenizer = exported(bundle, tmp_path)
    assert type(model).__name__.startswith(name.split()[0])
    assert_same_logits(model, bundle.model)
    ids = bundle.tokenizer.encode("atone ")
    with torch.no_grad():
        text_ids = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=100)[0, len(ids) :].tolist()
    expected = greedy(bundle, ids, 100)
    assert text_ids == expected, "a greedy choice differs"
    assert tokenizer.decode(text_ids) == generate(bundle, "atone ", temperature=0.0, max_new_tokens=100)


@torch.no_grad()
def greedy(bundle, ids: list[int], n: int) -> list[int]:
    """Without a cache, without anything that samples, and without ids that mean nothing."""
    out = list(ids)
    for _ in range(n):
        out.append(int(bundle.model(torch.tensor([out]))[0, -1, : bundle.tokenizer.vocab_size].argmax()))
    return out[len(ids) :]


def test_it_says_what_it_wrote_and_how_to_load_it(tmp_path, capsys):
    save(make_bundle(ROTARY), tmp_path / "b")
    assert main(["export", "hf", str(tmp_path / "b"), str(tmp_path / "deep" / "out")]) == 0
    out = tmp_path / "deep" / "out"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{out}: LlamaForCausalLM, 18,900 parameters, the char tokenizer with 28 ids"
    assert said[1] == f'load it: transformers.AutoModelForCausalLM.from_pretrained("{out}")'
    assert {path.name for path in out.iterdir()} == FILES - {"tokenizer.model", "chat_template.jinja"}
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing temporary is left"
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "written_by": "groundling"}, "transformers 4 asks for the format"


def test_what_is_not_ours_is_never_replaced(tmp_path):
    """Also what someone has trained on and saved where an export had stood, and whoever calls."""
    bundle = make_bundle(BASE)
    model, _ = exported(bundle, tmp_path)
    model.save_pretrained(tmp_path / "out")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    for name in ("out", "precious", "file", "link"):
        with pytest.raises(StorageError, match="is not an earlier export, and was left alone"):
            export_hf(bundle, tmp_path / name)
    assert (tmp_path / "precious" / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    export_hf(bundle, tmp_path / "empty")
    export_hf(bundle, tmp_path / "empty")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])
@pytest.mark.parametrize("n_spare", [0, 1, 9])
def test_a_text_has_a_beginning_an_end_and_padding_that_the_model_has_rows_for(tmp_path, story, kind, n_spare):
    """lm-eval reads the first, decodes the second and fills batches up with the third; none of them is ever drawn."""
    ours = tokenizer_of(kind, story.read_text(encoding="utf-8"))
    bundle = make_bundle(dataclasses.replace(ROTARY, vocab_size=ours.vocab_size + n_spare), ours)
    model, tokenizer = exported(bundle, tmp_path)
    end = tokenizer.eos_token_id
    assert {tokenizer.bos_token_id, end, tokenizer.pad_token_id} == {ours.vocab_size}
    assert (model.config.bos_token_id, model.config.eos_token_id) == (end, end)
    assert tokenizer.decode(end, skip_special_tokens=False) == "<|endoftext|>"
    assert end in model.generation_config.suppress_tokens
    assert len(tokenizer) <= model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert_same_logits(model, bundle.model)
    batch = tokenizer(["a", "atone "], padding=True, return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
    assert end not in tokenizer("<|endoftext|>" if kind != "char error" else "atone")["input_ids"]


def test_gpt2s_vocabulary_keeps_its_end_of_text(tmp_path):
    bundle = make_bundle(dataclasses.replace(BASE, vocab_size=50304, n_layer=1), gpt2.GPT2Tokenizer())
    model, tokenizer = exported(bundle, tmp_path)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 50256
    assert tokenizer.decode([50256]) == "<|endoftext|>"
    assert tokenizer.decode([64, 50256], skip_special_tokens=True) == "a"


STRINGS = [
    "",
    " ",
    "\n\n",
    "  two  blanks  ",
    "Was <unk> ist <0x41>? <|endoftext|>",
    "don't, I'LL 'Re",
    "caf\u00e9 cafe\u0301 \u2581 \ufffd \U0001f642\u200d\U0001f525 日本語 \0\t\r\n",
    "12345 $3.50 --- ...",
    " the king and fool did speak of love so well\n" * 3,
]


@pytest.mark.parametrize("kind", KINDS)
def test_their_tokenizer_gives_our_ids(tmp_path, story, kind):
    text = story.read_text(encoding="utf-8")
    ours = tokenizer_of(kind, text)
    _, theirs = exported(make_bundle(dataclasses.replace(BASE, vocab_size=ours.vocab_size), ours), tmp_path)
    (settings,) = tmp_path.rglob("tokenizer_config.json")
    # Without this, transformers 4 hands token_type_ids to `generate` of a Llama or Qwen3, which refuses them.
    assert json.loads(settings.read_text("utf-8"))["model_input_names"] == ["input_ids", "attention_mask"]
    for string in [TEXT] if kind.startswith("char") else [*STRINGS, TEXT, text[:3000]]:
        ids = theirs(string)["input_ids"]
        assert ids == ours.encode(string), string
        assert theirs.decode(ids) == string
        assert theirs(string, add_special_tokens=False)["input_ids"] == ids


def test_an_unknown_character_has_an_id_or_is_skipped_or_replaced_as_with_ours(tmp_path, story):
    for kind in KINDS[:3]:
        ours = tokenizer_of(kind, "")
        (tmp_path / kind).mkdir()
        _, theirs = exported(make_bundle(BASE, ours), tmp_path / kind)
        if kind == "char error":
            known, unknown = ours.encode("a e"), theirs.unk_token_id
            assert theirs("aZ\u00fc e")["input_ids"] == [known[0], unknown, unknown, *known[1:]]
            assert CHARACTERS.vocab_size < unknown < len(theirs) == 30
        else:
            assert theirs("aZ\u00fcb e")["input_ids"] == ours.encode("aZ\u00fcb e")


@pytest.mark.slow
def test_gpt2s_tokenizer_cuts_every_character_as_ours(tmp_path):
    import tokenizers

    ours = gpt2.GPT2Tokenizer()
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_spec(ours)))
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Co"]
    strings = [f"a{c}b {c}1{c} {c}{c}  !{c}" for c in every[::29]]
    wrong = [s for s, found in zip(strings, theirs.encode_batch(strings), strict=True) if found.ids != ours.encode(s)]
    assert len(strings) > 30_000
    assert not wrong


@pytest.mark.parametrize("kind", ["unigram", "sp_bpe"])
def test_sentencepieces_words_are_cut_as_ours_cuts_them(story, kind):
    """Words that are no repetition of a few letters: there float32 and float64 can disagree on equal sums."""
    import tokenizers

    text = story.read_text(encoding="utf-8")
    ours = sentence_piece.train_sentencepiece([text + "Whether 'tis nobler, <a> in the mind to suffer!"], kind, 330)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_spec(ours)))
    words = [
        a[: len(a) // 2 + 1] + b
        for a in text.split()[:20]
        for b in ("nobler", "<0x41>", "\u2581x", "'s", "\ufffd ", "é")
    ]
    for word in words:
        assert theirs.encode(word, add_special_tokens=False).ids == ours.encode(word), word


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mlp": "relu2", "position": "rotary", "norm": "rmsnorm"}, "mlp relu2 with rotary positions: no family has"),
        ({"mlp": "swiglu"}, "mlp swiglu with learned positions: no family has this; train with --model.mlp gelu"),
        ({"norm": "rmsnorm"}, "norm rmsnorm with learned positions: no family has this; train with --model.norm lay"),
        ({"qk_norm": True}, "qk_norm with learned positions: no family has this; train with --model.no-qk-norm"),
        ({"n_kv_head": 2}, "n_kv_head 2 with learned positions: no family has this; train with as many as n_head, 6"),
        ({"head_size": 8}, "6 heads of 8 in a width of 36 with learned positions: no family has this"),
        ({"position": "rotary", "mlp": "swiglu"}, "norm layernorm with rotary positions: no family has this"),
        ({**vars(QWEN3), "bias": True}, "qk_norm with biases: Qwen3 has none in its MLP; train with --model.no-bias"),
        ({**vars(ROTARY), "n_embd": 32, "head_size": 8}, "n_embd 32 is not a multiple of n_head 6, and transformers"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_no_family_can_say_is_refused_by_name(tmp_path, capfd, changes, said):
    save(make_bundle(dataclasses.replace(BASE, **changes)), tmp_path / "b")
    assert main(["export", "hf", str(tmp_path / "b"), str(tmp_path / "out")]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("groundling: error: this model is none of GPT-2, Llama and Qwen3: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_llama_whose_width_is_no_multiple_of_its_heads_is_indeed_refused_there():
    sizes = {"hidden_size": 32, "num_attention_heads": 6, "head_dim": 8}
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        transformers.LlamaConfig(**sizes)


def test_a_unigram_piece_that_looks_like_a_byte_is_refused():
    text = "".join(f"<0{a}{b} of <0{b} " for a in "abcdefgh" for b in "klmnopq")
    tokenizer = sentence_piece.train_sentencepiece([text * 20], "unigram", 320)
    with pytest.raises(ValueError, match="has the piece ' <0', and Hugging Face's would take <0x41> in a text"):
        tokenizer_spec(tokenizer)


def test_what_stands_at_out_is_left_alone(tmp_path, capfd):
    bundle = save(make_bundle(BASE), tmp_path / "b")
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    bare = tmp_path / "bare"  # as inside a checkpoint, whose manifest is the folder's above
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (bare / name).write_bytes(before[name])
    assert main(["export", "hf", str(bundle), str(tmp_path / "shared")]) == 0
    (tmp_path / "shared" / "mine.txt").write_text("mine")
    capfd.readouterr()
    for out in (bundle, tmp_path / "full", tmp_path / "file", bare, tmp_path / "shared"):
        assert main(["export", "hf", str(bundle), str(out)]) == 1
        assert f"{out} exists; choose another name, or --overwrite" in capfd.readouterr().err
        assert main(["export", "hf", str(bundle), str(out), "--overwrite"]) == 1
        assert f"{out} is not an earlier export, and was left alone" in capfd.readouterr().err
    assert before == {path.name: path.read_bytes() for path in bundle.iterdir()}
    for kept in ("full/mine.txt", "file", "shared/mine.txt"):
        assert (tmp_path / kept).read_text() == "mine"


def test_an_earlier_export_is_replaced_when_asked(tmp_path):
    for number, config in enumerate((BASE, ROTARY)):
        bundle = save(make_bundle(config), tmp_path / str(number))
        assert main(["export", "hf", str(bundle), str(tmp_path / "out"), "--overwrite"]) == 0
    assert type(loaded(tmp_path / "out")[0]).__name__ == "LlamaForCausalLM"


def test_a_crash_leaves_the_old_export_or_the_new_or_none(tmp_path):
    old, new, out = make_bundle(BASE), make_bundle(ROTARY), tmp_path / "out"
    number, seen = 1, set()
    while True:
        export_hf(old, out)
        crashed = crash_at(number, lambda: export_hf(new, out))
        stands = out.exists() and json.loads((out / "config.json").read_text())["model_type"]
        if out.exists():
            assert {path.name for path in out.iterdir()} == FILES - {"tokenizer.model", "chat_template.jinja"}
        seen.add(stands)
        if not crashed:
            break
        number += 1
    assert stands == "llama"
    assert seen == {"gpt2", "llama", False}
    assert number > 15


def test_the_config_can_be_read_by_transformers_4(tmp_path):
    """It looks for the rotary base at the top, and for `torch_dtype`."""
    values = write_config(ROTARY)
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 500.0
    assert values["torch_dtype"] == "float32"


def test_a_run_and_its_checkpoints_can_be_exported(finished_run, tmp_path, capfd):
    for words in (["--checkpoint", "last"], []):
        out = tmp_path / f"out{len(words)}"
        assert main(["export", "hf", str(finished_run), str(out), *words]) == 0
        assert {"config.json", "model.safetensors"} < {path.name for path in out.iterdir()}
    capfd.readouterr()
    assert main(["export", "hf", str(finished_run), str(tmp_path / "x"), "--checkpoint", "77"]) == 1
    assert "has no checkpoint '77'" in capfd.readouterr().err


@pytest.mark.slow
def test_neither_transformers_nor_tokenizers_is_needed_for_characters(tmp_path):
    save(make_bundle(BASE), tmp_path / "b")
    code = (
        "import sys; sys.modules.update(transformers=None, tokenizers=None); from groundling.cli import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["export", "hf", str(tmp_path / "b"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        CharTokenizer(CHARACTERS.symbols).encode(TEXT)
        == AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)["input_ids"]
    )
