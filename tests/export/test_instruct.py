"""An imported instruct model chats: its template, special tokens, ends and thoughts come along."""

import io
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instructkit import (
    CHATML,
    DEFAULT,
    END,
    START,
    STOP,
    THINKING,
    put_template_into_config,
    write_gpt2,
    write_qwen,
    write_smol,
)
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from groundling.align.replies import ReplySampler
from groundling.align.reward.functions import from_function
from groundling.bundle import load_bundle, load_chat_bundle
from groundling.cli import main
from groundling.data.examples.encoding import least_ids
from groundling.export.chat_template import rendering
from groundling.export.chat_template.jinja import to_jinja
from groundling.export.chat_template.rendering import TemplateError, render
from groundling.export.gguf_vocabulary import USER_DEFINED, vocabulary_of
from groundling.export.hf_tokenizer import gpt2_spec
from groundling.sample.generate import generate, generate_batch, stream, text_engine
from groundling.sample.sampler import SamplingConfig
from groundling.text.chat.messages import Message
from groundling.text.chat.reading import messages_in
from groundling.text.chat.serialize import template_from_json
from servekit import events, serving

HOSTILE = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<repo_name>", "assistant"]
WORDS = st.text(st.sampled_from("ab 1.'\n\té|<>"), max_size=9)
CONVERSATIONS = st.tuples(st.none() | WORDS, st.lists(WORDS, min_size=1, max_size=5))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both kinds, and what they are imported as."""
    root = tmp_path_factory.mktemp("instruct")
    for name, write in (("smol", write_smol), ("qwen", write_qwen), ("gpt2", write_gpt2)):
        write(root / name)
        assert main(["import", "hf", str(root / name), str(root / f"{name}-bundle")]) == 0
    return root


def messages_of(system, words):
    first = [Message("system", system)] * (system is not None)
    return [*first, *(Message(("user", "assistant")[number % 2], each) for number, each in enumerate(words))]


@pytest.mark.parametrize("kind", ["smol", "qwen"])
def test_a_prompt_is_what_transformers_makes_of_it(folders, kind):
    bundle, theirs = load_bundle(folders / f"{kind}-bundle"), AutoTokenizer.from_pretrained(folders / kind)
    names = {token.id: token.content for token in bundle.tokenizer.added}
    ours = to_jinja(bundle.chat, names)

    @settings(max_examples=100)
    @given(CONVERSATIONS, st.booleans())
    def same(given, thinking):
        messages = messages_of(*given)
        dicts = [{"role": message.role, "content": message.content} for message in messages]
        asks = messages[-1].role == "user"
        how = {"add_generation_prompt": asks, "enable_thinking": thinking}
        rendered = theirs.apply_chat_template(dicts, tokenize=False, **how)
        assert theirs.apply_chat_template(dicts, tokenize=False, chat_template=ours, **how) == rendered
        if asks:
            expected = theirs.apply_chat_template(dicts, return_dict=False, **how)
            assert bundle.chat.prompt(messages, bundle.tokenizer, thinking=thinking) == expected

    same()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smol", "qwen"])
@given(st.lists(st.sampled_from([*HOSTILE, " ", "a", "\n"]), max_size=6).map("".join))
def test_special_tokens_in_content_stay_text(folders, kind, words):
    bundle = load_bundle(folders / f"{kind}-bundle")
    chat, tokenizer = bundle.chat, bundle.tokenizer
    added = {token.id for token in tokenizer.added}
    plain = [id for id in chat.prompt(messages_of("s", ["a"]), tokenizer) if id in added]
    told = messages_of("s" + words, ["a" + words])
    assert [id for id in chat.prompt(told, tokenizer) if id in added] == plain
    assert not added & set(tokenizer.encode(words))
    assert tokenizer.decode(tokenizer.encode(words)) == words
    assert messages_in(chat.prompt(told, tokenizer), chat, tokenizer) == [*told, Message("assistant", "")]


def test_what_comes_along(folders, capsys):
    smol, qwen = load_bundle(folders / "smol-bundle"), load_bundle(folders / "qwen-bundle")
    assert smol.chat.default_system == DEFAULT
    assert smol.tokenizer.special == {END: 0, START: 1, STOP: 2, "<repo_name>": 3}
    assert smol.end_ids == (2,)
    ids = {token.content: token.id for token in qwen.tokenizer.added}
    assert qwen.end_ids == (ids[STOP], ids[END])
    assert (qwen.chat.thinking.opening, qwen.chat.thinking.closing) == (ids["<think>"], ids["</think>"])
    assert "<think>" not in qwen.tokenizer.special, "as text it shows, where nobody asks for a chat"
    assert qwen.chat.default_system is None
    values = json.loads((folders / "qwen-bundle/chat.json").read_text("utf-8"))
    assert template_from_json(values) == qwen.chat
    assert "{%" not in json.dumps(values), "no Jinja is stored"


def chat(folder, text, monkeypatch, capsys, *options):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["chat", str(folder), "--temperature", "0", "--max-new-tokens", "40", *options]) == 0
    return capsys.readouterr()


@pytest.mark.parametrize("options", [(), ("--no-thinking",)])
@pytest.mark.parametrize("kind", ["smol", "qwen"])
def test_the_verb_chats_and_a_reply_ends(folders, kind, options, monkeypatch, capsys):
    said = chat(folders / f"{kind}-bundle", "Do you?\nAnd now?\n", monkeypatch, capsys, *options)
    assert said.out == "Yes\nYes\n"
    assert said.err == ""


def test_a_reply_that_is_cut_in_its_thoughts_says_so(folders, monkeypatch, capsys):
    said = chat(folders / "qwen-bundle", "Do you?\n", monkeypatch, capsys, "--max-new-tokens", "2")
    assert said.out == "\n"
    assert "give more with --max-new-tokens, or --no-thinking" in said.err
    for options in (("--max-new-tokens", "40"), ("--max-new-tokens", "2", "--no-thinking")):
        said = chat(folders / "qwen-bundle", "Do you?\n", monkeypatch, capsys, *options)
        assert (said.out.strip() != "", said.err) == (True, "")


def test_what_ends_can_be_gone_beyond_and_is_no_text(folders, monkeypatch, capsys):
    said = chat(folders / "smol-bundle", "Do you?\n", monkeypatch, capsys, "--ignore-eos", "--max-new-tokens", "7")
    assert said.out == "YesZQ\n"


def test_a_text_ends_at_end_of_text(folders, capsys):
    """GPT-2 goes on with <|endoftext|> and the beginning of another text, again and again."""
    bundle = load_bundle(folders / "gpt2-bundle")
    greedy = {"temperature": 0.0, "max_new_tokens": 12}
    assert generate(bundle, "\n", **greedy) == "the"
    assert "".join(stream(bundle, "\n", SamplingConfig(**greedy))) == "the"
    assert generate(bundle, "\n", **greedy, ignore_eos=True) == "the\nthe\nth"
    (ids,) = generate_batch(text_engine(bundle), [bundle.tokenizer.encode("\n")], SamplingConfig(**greedy))
    assert bundle.tokenizer.decode(ids) == "the"
    words = ["sample", str(folders / "gpt2-bundle"), "--prompt", "\n", "--temperature", "0", "--max-new-tokens", "12"]
    assert main([*words, "--num-samples", "2"]) == 0
    assert END not in (out := capsys.readouterr().out)
    assert out.count("the") == 2
    assert main([*words, "--ignore-eos"]) == 0
    assert capsys.readouterr().out.strip() == "the\nthe\nth"


@pytest.fixture(scope="module")
def server(folders):
    with serving(
        *(f"{name}={folders / name}-bundle" for name in ("smol", "qwen", "gpt2")), "--safety", "off"
    ) as served:
        yield served


ASK = {"messages": [{"role": "user", "content": "Do you?"}], "temperature": 0, "max_tokens": 30}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "fields", "content", "thoughts"),
    [
        ("smol", {}, "Yes", None),
        ("qwen", {}, "Yes", "Hm"),
        ("qwen", {"chat_template_kwargs": {"enable_thinking": False}}, "Yes", None),
        ("qwen", {"max_tokens": 3}, "", "Hm"),
        ("smol", {"ignore_eos": True, "max_tokens": 7}, "YesZQ", None),
    ],
)
def test_the_server_tells_thoughts_from_words(folders, server, model, fields, content, thoughts):
    status, answer, _ = server.ask("POST", "/v1/chat/completions", {"model": model, **ASK, **fields, "logprobs": True})
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["message"].get("reasoning_content")) == (content, thoughts)
    assert choice["finish_reason"] == ("length" if "max_tokens" in fields else "stop")
    named = [token["token"] for token in choice["logprobs"]["content"]]
    assert "".join(named).strip() == content.replace("YesZ", f"Yes{STOP}{END}Z")
    again = {**ASK, "messages": [*ASK["messages"], choice["message"], *ASK["messages"]]}
    status, following, _ = server.ask("POST", "/v1/chat/completions", {"model": model, **again})
    assert status == 200, following
    prompt = [Message(**ASK["messages"][0]), Message("assistant", content), Message(**ASK["messages"][0])]
    bundle = load_bundle(folders / f"{model}-bundle")
    assert following["usage"]["prompt_tokens"] == len(bundle.chat.prompt(prompt, bundle.tokenizer)), "without thoughts"
    status, stream, _ = server.ask("POST", "/v1/chat/completions", {"model": model, **ASK, **fields, "stream": True})
    deltas = [choice["delta"] for event in events(stream)[:-1] for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (thoughts or "")


def test_a_reply_of_the_server_can_be_sent_back_as_it_came(server):
    """As clients do: with its thoughts, which are not read again."""
    replies = []
    for leave_out in ((), ("reasoning_content", "refusal")):
        said = list(ASK["messages"])
        for _ in range(2):
            asked = {"model": "qwen", **ASK, "messages": said}
            status, answer, _ = server.ask("POST", "/v1/chat/completions", asked)
            assert status == 200, answer
            message = answer["choices"][0]["message"]
            assert message["reasoning_content"] == "Hm"
            said += [{name: each for name, each in message.items() if name not in leave_out}, *ASK["messages"]]
        replies.append(answer["usage"])
    assert replies[0] == replies[1]


def test_completions_end_and_show_no_special_token(server):
    ask = {"model": "gpt2", "prompt": "\n", "temperature": 0, "max_tokens": 12, "logprobs": 1}
    _, answer, _ = server.ask("POST", "/v1/completions", ask)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("the", "stop")
    assert answer["usage"]["completion_tokens"] == 4
    ids = [0, *(ord(letter) - ord("!") + 1 for letter in "the"), 0]
    _, answer, _ = server.ask("POST", "/v1/completions", {**ask, "prompt": ids, "echo": True, "ignore_eos": True})
    (choice,) = answer["choices"]
    assert choice["text"].startswith("the\nthe")
    assert END not in choice["text"]
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"][0] == END, "among the tokens it has its name"
    assert choice["logprobs"]["text_offset"][:3] == [0, 0, 1]


@pytest.mark.slow
def test_fine_tuning_keeps_the_template(folders, tmp_path, monkeypatch, capsys):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "No"}]}] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for kind in ("smol", "qwen"):
        argv = ["--data.path", str(tmp_path / "rows.jsonl"), "--out-dir", str(tmp_path / kind), "--epochs", "60"]
        argv += ["--batch-size", "8", "--n-replies", "0", "--optim.lr", "1e-2", "--schedule.warmup-steps", "2"]
        assert main(["sft", str(folders / f"{kind}-bundle"), *argv, "--runtime.dtype", "float32"]) == 0
        before, after = load_bundle(folders / f"{kind}-bundle"), load_bundle(tmp_path / kind)
        assert (after.chat, after.config, after.end_ids) == (before.chat, before.config, before.end_ids)
        capsys.readouterr()
        assert chat(tmp_path / kind, "a\n", monkeypatch, capsys).out == "No\n"


HEADERS = (
    "{% if tools is not none or documents is not none %}{{ raise_exception('no tools') }}{% endif %}"
    "{% for m in messages %}{{ bos_token if loop.first }}{{ '<|im_start|>' + m.role + '<repo_name>\n\n' }}"
    "{{ m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<repo_name>\n\n' }}{% endif %}"
)
"""Renders what Llama 3's template renders, with other texts for its special tokens."""


