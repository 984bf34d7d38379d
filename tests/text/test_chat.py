"""Laws of a conversation as ids: structure is ids of its own, and what is learned is what the assistant said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.errors import DataError
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import ROLES, Message, check_messages
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.serialize import template_from_json

LIKE_STRUCTURE = ["<user>", "<end>", "<|user_end|>", "<|endoftext|>", "<assistant>", "<system>", "[INST]", "</s>"]
SYMBOLS = "".join(sorted(set("".join(LIKE_STRUCTURE) + " abc?.\n")))
TOKENIZER = CharTokenizer(SYMBOLS)
CHAT = RoleTokens.after(TOKENIZER.vocab_size)
CONTENTS = st.lists(st.sampled_from([*LIKE_STRUCTURE, *SYMBOLS]), max_size=12).map("".join)
CONVERSATIONS = st.tuples(st.none() | CONTENTS, st.lists(CONTENTS, min_size=1, max_size=5)).map(
    lambda given: (
        [Message("system", given[0])] * (given[0] is not None)
        + [Message(("user", "assistant")[number % 2], content) for number, content in enumerate(given[1])]
    )
)


@given(CONVERSATIONS)
def test_messages_can_be_read_back_whatever_they_say(messages):
    """Nothing that somebody writes ends a turn or begins another."""
    roles = {CHAT.role_id(role): role for role in ROLES}
    read, ids = [], CHAT.render(messages, TOKENIZER).ids
    while ids:
        end = ids.index(CHAT.end)
        read.append(Message(roles[ids[0]], TOKENIZER.decode(ids[1:end])))
        ids = ids[end + 1 :]
    assert read == messages


@given(CONVERSATIONS)
def test_learned_are_the_assistants_words_and_ends(messages):
    ids, said = CHAT.render(messages, TOKENIZER)
    learned = [id for id, flag in zip(ids, said, strict=True) if flag]
    replies = [message.content for message in messages if message.role == "assistant"]
    assert learned == [id for reply in replies for id in [*TOKENIZER.encode(reply), CHAT.end]]


@given(CONVERSATIONS, CONTENTS)
def test_a_prompt_and_its_reply_are_the_conversation(messages, reply):
    whole = CHAT.render([*messages, Message("assistant", reply)], TOKENIZER)
    prompt = CHAT.prompt(messages, TOKENIZER)
    assert [*prompt, *TOKENIZER.encode(reply), CHAT.end] == whole.ids
    assert whole.loss_mask[len(prompt) :] == [True] * (len(reply) + 1)
    assert whole.loss_mask[len(prompt) - 1] is False


@pytest.mark.parametrize("vocab_size", [1, 65, 50257])
def test_structure_follows_on_the_tokenizers_ids_and_comes_back_from_json(vocab_size):
    chat = RoleTokens.after(vocab_size)
    assert sorted(chat.special_ids()) == [*range(vocab_size, vocab_size + 4)]
    assert chat.end == vocab_size
    assert template_from_json(json.loads(json.dumps(chat.to_json()))) == chat


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"end": 1, "system": 2, "user": 3},
        {"end": 1, "system": 2, "user": 3, "assistant": 4, "tool": 5},
        {"end": 1, "system": 2, "user": 3, "assistant": 3},
        {"end": 1, "system": 2, "user": 3, "assistant": -4},
        {"end": True, "system": 2, "user": 3, "assistant": 4},
        {"end": 1.0, "system": 2, "user": 3, "assistant": 4},
        {"end": "1", "system": 2, "user": 3, "assistant": 4},
        ["end", "system", "user", "assistant"],
    ],
)
def test_what_is_no_chat_format_is_refused(values):
    with pytest.raises(DataError):
        template_from_json(values)


def messages_of(*roles):
    return [Message(role, "a") for role in roles]


@pytest.mark.parametrize(
    "roles", [("user",), ("user", "assistant"), ("system", "user"), ("system", "user", "assistant", "user")]
)
def test_turns_are_a_conversation(roles):
    check_messages(messages_of(*roles), "here")


@pytest.mark.parametrize(
    "roles",
    [
        (),
        ("system",),
        ("assistant",),
        ("user", "user"),
        ("user", "system"),
        ("system", "system", "user"),
        ("system", "assistant"),
        ("user", "assistant", "assistant"),
    ],
)
def test_anything_else_is_refused_by_its_place(roles):
    with pytest.raises(DataError, match=r"^here: "):
        check_messages(messages_of(*roles), "here")
