"""Advice about rows of examples, followed."""

import json

import pytest
from advicekit import FOLLOWED, follows

from groundling.data.examples.conversations import read_conversations, read_preferences

PAIR = {"prompt": "who", "chosen": "king", "rejected": "fool"}
CHATTED = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "king"}]
OTHER = [{"role": "user", "content": "what"}, *CHATTED[1:]]
FOOL = {"role": "assistant", "content": "fool"}
NO_PROMPT = "{}: there is no prompt; give one, or whole conversations as chosen and rejected"

PREFERENCES = [
    (
        "{}: {} does not begin with the prompt's messages; give its last message alone",
        {**PAIR, "chosen": OTHER},
        [{**PAIR, "chosen": OTHER[-1:]}],
    ),
    (
        NO_PROMPT,
        {"chosen": CHATTED[1:], "rejected": "fool"},
        [{**PAIR, "chosen": CHATTED[1:]}, {"chosen": CHATTED, "rejected": [CHATTED[0], FOOL]}],
    ),
    (
        "{}: there is {} and no prompt; rename it to 'prompt'",
        {"query": "who", "chosen": "king", "rejected": "fool"},
        [PAIR],
    ),
    (
        "{}: there is no prompt, and chosen and rejected share no beginning; give a prompt",
        {"chosen": "king", "rejected": "fool"},
        [PAIR],
    ),
    (
        "{}: there is no prompt, and one of the texts is only what both share; give a prompt",
        {"chosen": "who is ", "rejected": "who is fool"},
        [{"prompt": "who is", "chosen": "king", "rejected": "fool"}],
    ),
    (
        "{}: chosen and rejected do not share the human's turn; give them a prompt",
        {"chosen": "\n\nHuman: who\n\nAssistant: king", "rejected": "\n\nHuman: what\n\nAssistant: fool"},
        [PAIR],
    ),
]
FOLLOWED.update(template for template, _, _ in PREFERENCES)


@pytest.mark.parametrize(("template", "wrong", "right"), PREFERENCES, ids=[template for template, _, _ in PREFERENCES])
def test_preferences(advised, tmp_path, request, template, wrong, right):
    request.node.advice = [template]
    file = tmp_path / "p.jsonl"

    def read(row):
        file.write_text(json.dumps(row), encoding="utf-8")
        return read_preferences(file)

    advised.raises(lambda: read(wrong))
    for row in right:
        advised.done(read(row))


@follows("{}: {} is not supported, only messages of texts are; leave such rows out")
def test_rows_with_more_than_texts(advised, tmp_path):
    file = tmp_path / "c.jsonl"
    rows = [{"messages": CHATTED}, {"messages": CHATTED, "images": ["a.png"]}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    advised.raises(lambda: read_conversations(file))
    file.write_text(json.dumps(rows[0]), encoding="utf-8")
    advised.done(read_conversations(file))


@follows("put it into the user's message, or remove the key")
def test_a_context_beside_a_prompt(advised, tmp_path):
    file = tmp_path / "c.jsonl"
    row = {"prompt": "who", "completion": "king"}

    def read(row):
        file.write_text(json.dumps(row), encoding="utf-8")
        return read_conversations(file)

    advised.raises(lambda: read({**row, "context": "of England"}))
    advised.done(read({**row, "prompt": "of England\n\nwho"}))
    advised.done(read(row))


@follows("a conversation does not fit into {} ids; it needs at least {}")
def test_a_context_that_is_too_short(advised, tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text(json.dumps({"messages": CHATTED}), encoding="utf-8")
    said = advised.refused("data", "inspect", "none", file, "--block-size", "2")
    advised.works("data", "inspect", "none", file, "--block-size", said.split()[-1])