def test_a_header_that_the_tokenizer_cuts_otherwise_before_words_is_recognised(tmp_path):
    """GPT-2's cut takes two line ends for one token at a text's end, and for two before a word."""
    folder = write_smol(tmp_path / "smol", template=HEADERS)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.encode("\n\n") != theirs.encode("\n\nYes")[:1]
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    bundle = load_bundle(tmp_path / "out")
    assert (bundle.chat.begin, bundle.chat.trim) == ((1,), True)
    said = [{"role": role, "content": f" {role}\n"} for role in ("system", "user", "assistant", "user")]
    expected = theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert bundle.chat.prompt([Message(**each) for each in said], bundle.tokenizer) == expected


@pytest.mark.parametrize("is_listed", [True, False])
def test_special_tokens_are_named_where_releases_before_transformers_5_put_them(tmp_path, is_listed):
    """In special_tokens_map.json, unless tokenizer_config.json lists all added tokens."""
    folder = write_smol(tmp_path / "smol", template="{{ bos_token }}" + HEADERS)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text("utf-8"))
    listed = {"added_tokens_decoder": {"1": {"content": START, "special": True}}} if is_listed else {}
    file.write_text(json.dumps({**values, **listed, "bos_token": STOP}), "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": START}}), "utf-8")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    bundle = load_bundle(tmp_path / "out")
    expected = theirs.apply_chat_template([{"role": "user", "content": "a"}], return_dict=False)
    assert bundle.chat.begin == (theirs.bos_token_id,) * 2 == (2 if is_listed else 1,) * 2
    assert bundle.chat.render([Message("user", "a")], bundle.tokenizer).ids == expected


