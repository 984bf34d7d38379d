"""Files of examples: what is read, what is refused and where, and what becomes of examples as ids."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.data.examples.conversations import (
    Conversation,
    Preference,
    holds_preferences,
    read_conversations,
    read_preferences,
    read_prompts,
)
from groundling.data.examples.encoding import EncodingCounts, encode_chat_prompt, encode_conversation, encode_preference
from groundling.errors import ConfigError, DataError
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens

TOKENIZER = CharTokenizer("".join(sorted(" ?!.abcdefghijklmnopqrstuvwxyz\n")))
CHAT = RoleTokens.after(TOKENIZER.vocab_size)
TALK = (Message("user", "who is there?"), Message("assistant", "a friend."))
TALK_ROW = {"messages": [{"role": m.role, "content": m.content} for m in TALK]}
USER, REPLY = TALK_ROW["messages"]


@pytest.fixture
def write(tmp_path):
    """Makes a file: of bytes as they are, of rows as JSON lines."""

    def write(content, name="file.jsonl"):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode()
        path.write_bytes(data)
        return path

    return write


# What is read


def test_chats_and_instructions_are_told_apart_row_by_row(write):
    rows = [
        TALK_ROW,
        {"instruction": "who is there?", "input": "", "output": "a friend."},
        {"instruction": "who is there?", "output": "a friend.", "id": 7},
        {"instruction": "who is there?", "input": " \n", "output": "a friend."},
        {"instruction": "who is there?", "input": None, "output": "a friend."},
        {"instruction": "sum up:", "input": "long words", "output": "words"},
    ]
    read = read_conversations(write(rows))
    assert [conversation.messages for conversation in read[:5]] == [TALK] * 5
    assert read[5].messages[0].content == "sum up:\n\nlong words"
    assert [conversation.where.rpartition(":")[2] for conversation in read] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_as_lines_are(write, indent):
    rows = [TALK_ROW, {"instruction": "é\u2028]", "output": "[,"}]
    array = write(json.dumps(rows, indent=indent).encode(), "array.json")
    assert read_conversations(array) == read_conversations(write(rows))
    assert read_conversations(array)[1].where.endswith("array.json[1]")


def test_a_mark_of_utf8_and_dos_line_ends_change_nothing(write):
    plain = write([TALK_ROW, TALK_ROW])
    dos = write(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n\r\n"), "dos.jsonl")
    assert read_conversations(dos) == read_conversations(plain)
    unended = write(plain.read_bytes().rstrip(), "unended.jsonl")
    assert read_conversations(unended) == read_conversations(plain)


def test_only_a_newline_ends_a_line(write):
    row = {"instruction": "a\u2028b\x85c", "output": "d"}
    path = write(json.dumps(row, ensure_ascii=False).encode())
    assert read_conversations(path)[0].messages[0].content == "a\u2028b\x85c"


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_what_a_conversation_writes_is_read_back(tmp_path_factory, turns):
    messages = tuple(m for user, reply in turns for m in (Message("user", user), Message("assistant", reply)))
    conversation = Conversation(messages)
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    path.write_text(json.dumps(conversation.to_row()))
    if any("\0" in message.content for message in messages):
        with pytest.raises(DataError, match="NUL"):
            read_conversations(path)
    else:
        assert read_conversations(path) == [conversation]


def test_preferences_are_texts_or_chats_alike(write):
    whole, other = [USER, REPLY], [USER, {"role": "assistant", "content": "go away!"}]
    rows = [
        {"prompt": "who is there?", "chosen": "a friend.", "rejected": "go away!"},
        {"prompt": [USER], "chosen": [REPLY], "rejected": other[1:]},
        {"prompt": "who is there?", "chosen": whole, "rejected": other},
        {"prompt": [USER], "chosen": whole, "rejected": "go away!"},
        {"chosen": whole, "rejected": other},
    ]
    path = write(rows)
    assert read_preferences(path) == [Preference(TALK[:1], "a friend.", "go away!")] * 5
    assert holds_preferences(path)
    assert not holds_preferences(write([TALK_ROW]))


def test_prompts_are_rows_or_lines(write):
    rows = write([{"prompt": "who is there?"}, {"prompt": [USER]}, {"messages": [USER]}])
    text = write(b"who is there?\r\n\n  \nwho is there?\nwho is there?", "prompts.txt")
    assert read_prompts(rows) == read_prompts(text) == [TALK[:1]] * 3


# What is refused, and how it is named

DEEP = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD_ROWS = {
    "not JSON": (b"{", "not JSON"),
    "two a line": (b'{"messages": []} {}', "something follows"),
    "no object": (b'"text"', "a text, an object is expected"),
    "a number": (b"7", "a number, an object is expected"),
    "NaN": (b'{"instruction": "a", "output": "b", "score": NaN}', "NaN is not JSON"),
    "infinity": (b'{"instruction": "a", "output": "b", "score": -Infinity}', "-Infinity is not JSON"),
    "a key twice": (b'{"instruction": "a", "output": "b", "output": "c"}', "'output' occurs twice"),
    "a role twice": (b'{"messages": [{"role": "user", "role": "system", "content": "a"}]}', "'role' occurs twice"),
    "a surrogate": (b'{"instruction": "a", "output": "b\\ud800"}', r"output: .*U\+D800"),
    "escaped NUL": (b'{"instruction": "a", "output": "b\\u0000"}', "output has NUL at position 1"),
    "too deep": (DEEP, "nested too deeply"),
    "a huge number": (b'{"instruction": "a", "output": "b", "n": ' + b"9" * 5000 + b"}", "limit"),
    "unknown keys": (b'{"text": "a", "source": 1}', "the keys are 'text', 'source'; 'messages' or 'instruction'"),
    "both kinds": (b'{"messages": [], "instruction": "a"}', "both are there"),
    "no output": (b'{"instruction": "a"}', "'output' is missing"),
    "output null": (b'{"instruction": "a", "output": null}', "'output' is missing or null"),
    "input a list": (b'{"instruction": "a", "input": [], "output": "b"}', "input is an array"),
    "messages a text": (b'{"messages": "a"}', "messages is a text, a list of messages is expected"),
    "no messages": (b'{"messages": []}', "no messages"),
    "a message a text": (b'{"messages": ["a"]}', r"messages\[0\] is a text"),
    "another key": (b'{"messages": [{"role": "user", "content": "a", "weight": 0}]}', "'weight'"),
    "content parts": (b'{"messages": [{"role": "user", "content": [{"text": "a"}]}]}', r"\[0\].content is an array"),
    "content true": (b'{"messages": [{"role": "user", "content": true}]}', r"\[0\].content is true"),
    "unknown role": (b'{"messages": [{"role": "gpt", "content": "a"}]}', "role is 'gpt'; system, user or assistant"),
    "role a list": (b'{"messages": [{"role": ["user"], "content": "a"}]}', "role is an array"),
    "no turns": (b'{"messages": [{"role": "assistant", "content": "a"}]}', "the user's is expected"),
}


@pytest.mark.parametrize(("line", "complaint"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_by_its_line_or_item(write, line, complaint):
    good = json.dumps(TALK_ROW).encode()
    with pytest.raises(DataError, match=rf"file\.jsonl:3: .*{complaint}") as lines:
        read_conversations(write(good + b"\n\n" + line + b"\n"))
    with pytest.raises(DataError, match=r"array\.json\[1\]: ") as array:
        read_conversations(write(b"[" + good + b",\n" + line + b"]", "array.json"))
    for error in (lines, array):
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


BAD_PAIRS = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "there is no prompt"),
    "no prompt, one message": ({"chosen": [REPLY], "rejected": [REPLY]}, "there is no prompt"),
    "prompt ends with a reply": ({"prompt": [USER, REPLY], "chosen": "b", "rejected": "c"}, "the user's is expected"),
    "another prompt inside": ({"prompt": "a", "chosen": [USER, REPLY], "rejected": "c"}, "chosen does not begin"),
    "only the prompt": ({"prompt": [USER], "chosen": "b", "rejected": [USER]}, "rejected has user;"),
    "nothing": ({"prompt": [USER], "chosen": [], "rejected": "c"}, "chosen has nothing; one message"),
    "different prompts": (
        {"chosen": [USER, REPLY], "rejected": [{"role": "user", "content": "x"}, REPLY]},
        "rejected does not begin",
    ),
    "chosen a number": ({"prompt": "a", "chosen": 1, "rejected": "b"}, "chosen is a number, a text"),
}


@pytest.mark.parametrize(("row", "complaint"), BAD_PAIRS.values(), ids=BAD_PAIRS.keys())
def test_a_bad_pair_is_named_by_its_line(write, row, complaint):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match=rf"file\.jsonl:2: .*{complaint}"):
        read_preferences(write([good, row]))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": "a"}, "'prompt' or 'messages' is expected"),
        ({"prompt": 3}, "prompt is a number, a text or a list"),
        (TALK_ROW, "ends with the assistant's message"),
        ({"messages": [{"role": "system", "content": "a"}]}, "only a system message"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(write, row, complaint):
    with pytest.raises(DataError, match=rf"file\.jsonl:2: .*{complaint}"):
        read_prompts(write([{"prompt": "a"}, row]))


@pytest.mark.parametrize("read", [read_conversations, read_preferences, read_prompts])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\r\n \n", b"[]", b"[\n]\n"])
@pytest.mark.parametrize("name", ["file.jsonl", "file.txt"])
def test_an_empty_file_is_no_examples(write, read, data, name):
    if name == "file.txt" and b"[" in data:
        return  # a prompt like any other
    with pytest.raises(DataError, match=r"empty.* at least one"):
        read(write(data, name))


@pytest.mark.parametrize("ending", [b"", b",", b"]]", b"] {}", b" {}]"])
def test_an_array_that_does_not_end_as_one_is_refused(write, ending):
    with pytest.raises(DataError, match=r"array\.json\[[01]\]: "):
        read_conversations(write(b"[" + json.dumps(TALK_ROW).encode() + ending, "array.json"))


@pytest.mark.parametrize(
    ("flaw", "what"), [(b"\xff", "not UTF-8"), (b"\0", "NUL"), (b"\xed\xa0\x80", "not UTF-8"), (b"\xc3", "not UTF-8")]
)
def test_flaws_of_bytes_are_named_by_the_byte(write, flaw, what):
    good = json.dumps(TALK_ROW).encode() + b"\n"
    path = write(good + b'{"prompt": "' + flaw + b'"}')
    with pytest.raises(DataError, match=rf"file\.jsonl: at byte offset {len(good) + 12} .*{what}") as error:
        read_conversations(path)
    assert "--data.errors" not in str(error.value), "these readers have no such setting"


def test_what_cannot_be_opened_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.jsonl"):
        with pytest.raises(DataError, match=path.name):
            read_conversations(path)


@given(st.binary(max_size=60) | st.text(alphabet='[]{},:"\\ntrue1.eE-u0', max_size=40).map(str.encode))
def test_no_bytes_do_anything_but_read_or_complain_in_a_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    for read in (read_conversations, read_preferences, read_prompts):
        with pytest.raises(DataError) as error:
            read(path)
        assert "\n" not in str(error.value)


# What becomes of examples as ids


def talk(*contents, system=None):
    roles = ("user", "assistant")
    messages = [Message(roles[number % 2], content) for number, content in enumerate(contents)]
    return Conversation(tuple([Message("system", system)] * (system is not None) + messages), "here")


def encode(conversation, max_ids=1000):
    counts = EncodingCounts()
    return encode_conversation(conversation, CHAT, TOKENIZER, max_ids, counts), counts


def text_of(ids):
    names = {CHAT.end: "<end>", CHAT.system: "<system>", CHAT.user: "<user>", CHAT.assistant: "<assistant>"}
    return "".join(names.get(id) or TOKENIZER.decode([id]) for id in ids)


def test_what_fits_is_kept_as_it_is():
    conversation = talk("who?", "me.", "why?", "so.", system="be brief")
    encoded, counts = encode(conversation)
    assert (encoded.ids, encoded.loss_mask) == CHAT.render(conversation.messages, TOKENIZER)
    assert counts == EncodingCounts(n_read=1, n_kept=1)
    exactly, counts = encode(conversation, len(encoded.ids))
    assert exactly == encoded
    assert counts == EncodingCounts(n_read=1, n_kept=1)


def test_the_oldest_turns_go_first_and_the_system_message_stays():
    conversation = talk("one", "two", "three", "four", "five", "six", system="s")
    whole, _ = encode(conversation)
    shorter, counts = encode(conversation, len(whole.ids) - 1)
    expected = "<system>s<end><user>three<end><assistant>four<end><user>five<end><assistant>six<end>"
    assert text_of(shorter.ids) == expected
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_shortened=1)


def test_then_the_front_of_the_users_words_goes():
    encoded, counts = encode(talk("x" * 50 + "the question?", "the answer."), 28)
    assert text_of(encoded.ids) == "<user>the question?<end><assistant>the answer.<end>"
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_cut_fronts=1)


def test_a_reply_that_is_too_long_by_itself_has_no_end():
    encoded, counts = encode(talk("who? " * 10, "a" * 50 + "z"), 32)
    assert text_of(encoded.ids) == "<user>who? <end><assistant>" + "a" * 24
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_cut_fronts=1, n_cut=1)


def test_a_system_message_that_leaves_no_room_goes():
    encoded, counts = encode(talk("who?", "me.", system="words " * 9), 24)
    assert text_of(encoded.ids) == "<user>who?<end><assistant>me.<end>"
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_shortened=1)
    encoded, counts = encode(talk("abc", "d" * 20, system=""), 8)
    assert text_of(encoded.ids) == "<user>c<end><assistant>dddd"
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_shortened=1, n_cut_fronts=1, n_cut=1)


@pytest.mark.parametrize(
    "conversation",
    [
        talk("who?"),
        talk("who?", ""),
        talk("who?", " \n"),
        talk("who?", "", "why?", "  "),
        talk("who?", "", "why?", system="s"),
        Conversation((Message("system", "s"),)),
        Conversation(()),
    ],
)
def test_where_the_assistant_says_nothing_nothing_is_learned(conversation):
    assert encode(conversation) == (None, EncodingCounts(n_read=1, n_empty=1))


def test_what_follows_the_last_reply_and_turns_without_one_are_left_out():
    encoded, counts = encode(talk("a", "b", "c", " ", "d", "e", "f"))
    assert text_of(encoded.ids) == "<user>a<end><assistant>b<end><user>d<end><assistant>e<end>"
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_shortened=1)


def test_words_that_a_tokenizer_skips_are_no_words():
    skipping = CharTokenizer("ab", "skip")
    counts = EncodingCounts()
    assert encode_conversation(talk("a", "xyz"), RoleTokens.after(2), skipping, 99, counts) is None
    assert counts.n_empty == 1


def test_what_the_tokenizer_cannot_say_is_counted_and_named():
    encoded, counts = encode(talk("who?", "No. 7"))
    assert encoded is None
    assert counts.n_unknown == 1
    assert "here: the character 'N'" in counts.line()


WORDS = st.text(alphabet="ab z\n", max_size=40)


@given(st.lists(WORDS, min_size=1, max_size=7), st.none() | WORDS, st.integers(8, 120))
def test_whatever_comes_fits_and_has_something_to_learn(contents, system, max_ids):
    conversation = talk(*contents, system=system)
    encoded, counts = encode(conversation, max_ids)
    assert counts.n_read == counts.n_kept + counts.n_empty == 1
    if encoded is None:
        assert not any(content.strip() for content in contents[1::2])
        return
    ids, said = encoded.ids, encoded.loss_mask
    assert len(ids) == len(said) <= max_ids
    assert any(said)
    assert said[0] is False
    last_user = len(ids) - 1 - ids[::-1].index(CHAT.user)
    assert ids[last_user:].count(CHAT.assistant) == 1
    # What is learned is the assistant's words and ends, whatever was cut.
    speaking = False
    for id, learned in zip(ids, said, strict=True):
        assert learned == speaking
        speaking = (speaking or id == CHAT.assistant) and id != CHAT.end
    assert (ids[-1] == CHAT.end) == (counts.n_cut == 0)
    last_reply = next(content for content in reversed(contents[1::2]) if content.strip())
    reply = text_of(ids[last_user:]).partition("<assistant>")[2]
    assert (last_reply + "<end>").startswith(reply)


def test_no_room_is_said_so():
    with pytest.raises(ConfigError, match="does not fit into 7 ids"):
        encode(talk("a", "b"), 7)


def pair(prompt, chosen, rejected, max_ids=1000):
    counts = EncodingCounts()
    preference = Preference((Message("user", prompt),), chosen, rejected, "here")
    return encode_preference(preference, CHAT, TOKENIZER, max_ids, counts), counts


@given(WORDS, WORDS, WORDS, st.integers(8, 90))
def test_both_replies_of_a_pair_end_and_fit_after_one_prompt(prompt, chosen, rejected, max_ids):
    encoded, counts = pair(prompt, chosen, rejected, max_ids)
    assert counts.n_read == counts.n_kept + counts.n_empty + counts.n_same + counts.n_long == 1
    if encoded is None:
        return
    assert encoded.prompt[-1] == CHAT.assistant
    assert text_of(encoded.chosen) == chosen + "<end>"
    assert text_of(encoded.rejected) == rejected + "<end>"
    assert len(encoded.prompt) + max(len(encoded.chosen), len(encoded.rejected)) <= max_ids
    kept = text_of(encoded.prompt).removeprefix("<user>").removesuffix("<end><assistant>")
    assert prompt.endswith(kept)
    assert (kept != prompt) == counts.n_cut_fronts


@pytest.mark.parametrize(
    ("prompt", "n_reply", "is_kept"), [("a", 59, 1), ("a", 60, 0), ("a" * 9, 52, 0), ("a" * 99, 47, 1)]
)
def test_a_pair_leaves_its_prompt_what_it_needs_or_a_quarter(prompt, n_reply, is_kept):
    encoded, counts = pair(prompt, "b" * n_reply, "c", 64)
    assert (encoded is not None) == is_kept
    assert counts == EncodingCounts(n_read=1, n_kept=is_kept, n_long=1 - is_kept, n_cut_fronts=len(prompt) == 99)


def test_a_prompt_keeps_its_end():
    counts = EncodingCounts()
    messages = talk("one", "two", "three and four").messages
    ids = encode_chat_prompt(messages, CHAT, TOKENIZER, 11, counts)
    assert text_of(ids) == "<user>and four<end><assistant>"
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_shortened=1, n_cut_fronts=1)
    assert encode_chat_prompt(talk(" ").messages, CHAT, TOKENIZER, 11, counts) is None
    assert encode_chat_prompt(talk("7").messages, CHAT, TOKENIZER, 11, counts) is None
    assert counts.n_read == counts.n_kept + counts.n_empty + counts.n_unknown == 3


def test_the_line_tells_what_happened_and_nothing_else():
    assert EncodingCounts(n_read=1200, n_kept=1200).line() == "1,200 of 1,200 examples kept"
    assert EncodingCounts(n_read=3, n_kept=1, n_same=2).line() == (
        "1 of 3 examples kept; 2 dropped because both replies are the same"
    )
