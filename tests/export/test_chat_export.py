"""A model that chats leaves as one: with its template, its ends and its special tokens; and comes back as it was."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from exportkit import (
    BASE,
    CHARACTERS,
    KINDS,
    ROTARY,
    assert_equal,
    assert_same_logits,
    make_bundle,
    make_chat,
    save,
    tokenizer_of,
)
from hypothesis import given
from hypothesis import strategies as st
from instructkit import write_gpt2, write_qwen, write_smol
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from groundling.align.chat import Chat
from groundling.bundle import load_bundle
from groundling.cli import main
from groundling.export.chat_template.escapes import INSERTED, LITERAL
from groundling.export.chat_template.jinja import to_jinja
from groundling.export.hf_tokenizer import tokenizer_spec
from groundling.sample.sampler import SamplingConfig
from groundling.text.bpe import AddedToken, BPETokenizer
from groundling.text.chat.messages import ROLES, Message
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.template import to_ids

TEXTS = ["<|turn_end|>", "<|system_start|>", "<|user_start|>", "<|assistant_start|>"]
CHAT_KINDS = ["char skip", "bpe", "sp_bpe", "unigram"]
HOSTILE = [
    *TEXTS,
    "<|unk|>",
    "<|endoftext|>",
    "<|",
    "<",
    "|>",
    "|",
    "<unk>",
    "<0x41>",
    LITERAL,
    INSERTED,
    "\ufdd0",
    "\ufdd1",
]
WORDS = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=6), max_size=6).map("".join)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(ROLES), WORDS), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def folders(story, tmp_path_factory):
    """One export for each kind of tokenizer, whose training text spelled the special tokens too."""
    text = story.read_text(encoding="utf-8") + " <|turn_end|> hello <|user_start|>" * 40
    made = {}
    for kind in CHAT_KINDS:
        folder = tmp_path_factory.mktemp(kind.replace(" ", "_"))
        bundle = make_chat(dataclasses.replace(ROTARY, n_layer=1), tokenizer_of(kind, text))
        assert main(["export", "hf", str(save(bundle, folder / "bundle")), str(folder / "out")]) == 0
        made[kind] = (bundle, folder / "out", AutoTokenizer.from_pretrained(folder / "out"))
    return made


@pytest.mark.parametrize("kind", CHAT_KINDS)
@given(messages=MESSAGES, asks=st.booleans())
def test_transformers_renders_a_conversation_to_our_ids(folders, kind, messages, asks):
    """Whatever people say, also what spells a special token: no words become structure."""
    bundle, _, tokenizer = folders[kind]
    said = [{"role": message.role, "content": message.content} for message in messages]
    ours = (bundle.chat.prompt if asks else lambda *given: bundle.chat.render(*given).ids)(messages, bundle.tokenizer)
    assert tokenizer.apply_chat_template(said, add_generation_prompt=asks)["input_ids"] == ours
    # As vLLM does it: to a text first, which is encoded like any other.
    text = tokenizer.apply_chat_template(said, add_generation_prompt=asks, tokenize=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours


def test_a_special_token_of_that_text_keeps_its_id(tmp_path):
    """A tokenizer that was imported can have one of our texts already, among hundreds; then ours gets another."""
    plain = tokenizer_of("bpe", "to be or not to be " * 50)
    V = plain.vocab_size
    added = [AddedToken(f"<|reserved_{n}|>" if n else "<|turn_end|>", V + n, True) for n in range(256)]
    tokenizer = BPETokenizer(json.dumps(plain.to_json()["tokenizers"]), added, [V])
    bundle = make_chat(BASE, tokenizer)
    assert main(["export", "hf", str(save(bundle, tmp_path / "b")), str(tmp_path / "out")]) == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|turn_end_|>", bundle.chat.end)
    assert theirs.convert_tokens_to_ids("<|turn_end|>") == V
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [bundle.chat.end, V]
    messages = [Message("user", "<|turn_end|> <|turn_end_|> <|reserved_255|>")]
    said = [{"role": message.role, "content": message.content} for message in messages]
    assert theirs.apply_chat_template(said)["input_ids"] == bundle.chat.render(messages, tokenizer).ids
    assert main(["import", "hf", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    assert_equal(load_bundle(tmp_path / "back"), bundle)


def test_the_text_of_the_template_stays():
    """An export is recognised on import by the text of its template: a reworded one would come back as a base model."""
    chat = RoleTokens.after(5)
    names = {id: f"<|{id}|>" for id in chat.special_ids()}
    texts = [to_jinja(chat, names, escapes=escapes) for escapes in (False, True)]
    assert [hashlib.sha256(text.encode()).hexdigest() for text in texts] == [
        "093ae53f8f28529c6a5f34d26a5a6f16ec7d7dedf0e70b9dd4cef313a0a33998",
        "070a629a6262c429d91c28e2b91f6273dd35c4b33d37de76fd66ef6ccf6e0aad",
    ]


@pytest.mark.parametrize("said", [{"role": "tool", "content": "a"}, {"role": "user", "content": ["a"]}])
def test_the_template_refuses_what_is_no_message(folders, said):
    with pytest.raises(Exception, match=r"no role is called tool|the content of a message has to be text"):
        folders["bpe"][2].apply_chat_template([said])


@pytest.mark.parametrize("kind", ["char error", *CHAT_KINDS])
def test_a_turn_ends_with_the_models_own_end(tmp_path, story, kind):
    """In all files that say so; and only ids that no reply holds are forbidden: roles, what is unknown, padding."""
    bundle = make_chat(BASE, tokenizer_of(kind, story.read_text(encoding="utf-8")))
    assert main(["export", "hf", str(save(bundle, tmp_path / "b")), str(tmp_path / "out")]) == 0
    config, generation = (
        json.loads((tmp_path / "out" / name).read_text("utf-8")) for name in ("config.json", "generation_config.json")
    )
    tokenizer, end = AutoTokenizer.from_pretrained(tmp_path / "out"), bundle.chat.end
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id == end
    assert config["bos_token_id"] is generation["bos_token_id"] is tokenizer.bos_token_id is None
    assert generation["suppress_tokens"] == list(range(end + 1, config["vocab_size"]))
    assert tokenizer.convert_tokens_to_ids(TEXTS) == list(range(end, end + 4))
    assert tokenizer.decode([end + 2, *bundle.tokenizer.encode("at"), end], skip_special_tokens=True) == "at"


@pytest.mark.parametrize("config", [BASE, ROTARY], ids=["GPT2", "Llama"])
def test_transformers_chats_as_we_do(tmp_path, config):
    bundle = make_chat(dataclasses.replace(config, block_size=256, tie_weights=False))
    with torch.no_grad():  # so that replies end before the context does
        bundle.model.lm_head.weight[bundle.chat.end] += 0.2 * bundle.model.lm_head.weight[: bundle.chat.end].mean(0)
    assert main(["export", "hf", str(save(bundle, tmp_path / "b")), str(tmp_path / "out")]) == 0
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert_same_logits(model, bundle.model)
    chat = Chat(bundle, SamplingConfig(temperature=0.0, max_new_tokens=40), None, system="atone")
    said, ended = [{"role": "system", "content": "atone"}], 0
    for words in ("an oat", "is a rat", "no"):
        said.append({"role": "user", "content": words})
        inputs = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :].tolist()
        ended += ids[-1] == bundle.chat.end
        said.append({"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)})
        assert said[-1]["content"] == "".join(chat.reply(words))
    assert len({message["content"] for message in said[2::2]}) > 1


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "gpt2" else k for k in KINDS])
@pytest.mark.parametrize("n_spare", [0, 7])
def test_a_model_that_chats_comes_back_as_it_was(tmp_path, capsys, story, kind, n_spare):
    """From our folder, and after transformers has saved it again."""
    tokenizer = tokenizer_of(kind, story.read_text(encoding="utf-8"))
    bundle = make_chat(dataclasses.replace(BASE, n_layer=1), tokenizer)
    if n_spare:
        config = dataclasses.replace(bundle.config, vocab_size=bundle.config.vocab_size + n_spare)
        bundle = dataclasses.replace(make_bundle(config, tokenizer), chat=bundle.chat)
    out = tmp_path / "out"
    assert main(["export", "hf", str(save(bundle, tmp_path / "b")), str(out)]) == 0
    capsys.readouterr()
    assert main(["import", "hf", str(out), str(tmp_path / "back")]) == 0
    assert (f"{n_spare} unused ids in the model" in capsys.readouterr().out) == bool(n_spare)
    assert_equal(load_bundle(tmp_path / "back"), bundle)
    for part in (AutoModelForCausalLM, AutoTokenizer):
        part.from_pretrained(out).save_pretrained(tmp_path / "again")
    if kind in ("unigram", "sp_bpe"):
        assert main(["import", "hf", str(tmp_path / "again"), str(tmp_path / "back2")]) == 1
        assert "has no tokenizer.model, which transformers does not save again; copy it" in capsys.readouterr().err
        shutil.copy(out / "tokenizer.model", tmp_path / "again")
    assert main(["import", "hf", str(tmp_path / "again"), str(tmp_path / "back2")]) == 0
    assert_equal(load_bundle(tmp_path / "back2"), bundle)


def test_a_template_that_somebody_changed_is_not_taken_for_ours(folders, tmp_path, capsys):
    bundle, out, _ = folders["bpe"]
    for path in out.iterdir():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    template = tmp_path / "out" / "chat_template.jinja"
    template.write_text(template.read_text("utf-8") + "\n", "utf-8")
    assert main(["import", "hf", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    assert load_bundle(tmp_path / "back").chat == bundle.chat, "a line's end at its end changes nothing"
    template.write_text(template.read_text("utf-8").replace("<|turn_end|>", "<|user_start|>"), "utf-8")
    assert main(["import", "hf", str(tmp_path / "out"), str(tmp_path / "back"), "--overwrite"]) == 0
    assert "its chat template is not the one it was exported with" in capsys.readouterr().out
    back = load_bundle(tmp_path / "back")
    assert back.chat is None
    assert back.tokenizer.vocab_size == bundle.tokenizer.vocab_size


@pytest.mark.parametrize(
    "damage", [{"texts": {"<|x|>": 3}}, {"chat": {"end": 1}}, {"added_rows": -1}, {"added_rows": "1"}, 7]
)
def test_a_damaged_note_is_not_believed(tmp_path, capfd, damage):
    """The folder is then read like anybody's, where a tokenizer that changes text is refused; nothing is invented."""
    bundle = make_chat(BASE, tokenizer_of("bpe", "to be or not to be " * 50))
    assert main(["export", "hf", str(save(bundle, tmp_path / "b")), str(tmp_path / "out")]) == 0
    file = tmp_path / "out" / "config.json"
    values = json.loads(file.read_text("utf-8"))
    note = {**values["groundling_export"], **damage} if isinstance(damage, dict) else damage
    file.write_text(json.dumps({**values, "groundling_export": note}), "utf-8")
    capfd.readouterr()
    assert main(["import", "hf", str(tmp_path / "out"), str(tmp_path / "back")]) == 1
    said = capfd.readouterr().err
    assert "changes text before it is cut (Sequence)" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "back").exists()