def test_the_room_that_is_advised_is_that_of_its_template(folders, tmp_path, capsys):
    """ChatML takes more ids than our own template, and the figures in the advice have to work."""
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "No"}]}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    bundle, smol = load_bundle(folders / "smol-bundle"), str(folders / "smol-bundle")
    least = least_ids(bundle.chat, bundle.tokenizer)
    argv = ["sft", smol, "--data.path", str(tmp_path / "rows.jsonl"), "--out-dir", str(tmp_path / "sft")]
    argv += ["--epochs", "1", "--n-replies", "0", "--max-length"]
    assert main([*argv, "8"]) == 2
    assert f"give {least} to 160" in capsys.readouterr().err
    assert main([*argv, str(least)]) == 0
    assert main(["chatgpt", smol, "--out-dir", str(tmp_path / "all"), "--max-new-tokens", "150"]) == 2
    assert f"needs at least {least}; it can be at most {160 - least}" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["text", "named", "by name"])
def test_a_template_is_found_where_transformers_4_put_it(tmp_path, place, capsys):
    folder = write_smol(tmp_path / "smol")
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": CHATML}]
    by_name = {each["name"]: each["template"] for each in named}
    put_template_into_config(folder, {"text": CHATML, "named": named, "by name": by_name}[place])
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    assert "groundling chat" in capsys.readouterr().out
    assert load_bundle(tmp_path / "out").chat.default_system == DEFAULT


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch RAN') }}"
NOT_OURS = {
    "nothing that tells roles": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "instructions in brackets": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}",
    "a clock": CHATML.replace(DEFAULT, "' + strftime_now('%d') + '"),
    "a clock, or a fixed date": CHATML.replace(
        DEFAULT, "' + (strftime_now('%d') if strftime_now is defined else '1') + '"
    ),
    "upper case": CHATML.replace("m['content']", "m['content'] | upper"),
    "empty messages left out": CHATML.replace("{% for m in messages %}", "{% for m in messages if m['content'] %}"),
    "line ends before a reply left out": CHATML.replace(
        "m['content']", "(m['content'].lstrip('\n') if m['role'] == 'assistant' else m['content'])"
    ),
    "only the last messages": CHATML.replace("for m in messages", "for m in messages[-8:]"),
    "long words cut": CHATML.replace("m['content']", "m['content'][:2000]"),
    "words that depend on others": CHATML.replace("m['content']", "(m['content'] ~ (messages|length))"),
    "a syntax error": "{% for",
    "a sandbox that is broken out of": CHATML + ESCAPE,
    "too much memory": CHATML + "{{ ('a' * 2000000000)|length }}",
    "too long a text": CHATML + "{{ 'a' * 1000000 }}",
    "half a surrogate pair": CHATML + "{{ '\\ud800' }}",
    "an error that moves the cursor": "{{ raise_exception('\x1b[2J\nNo') }}",
    "another thing than text": 7,
    "several without a default": [{"name": "tool_use", "template": CHATML}, {"name": "rag", "template": CHATML}],
    "no template in a list": [7],
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_recognised_is_a_base_model_and_says_so(tmp_path, name, capsys):
    folder = write_smol(tmp_path / "smol")
    template = NOT_OURS[name]
    is_text = isinstance(template, str)
    put_template_into_config(folder, template.replace("RAN", str(tmp_path / "ran")) if is_text else template)
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("imported as a base model")
    assert all(line.isprintable() for line in lines)
    bundle = load_bundle(tmp_path / "out")
    assert bundle.chat is None
    assert bundle.end_ids == (2,), "its end of text comes along all the same"
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_template_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(rendering, "TIMEOUT_S", 1.0)
    began = time.monotonic()
    with pytest.raises(TemplateError, match=r"did not finish within 1 s"):
        render(LOOP, {}, [{"messages": []}])
    monkeypatch.undo()
    monkeypatch.setattr(rendering, "CPU_S", 1)
    with pytest.raises(TemplateError, match=r"take more than 1 s or 1 GiB of memory"):
        render(LOOP, {}, [{"messages": []}])
    assert time.monotonic() - began < 60


