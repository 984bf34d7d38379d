"""The forms in which people keep examples: each is read as what it means, or refused by the name of what it has."""

import json

import pytest

from groundling.data.examples.conversations import (
    Conversation,
    Preference,
    holds_preferences,
    holds_prompts,
    read_conversations,
    read_preferences,
    read_prompts,
)
from groundling.data.examples.encoding import EncodingCounts, encode_conversation
from groundling.data.examples.labelled import Labelled, holds_labels, read_labelled
from groundling.errors import DataError
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens

ASK, REPLY = Message("user", "who?"), Message("assistant", "me.")
BRIEF = Message("system", "be brief")
EARLIER = (Message("user", "hi"), Message("assistant", "ho"))
ASK_ROW, REPLY_ROW = ({"role": m.role, "content": m.content} for m in (ASK, REPLY))
HUMAN, GPT = {"from": "human", "value": "who?"}, {"from": "gpt", "value": "me."}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


CONVERSATIONS = {
    "Alpaca's system": ({"instruction": "who?", "output": "me.", "system": "be brief"}, (BRIEF, ASK, REPLY)),
    "Alpaca's history": ({"instruction": "who?", "output": "me.", "history": [["hi", "ho"]]}, (*EARLIER, ASK, REPLY)),
    "both": (
        {"instruction": "who?", "output": "me.", "system": "be brief", "history": [["hi", "ho"]]},
        (BRIEF, *EARLIER, ASK, REPLY),
    ),
    "neither": ({"instruction": "who?", "input": None, "output": "me.", "system": "", "history": []}, (ASK, REPLY)),
    "Dolly's": (
        {"instruction": "who?", "context": "at the door", "response": "me.", "category": "qa"},
        (Message("user", "who?\n\nat the door"), REPLY),
    ),
    "only input": ({"instruction": "", "input": "who?", "output": "me."}, (ASK, REPLY)),
    "ShareGPT's": ({"conversations": [HUMAN, GPT]}, (ASK, REPLY)),
    "ShareGPT's system": (
        {"conversations": [{"from": "system", "value": "be brief"}, HUMAN, GPT]},
        (BRIEF, ASK, REPLY),
    ),
    "system beside": ({"conversations": [HUMAN, GPT], "system": "be brief", "tools": "[]"}, (BRIEF, ASK, REPLY)),
    "system twice": (
        {"messages": [{"role": "system", "content": "be brief"}, ASK_ROW, REPLY_ROW], "system": "be brief"},
        (BRIEF, ASK, REPLY),
    ),
    "OpenAI's names": ({"conversations": [ASK_ROW, REPLY_ROW]}, (ASK, REPLY)),
    "nulls": (
        {
            "messages": [{**ASK_ROW, "name": None, "tool_calls": None}, {**REPLY_ROW, "tool_calls": []}],
            "tools": None,
            "instruction": None,
            "prompt": None,
        },
        (ASK, REPLY),
    ),
    "the prompt repeated": ({"prompt": "who?", "messages": [ASK_ROW, REPLY_ROW]}, (ASK, REPLY)),
    "TRL's texts": ({"prompt": "who?", "completion": "me."}, (ASK, REPLY)),
    "TRL's messages": ({"prompt": [ASK_ROW], "completion": [REPLY_ROW]}, (ASK, REPLY)),
    "a system prompt": ({"system_prompt": "be brief", "instruction": "who?", "output": "me."}, (BRIEF, ASK, REPLY)),
    "both systems": (
        {"system_prompt": "be brief", "system": "be brief", "messages": [ASK_ROW, REPLY_ROW]},
        (BRIEF, ASK, REPLY),
    ),
    "a query": (
        {"instruction": "who?", "input": "", "query": "you?", "output": "me."},
        (Message("user", "who?\n\nyou?"), REPLY),
    ),
    "an empty context": ({"prompt": "who?", "context": "", "completion": "me."}, (ASK, REPLY)),
    "a class": ({"prompt": "who?", "completion": "me.", "label": "person"}, (ASK, REPLY)),
    "TRL's system": ({"prompt": "who?", "completion": "me.", "system": "be brief"}, (BRIEF, ASK, REPLY)),
}


