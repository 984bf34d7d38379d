"""Laws of imported chat templates: data that comes back from JSON, and the same laws of structure as with ours."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.bundle import load_bundle, save_bundle
from groundling.bundle.layout import CHAT
from groundling.data.examples.conversations import Conversation, Preference
from groundling.data.examples.encoding import (
    EncodingCounts,
    encode_chat_prompt,
    encode_conversation,
    encode_preference,
    least_ids,
)
from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.storage.manifest import write_manifest
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import ROLES, Message
from groundling.text.chat.reading import messages_in
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.serialize import template_from_json
from groundling.text.chat.template import Thinking
from groundling.text.chat.thoughts import ReplyDecoder, reply_text
from groundling.text.chat.wrapped_turns import WrappedTurns

SYMBOLS = "\n abcdefghijklmnopqrstuvwxyz"
TOKENIZER = CharTokenizer(SYMBOLS)
START, END, THINK, THOUGHT = range(len(SYMBOLS), len(SYMBOLS) + 4)
PARAMETERS = {
    "openings": {role: (START, f"{role}\n") for role in ROLES},
    "closings": dict.fromkeys(ROLES, (END, "\n")),
}
CHATML = WrappedTurns(**PARAMETERS)
DEFAULTED = WrappedTurns(**PARAMETERS, default_system="be kind", begin=(END,))
THINKER = WrappedTurns(**PARAMETERS, thinking=Thinking(THINK, THOUGHT, (THINK, "\n\n", THOUGHT, "\n\n")))
TRIMMED = WrappedTurns(**PARAMETERS, trim=True)
FORMATS = {"ChatML": CHATML, "default": DEFAULTED, "thinking": THINKER, "trim": TRIMMED}

WORDS = st.text(st.sampled_from(SYMBOLS), max_size=8)
TURNS = st.tuples(st.none() | WORDS, st.lists(WORDS, min_size=1, max_size=6))
PIECES = st.lists(st.sampled_from([*range(len(SYMBOLS)), 0, 0, THINK, THOUGHT, END]), max_size=12)


def messages_of(given):
    system, words = given
    first = [Message("system", system)] * (system is not None)
    return [*first, *(Message(("user", "assistant")[n % 2], each) for n, each in enumerate(words))]


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_comes_back_from_json(name):
    values = json.loads(json.dumps(FORMATS[name].to_json()))
    assert template_from_json(values) == FORMATS[name]


GOOD = json.loads(json.dumps(THINKER.to_json()))
BAD = {
    "another name": {"template": "jinja"},
    "no name": {"template": None},
    "a part too many": {"jinja": "{{ 1 }}"},
    "an opening that is text": {"openings": {**GOOD["openings"], "user": ["user\n"]}},
    "an opening that is empty": {"openings": {**GOOD["openings"], "user": []}},
    "a closing of nobody": {"closings": {**GOOD["closings"], "tool": [1]}},
    "a closing too few": {"closings": {"user": [1]}},
    "closings that are a list": {"closings": [1]},
    "a negative id": {"begin": [-1]},
    "a truth for an id": {"begin": [True]},
    "a number that is no id": {"begin": [1.5]},
    "an empty text": {"begin": [""]},
    "half a surrogate pair": {"begin": ["\ud800"]},
    "a long text": {"begin": ["a" * 10_001]},
    "many parts": {"begin": [1] * 21},
    "a default that is no text": {"default_system": 5},
    "half a character": {"default_system": "\ud800"},
    "trim in words": {"trim": "yes"},
    "tags that are one": {"thinking": {**GOOD["thinking"], "closing": THINK}},
    "a tag that is text": {"thinking": {**GOOD["thinking"], "opening": "<think>"}},
    "thinking in part": {"thinking": {"opening": 1}},
    "thinking that is true": {"thinking": True},
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_template_is_refused(name):
    with pytest.raises(DataError):
        template_from_json({**copy.deepcopy(GOOD), **BAD[name]})


def test_a_bundle_whose_template_has_ids_beyond_the_model_is_refused(tmp_path):
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=len(SYMBOLS) + 4))
    save_bundle(tmp_path / "bundle", model, TOKENIZER, chat=THINKER)
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.chat, bundle.end_ids, bundle.n_ids) == (THINKER, (END,), END + 1)
    (tmp_path / "bundle" / CHAT).write_text(json.dumps({**GOOD, "begin": [len(SYMBOLS) + 4]}), "utf-8")
    (tmp_path / "bundle" / "manifest.json").unlink()
    write_manifest(tmp_path / "bundle", {})
    with pytest.raises(CheckpointError, match="ids beyond"):
        load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["ChatML", "default", "thinking"])
@given(given=TURNS)
def test_messages_can_be_read_back(name, given):
    chat, messages = FORMATS[name], messages_of(given)
    read = messages_in(chat.joined(chat.turns(messages, TOKENIZER), TOKENIZER).ids, chat, TOKENIZER)
    default = [Message("system", "be kind")] * (name == "default" and given[0] is None)
    assert read == [*default, *messages]


@pytest.mark.parametrize("name", FORMATS)
@given(given=TURNS, reply=WORDS)
def test_a_prompt_and_its_reply_are_the_conversation(name, given, reply):
    chat, messages = FORMATS[name], messages_of(given)
    whole = chat.render([*messages, Message("assistant", reply)], TOKENIZER)
    prompt, said = chat.prompt(messages, TOKENIZER), chat.reply(reply, TOKENIZER)
    assert [*prompt, *said] == whole.ids
    assert whole.loss_mask[len(prompt) :] == [True] * len(said)
    assert not whole.loss_mask[len(prompt) - 1]
    assert said[-1] == chat.end
    if chat.thinking is not None:
        without = chat.prompt(messages, TOKENIZER, thinking=False)
        assert without == [*prompt, *said[: len(without) - len(prompt)]], "trained as it is asked without thoughts"
    words = reply.strip() if chat.trim else reply.lstrip("\n") if chat.thinking is not None else reply
    assert reply_text(said, chat, TOKENIZER) == words


@pytest.mark.parametrize("name", FORMATS)
@given(given=TURNS)
def test_learned_are_words_and_ends_of_replies(name, given):
    chat, messages = FORMATS[name], messages_of(given)
    ids, said = chat.render([*messages, Message("assistant", "so")], TOKENIZER)
    learned = [id for id, flag in zip(ids, said, strict=True) if flag]
    replies = ["so"] if chat.thinking else [*(m.content for m in messages if m.role == "assistant"), "so"]
    assert learned == [id for reply in replies for id in chat.reply(reply, TOKENIZER)]


@pytest.mark.parametrize("name", FORMATS)
@given(given=TURNS, room=st.integers(0, 60))
def test_examples_fit_and_lose_no_structure(name, given, room):
    chat, counts, messages = FORMATS[name], EncodingCounts(), messages_of(given)
    room += least_ids(chat, TOKENIZER)
    prompt = encode_chat_prompt([m for m in messages if m.role != "assistant"][-1:], chat, TOKENIZER, room, counts)
    if prompt is not None:
        assert len(prompt) <= room
        assert prompt[-10:] == chat.opening_ids("assistant", TOKENIZER)[-10:]
    encoded = encode_conversation(Conversation(tuple(messages)), chat, TOKENIZER, room, counts)
    if encoded is not None:
        assert len(encoded.ids) == len(encoded.loss_mask) <= room
        assert encoded.loss_mask[-1]
        assert encoded.ids.count(START) >= 2
        assert {message.role for message in messages_in(encoded.ids, chat, TOKENIZER)} >= {"user", "assistant"}
    pair = Preference((Message("user", "abc"),), "yes", "no")
    encoded_pair = encode_preference(pair, chat, TOKENIZER, room, counts)
    if encoded_pair is not None:
        assert encoded_pair.chosen == chat.reply("yes", TOKENIZER)
        assert len(encoded_pair.prompt) + len(encoded_pair.chosen) <= room


def test_a_context_without_room_is_refused_by_its_size():
    least = least_ids(CHATML, TOKENIZER)
    assert least > least_ids(RoleTokens.after(len(SYMBOLS)), TOKENIZER) == 8
    with pytest.raises(ConfigError, match=f"it needs at least {least}"):
        encode_chat_prompt([Message("user", "a")], CHATML, TOKENIZER, least - 1, EncodingCounts())


@given(PIECES)
def test_a_streamed_reply_is_the_whole_one_and_shows_no_tag(ids):
    decoder = ReplyDecoder(THINKER, TOKENIZER)
    pieces = [*(decoder.push(id) for id in ids), decoder.finish()]
    words, thoughts = ("".join(piece[place] for piece in pieces) for place in (1, 0))
    assert words == reply_text(ids, THINKER, TOKENIZER)
    thinking, expected = False, {True: "", False: ""}
    for id in ids:
        if id in (THINK, THOUGHT):
            thinking = id == THINK
        elif id < len(SYMBOLS):
            expected[thinking] += SYMBOLS[id]
    assert words == expected[False].lstrip("\n")
    assert thoughts == expected[True].strip("\n")