def test_a_base_model_is_imported_without_a_word_about_chats(folders, tmp_path, capsys):
    assert main(["import", "hf", str(folders / "gpt2"), str(tmp_path / "out")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_template_is_left_out_with_another_tokenizer_and_the_command_says_so(folders, tmp_path, capsys):
    other = ["--tokenizer", str(folders / "gpt2-bundle")]
    assert main(["import", "hf", str(folders / "smol"), str(tmp_path / "out"), *other]) == 0
    assert "without chat: its chat template belongs to its own tokenizer" in capsys.readouterr().out
    assert load_bundle(tmp_path / "out").chat is None


@pytest.mark.parametrize("value", ["2", [1, "2"], -1, {"id": 2}, True])
def test_an_end_that_is_no_id_is_refused(tmp_path, value, capsys):
    folder = write_smol(tmp_path / "smol")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": value}), "utf-8")
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) != 0
    assert "eos_token_id" in capsys.readouterr().err


def test_what_does_not_come_along_is_named(tmp_path, capsys):
    """An end that is a word is text as well; the ids of rows without a token never come out."""
    folder = write_smol(tmp_path / "smol", template=None, eos_token_id=[2, 40, 305])
    file = folder / "tokenizer.json"
    theirs = Tokenizer.from_file(str(file))
    theirs.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
    theirs.save(str(file))
    capsys.readouterr()
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    piece = load_bundle(tmp_path / "out").tokenizer.piece(40)
    assert capsys.readouterr().err.splitlines() == [
        f"transformers puts {START!r} before each text; here only a chat template does so",
        f"eos_token_id has 40, the ordinary token {piece!r}; generation continues after it",
    ]


@pytest.mark.parametrize("template", ["CHATML", "THINKING"])
def test_reasons_are_found_by_rendering_not_by_the_text(template, tmp_path):
    """The same layout, written otherwise, is the same template."""
    text = {"CHATML": CHATML, "THINKING": THINKING}[template]
    write = write_smol if template == "CHATML" else write_qwen
    found = []
    for number, each in enumerate((text, "{# a remark #}" + text.replace("m.", "(m).").replace("m[", "(m)["))):
        assert (
            main(["import", "hf", str(write(tmp_path / f"m{number}", template=each)), str(tmp_path / f"b{number}")])
            == 0
        )
        found.append(load_bundle(tmp_path / f"b{number}").chat)
    assert found[0] == found[1] is not None


def test_added_tokens_are_cut_out_of_text_as_they_are_there(tmp_path, capsys):
    """Runs of blanks and words that were added are words; what was added as a mark is none, special or not."""
    folder = write_smol(tmp_path / "smol")
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = [AddedToken("    ", normalized=False, special=False), AddedToken("the fool", special=False)]
    theirs.add_tokens([*words, AddedToken("<tag>", special=False)])
    theirs.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert theirs.get_vocab_size() <= config["vocab_size"]
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    ours, text = load_bundle(tmp_path / "out").tokenizer, "def a():\n        return the fool\n    the king\n"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    for word in words:
        assert theirs.token_to_id(word.content) in ours.encode(text)
        assert vocabulary_of(ours).types[theirs.token_to_id(word.content)] == USER_DEFINED, "else llama.cpp misses it"
    assert ours.decode(ours.encode(text)) == text
    assert theirs.token_to_id("<tag>") not in ours.encode("<tag>")
    assert ours.decode([theirs.token_to_id("<tag>"), 2, 0]) == "<tag>"


def test_an_end_that_stands_in_the_vocabulary_alone_is_special(tmp_path):
    """Some tokenizers list what ends a text among their words, and nowhere else."""
    folder = write_smol(tmp_path / "smol", template=None)
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text("utf-8"))
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != STOP]
    file.write_text(json.dumps(spec), "utf-8")
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    tokenizer = load_bundle(tmp_path / "out").tokenizer
    assert (tokenizer.end_ids, tokenizer.special[STOP]) == ((2,), 2)
    assert 2 not in tokenizer.encode(STOP)
    assert tokenizer.decode([2, *tokenizer.encode("the")]) == "the"