def test_rows_that_only_the_export_has_stay_when_somebody_trained_them(tmp_path):
    assert main(["export", "hf", str(save(make_bundle(BASE), tmp_path / "b")), str(tmp_path / "out")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        model.lm_head.weight[-1] += 0.5
    for part in (model, AutoTokenizer.from_pretrained(tmp_path / "out")):
        part.save_pretrained(tmp_path / "trained")
    assert main(["import", "hf", str(tmp_path / "trained"), str(tmp_path / "back")]) == 0
    back = load_bundle(tmp_path / "back")
    assert back.config.vocab_size == CHARACTERS.vocab_size + 2
    assert_same_logits(model, back.model)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Models with templates and special tokens of their own: imported, and exported again."""
    root = tmp_path_factory.mktemp("imported")
    write_smol(root / "smol", eos_token_id=[0, 2])  # the end of a text before that of a turn
    write_qwen(root / "qwen")
    write_gpt2(root / "gpt2")
    for name in ("smol", "qwen", "gpt2"):
        assert main(["import", "hf", str(root / name), str(root / f"{name}-bundle")]) == 0
        assert main(["export", "hf", str(root / f"{name}-bundle"), str(root / f"{name}-out")]) == 0
    return root


@pytest.mark.parametrize("name", ["smol", "qwen", "gpt2"])
def test_an_imported_model_leaves_with_all_that_it_came_with(imported, tmp_path, name):
    bundle = load_bundle(imported / f"{name}-bundle")
    theirs, again = (AutoTokenizer.from_pretrained(imported / folder) for folder in (name, f"{name}-out"))
    assert again.eos_token == theirs.eos_token
    assert again.added_tokens_encoder.items() >= theirs.added_tokens_encoder.items()
    ends = GenerationConfig.from_pretrained(imported / f"{name}-out").eos_token_id
    assert (ends if isinstance(ends, list) else [ends]) == list(bundle.end_ids)
    assert main(["import", "hf", str(imported / f"{name}-out"), str(tmp_path / "back")]) == 0
    assert_equal(load_bundle(tmp_path / "back"), bundle)


@pytest.mark.parametrize("name", ["smol", "qwen"])
def test_its_exported_template_gives_our_ids(imported, name):
    bundle, theirs = load_bundle(imported / f"{name}-bundle"), AutoTokenizer.from_pretrained(imported / f"{name}-out")
    hostile = st.sampled_from(["<|im_end|>", "<|im_start|>user\n", "<think>", "</think>", "a</think>\n\nb"])

    @given(st.lists(WORDS | hostile, min_size=1, max_size=4), st.none() | WORDS, st.booleans())
    def same(words, system, thinking):
        messages = [Message("system", system)] * (system is not None)
        messages += [Message(("user", "assistant")[number % 2], each) for number, each in enumerate(words)]
        said = [{"role": message.role, "content": message.content} for message in messages]
        if asks := messages[-1].role == "user":
            ours = bundle.chat.prompt(messages, bundle.tokenizer, thinking=thinking)
        else:
            ours = bundle.chat.render(messages, bundle.tokenizer).ids
            ours += to_ids(bundle.chat.closing("assistant")[1:], bundle.tokenizer)
        how = {"add_generation_prompt": asks, "enable_thinking": thinking}
        assert theirs.apply_chat_template(said, **how)["input_ids"] == ours

    same()


def test_ids_of_a_chat_that_the_model_has_no_rows_for_are_refused(tmp_path, capfd):
    bundle = make_chat(BASE, tokenizer_of("bpe", "to be or not to be " * 50))
    plain = make_bundle(dataclasses.replace(BASE, vocab_size=bundle.tokenizer.vocab_size), bundle.tokenizer)
    for name, each in (("chat", bundle), ("plain", plain)):
        assert main(["export", "hf", str(save(each, tmp_path / name)), str(tmp_path / f"{name}-out")]) == 0
    config = json.loads((tmp_path / "plain-out" / "config.json").read_text("utf-8"))
    note = json.loads((tmp_path / "chat-out" / "config.json").read_text("utf-8"))["groundling_export"]
    as_saved = shutil.copytree(tmp_path / "chat-out", tmp_path / "as saved")
    (tmp_path / "chat-out" / "config.json").write_text(json.dumps({**config, "groundling_export": note}), "utf-8")
    weights = (tmp_path / "plain-out" / "model.safetensors").read_bytes()
    (tmp_path / "chat-out" / "model.safetensors").write_bytes(weights)
    capfd.readouterr()
    assert main(["import", "hf", str(tmp_path / "chat-out"), str(tmp_path / "back")]) == 1
    assert "the chat template has the id" in capfd.readouterr().err
    assert not (tmp_path / "back").exists()
    assert main(["import", "hf", str(as_saved), str(tmp_path / "back")]) == 0


def test_an_export_from_before_special_tokens_still_comes_back(tmp_path):
    """Without our note, without ends, and with a tokenizer whose unknown token is no word."""
    bundle = make_bundle(dataclasses.replace(BASE, vocab_size=CHARACTERS.vocab_size + 2))
    out = tmp_path / "out"
    assert main(["export", "hf", str(save(bundle, tmp_path / "b")), str(out)]) == 0
    values = json.loads((out / "config.json").read_text("utf-8"))
    del values["groundling_export"]
    (out / "config.json").write_text(json.dumps({**values, "bos_token_id": None, "eos_token_id": None}), "utf-8")
    (out / "generation_config.json").write_text("{}", "utf-8")
    (out / "tokenizer.json").write_text(json.dumps(tokenizer_spec(CHARACTERS)), "utf-8")
    (out / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', "utf-8")
    assert main(["import", "hf", str(out), str(tmp_path / "back")]) == 0
    assert_equal(load_bundle(tmp_path / "back"), bundle)