@pytest.mark.parametrize(("row", "messages"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_what_a_conversation_means_is_read(write, row, messages):
    (conversation,) = read_conversations(write(row))
    assert conversation.messages == messages


def test_of_a_completion_only_its_reply_is_learned(write):
    before = [{"role": m.role, "content": m.content} for m in EARLIER]
    (conversation,) = read_conversations(write({"prompt": [*before, ASK_ROW], "completion": [REPLY_ROW]}))
    assert conversation == Conversation((*EARLIER, ASK, REPLY), only_last=True)
    tokenizer = CharTokenizer("".join(sorted("abcdefghijklmnopqrstuvwxyz ?.")))
    chat = RoleTokens.after(tokenizer.vocab_size)
    encoded = encode_conversation(conversation, chat, tokenizer, 100, EncodingCounts())
    learned = [id for id, said in zip(encoded.ids, encoded.loss_mask, strict=True) if said]
    assert learned == [*tokenizer.encode("me."), chat.end]
    assert read_conversations(write(conversation.to_row())) == [conversation]


TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("text", ["{}", "[]", "null"])
def test_a_text_that_looks_like_nothing_is_a_text(write, text):
    for reply in ({"role": "assistant", "content": text}, {"from": "gpt", "value": text}):
        (read,) = read_conversations(write({"messages": [ASK_ROW, reply]}))
        assert read.messages[1] == Message("assistant", text)


REFUSED = {
    "tools": ({"messages": [ASK_ROW, REPLY_ROW], "tools": TOOLS}, "'tools' is not supported"),
    "tools as text": ({"conversations": [HUMAN, GPT], "tools": '[{"name": "f"}]'}, "'tools' is not supported"),
    "images": ({"instruction": "a", "output": "b", "images": ["a.png"]}, "'images' is not supported"),
    "tool calls": ({"messages": [ASK_ROW, {**REPLY_ROW, "tool_calls": [{"id": 1}]}]}, "'tool_calls'"),
    "a tool speaks": (
        {"conversations": [HUMAN, {"from": "observation", "value": "x"}]},
        "from is 'observation'",
    ),
    "two systems": (
        {"messages": [{"role": "system", "content": "x"}, ASK_ROW, REPLY_ROW], "system": "y"},
        "'system' and a system message are both there",
    ),
    "system a list": ({"instruction": "a", "output": "b", "system": ["c"]}, "system is an array"),
    "history a text": ({"instruction": "a", "output": "b", "history": "c"}, "history is a text, a list of pairs"),
    "half a pair": (
        {"instruction": "a", "output": "b", "history": [["c"]]},
        r"history\[0\] is an array; a list",
    ),
    "output twice": ({"instruction": "a", "output": "b", "response": "c"}, "'output' and 'response' are both there"),
    "input twice": (
        {"instruction": "a", "input": "x", "context": "y", "output": "b"},
        "'input' and 'context'",
    ),
    "another prompt": ({"messages": [ASK_ROW, REPLY_ROW], "prompt": "why?"}, "'messages' and 'prompt' are both there"),
    "content null": ({"messages": [ASK_ROW, {"role": "assistant", "content": None}]}, "content is null"),
    "systems that differ": ({"prompt": "a", "completion": "b", "system": "c", "system_prompt": "d"}, "and differ"),
    "a context": ({"prompt": "a", "context": "c", "completion": "b"}, "'context' beside 'prompt' is not supported"),
    "an input": ({"messages": [ASK_ROW, REPLY_ROW], "input": "c"}, "'input' beside 'messages' is not supported"),
    "a label of 0": ({"prompt": "a", "completion": "b", "label": 0}, "'label' tells good replies from bad ones"),
    "a label in words": ({"prompt": "a", "completion": "b", "label": "false"}, "'label' tells good replies"),
    "pairs after a conversation": (
        {"conversations": [HUMAN, GPT, HUMAN], "chosen": GPT, "rejected": GPT},
        "preferences are for groundling dpo",
    ),
    "a label": ({"prompt": "a", "completion": "b", "label": False}, "'label' tells good replies from bad ones"),
    "preferences": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences are for groundling dpo"),
    "a long completion": ({"prompt": "a", "completion": [ASK_ROW, REPLY_ROW]}, "completion does not begin with"),
}


@pytest.mark.parametrize(("row", "complaint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_by_its_name(write, row, complaint):
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{complaint}") as error:
        read_conversations(write({"messages": [ASK_ROW, REPLY_ROW]}, row))
    assert "\n" not in str(error.value)


HH = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: who?\n\nAssistant: "
PAIRS = {
    "a system": ({"system": "be brief", "prompt": "who?", "chosen": "me.", "rejected": "you."}, (BRIEF, ASK)),
    "a history": ({"history": [["hi", "ho"]], "prompt": "who?", "chosen": "me.", "rejected": "you."}, (*EARLIER, ASK)),
    "a question": ({"system": "be brief", "question": "who?", "chosen": "me.", "rejected": "you."}, (BRIEF, ASK)),
    "an instruction": (
        {"instruction": "who?", "input": "", "chosen": "me.", "rejected": "you."},
        (ASK,),
    ),
    "ShareGPT's": (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "you."}},
        (ASK,),
    ),
    "messages repeated": (
        {
            "prompt": "who?",
            "chosen": [ASK_ROW, REPLY_ROW],
            "messages": [ASK_ROW, REPLY_ROW],
            "rejected": [ASK_ROW, {"role": "assistant", "content": "you."}],
        },
        (ASK,),
    ),
    "hh-rlhf's": ({"chosen": HH + "me.", "rejected": HH + "you."}, (*EARLIER, ASK)),
    "texts": ({"chosen": "who? me.", "rejected": "who? you."}, (ASK,)),
    "texts with nulls": ({"prompt": None, "chosen": "who? me.", "rejected": "who? you."}, (ASK,)),
    "texts and a system": ({"system": "be brief", "chosen": "who? me.", "rejected": "who? you."}, (BRIEF, ASK)),
}


@pytest.mark.parametrize(("row", "prompt"), PAIRS.values(), ids=PAIRS.keys())
def test_what_a_pair_means_is_read(write, row, prompt):
    path = write(row)
    assert holds_preferences(path)
    assert read_preferences(path) == [Preference(prompt, "me.", "you.")]


def test_a_shared_beginning_ends_between_words(write):
    (pair,) = read_preferences(write({"chosen": "the sky is blue.", "rejected": "the sky is black."}))
    assert pair == Preference((Message("user", "the sky is"),), "blue.", "black.")
    (pair,) = read_preferences(write({"chosen": "the sky is", "rejected": "the sky is black."}))
    assert pair == Preference((Message("user", "the sky"),), "is", "is black.")


BAD_PAIRS = {
    "nothing shared": ({"chosen": "me.", "rejected": "you."}, "share no beginning"),
    "the same": ({"chosen": "a", "rejected": "a"}, "share no beginning"),
    "an input beside": ({"input": "x", "chosen": "a b", "rejected": "a c"}, "there is 'input' and no prompt"),
    "an input beside a prompt": (
        {"prompt": "a", "input": "x", "chosen": "b", "rejected": "c"},
        "'input' beside 'prompt' is not supported",
    ),
    "goes on": ({"chosen": HH + "a\n\nHuman: b", "rejected": HH + "c"}, "chosen continues after"),
    "another question": (
        {"chosen": "\n\nHuman: a\n\nAssistant: c", "rejected": "\n\nHuman: b\n\nAssistant: c"},
        "do not share the human's turn",
    ),
    "tools": ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": TOOLS}, "'tools' is not supported"),
    "two prompts": ({"prompt": "a", "question": "x", "chosen": "b", "rejected": "c"}, "are both there and differ"),
    "labels": ({"prompt": "a", "completion": "b", "label": True}, "'chosen' is missing"),
}


@pytest.mark.parametrize(("row", "complaint"), BAD_PAIRS.values(), ids=BAD_PAIRS.keys())
def test_a_pair_that_cannot_be_meant_is_refused_by_name(write, row, complaint):
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{complaint}"):
        read_preferences(write({"prompt": "a", "chosen": "b", "rejected": "c"}, row))


def test_labelled_replies_are_read_in_any_form_of_conversation(write):
    path = write(
        {"prompt": "who?", "completion": "me.", "label": True},
        {"prompt": [ASK_ROW], "completion": [REPLY_ROW], "label": False},
        {"instruction": "who?", "output": "me.", "kto_tag": True},
        {"messages": [ASK_ROW, REPLY_ROW], "label": 0},
        {"prompt": "who?", "completion": "me.", "label": "true"},
        {"prompt": "who?", "completion": "me.", "label": "false"},
    )
    assert holds_labels(path)
    assert read_labelled(path) == [Labelled((ASK,), "me.", good) for good in (True, False, True, False, True, False)]
    for row in ({"prompt": "a", "completion": "b", "label": "good"}, {"prompt": "a", "completion": "b"}):
        with pytest.raises(DataError, match="label"):
            read_labelled(write(row))


def test_prompts_have_systems_and_histories_too(write):
    path = write(
        {"prompt": "who?", "system": "be brief"},
        {"instruction": "who?", "history": [["hi", "ho"]]},
        {"conversations": [HUMAN]},
        {"prompt": "who?", "chosen": None, "completion": None},
    )
    assert holds_prompts(path)
    assert read_prompts(path) == [(BRIEF, ASK), (*EARLIER, ASK), (ASK,), (ASK,)]
    with pytest.raises(DataError, match="'tools' is not supported"):
        read_prompts(write({"prompt": "who?", "tools": TOOLS}))
    assert not holds_prompts(write({"prompt": "who?", "completion": "me."}))
    assert not holds_prompts(write({"prompt": "who?", "messages": [ASK_ROW, REPLY_ROW]}))