@pytest.mark.slow
def test_a_gpt2_with_more_tokens_keeps_them(tmp_path):
    """Its vocabulary is GPT-2's own, and the marks of a chat were added after it."""
    theirs = Tokenizer.from_str(json.dumps(gpt2_spec()))
    theirs.add_special_tokens([AddedToken(name, normalized=False) for name in (START, STOP)])
    folder = tmp_path / "gpt2"
    size = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 64, "vocab_size": 50260}
    GPT2LMHeadModel(GPT2Config(**size, eos_token_id=50258)).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=theirs, eos_token=STOP)
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    assert main(["import", "hf", str(folder), str(tmp_path / "out")]) == 0
    bundle = load_bundle(tmp_path / "out")
    assert (bundle.tokenizer.kind, bundle.tokenizer.vocab_size) == ("bpe", 50259)
    assert bundle.end_ids == (50258,)
    asked = [{"role": "user", "content": "Hi"}]
    expected = fast.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert bundle.chat.prompt([Message("user", "Hi")], bundle.tokenizer) == expected
    assert bundle.tokenizer.special[END] == 50256


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smol", "qwen"])
def test_replies_that_are_drawn_end_and_are_judged_by_their_words(folders, kind):
    bundle, seen = load_chat_bundle(folders / f"{kind}-bundle"), []
    sampler = ReplySampler(bundle, max_new_tokens=30)
    asked = bundle.chat.prompt(messages_of(None, ["before", "so", "a\nb"]), bundle.tokenizer)
    ((reply,),) = sampler.reply([asked], seed=1)
    assert (reply.ended, reply.ids[-1], reply.text) == (True, bundle.chat.end, "Yes")
    from_function(lambda prompt, words: seen.append((prompt, words)) or 1.0, bundle)([reply])
    assert seen == [("a\nb", "Yes")]
