"""Plays as dialogues: who answers whom, what is held out, and what stays of long speeches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.data import datasets
from groundling.data.corpus import DataConfig, prepare
from groundling.data.examples.conversations import Conversation
from groundling.data.examples.encoding import EncodingCounts, encode_conversation
from groundling.data.examples.shakespeare import (
    MAX_PROMPT,
    MAX_REPLY,
    closing,
    dialogues,
    opening,
    part_of,
    prompts,
    shakespeare_dialogues,
    speeches,
)
from groundling.errors import ConfigError, DataError
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message, check_messages
from groundling.text.chat.role_tokens import RoleTokens


@pytest.fixture(scope="module")
def plays():
    return datasets.get("tiny_shakespeare").read_text("utf-8")


def scene(*turns):
    """A text of speeches, from `NAME words`."""
    return "\n\n".join(f"{turn.partition(' ')[0]}:\n{turn.partition(' ')[2]}" for turn in turns) + "\n"


def said(text, **limits):
    """Of each dialogue the contents, all of the text taken for training."""
    found = dialogues(text, "train", val_fraction=1e-9, **limits)
    return [[message.content for message in conversation.messages] for conversation in found]


def test_all_of_the_plays_is_speeches(plays):
    found = speeches(plays)
    assert (len(found), sum(not speech.words for speech in found)) == (7222, 125)
    assert all(speech.speaker for speech in found)
    assert found[1].speaker == "All"
    assert found[1].words == "Speak, speak."
    # Nothing but names, colons and blank space is outside of their words.
    again = "".join(f"{speech.speaker}:{speech.words}" for speech in found)
    assert "".join(again.split()) == "".join(plays.split())
    for speech in found:
        assert plays[speech.start : speech.stop].startswith(f"{speech.speaker}:")
        assert plays[speech.start : speech.stop].endswith(speech.words)


def test_the_cut_is_pretrainings(plays, tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path))
    path = tmp_path / "plays.txt"
    text = plays[:50_001]
    path.write_text(text, "utf-8")
    cut = prepare(DataConfig(path=str(path)), 8).train_part.n_chars
    found = speeches(text)
    train, val = (part_of(found, len(text), split) for split in ("train", "val"))
    assert max(speech.stop for speech in train) <= cut <= min(speech.start for speech in val)
    across = set(found) - set(train) - set(val)
    assert all(speech.start < cut < speech.stop for speech in across)
    assert len(across) <= 1


@pytest.mark.slow
def test_nothing_of_the_validation_dialogues_lies_before_the_cut(plays):
    cut = int(0.9 * len(plays))
    for split, part in (("train", plays[:cut]), ("val", plays[cut:])):
        for conversation in dialogues(plays, split):
            for message in conversation.messages:
                assert message.content in part
    for where in (int(conversation.where.rpartition(" ")[2]) for conversation in dialogues(plays, "val")):
        assert where > cut


def test_each_speech_is_the_last_reply_once_at_most(plays):
    places = [conversation.where for split in ("train", "val") for conversation in dialogues(plays, split)]
    assert len(places) == len(set(places)) == 5073 + 788


def test_the_lectures_text_gives_what_its_documentation_says(plays):
    train, val = shakespeare_dialogues()
    assert (train, val) == (dialogues(plays, "train"), dialogues(plays, "val"))
    assert (len(train), len(val)) == (5073, 788)
    lengths = sorted(len(conversation.messages[-1].content) for conversation in train)
    assert (lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10]) == (50, 129)
    known = {conversation.messages[-1].content for conversation in train}
    assert sum(conversation.messages[-1].content in known for conversation in val) == 14


def test_all_of_them_are_whole_conversations_that_the_lectures_model_can_learn(plays):
    tokenizer = CharTokenizer.from_text(plays)
    chat, counts = RoleTokens.after(tokenizer.vocab_size), EncodingCounts()
    for conversation in dialogues(plays, "val"):
        check_messages(conversation.messages, conversation.where)
        assert conversation.messages[-1].role == "assistant"
        for message in conversation.messages:
            assert 0 < len(message.content) <= (MAX_PROMPT if message.role == "user" else MAX_REPLY)
            assert message.content == message.content.strip()
        assert encode_conversation(conversation, chat, tokenizer, 256, counts) is not None
    assert counts.n_kept == counts.n_read
    assert counts.n_cut == counts.n_cut_fronts == 0


def test_a_speech_is_answered_by_the_next():
    text = scene("A one.", "B two.", "A three.")
    assert said(text, max_turns=1) == [["one.", "two."], ["two.", "three."]]


def test_the_assistant_of_a_dialogue_is_one_person():
    text = scene("B zero.", "A one.", "B two.", "C three.", "B four.", "A five.", "C six.")
    assert said(text, max_turns=3) == [
        ["zero.", "one."],
        ["one.", "two."],
        ["two.", "three."],
        ["one.", "two.", "three.", "four."],
        ["four.", "five."],
        ["five.", "six."],
    ]
    assert said(text, max_turns=1)[3] == ["three.", "four."]


def test_a_dialogue_does_not_reach_over_a_gap():
    before, after = ["B zero.", "A one.", "B two."], ["A three.", "B four."]
    assert len(said(scene(*before, *after))[-1]) == 4
    assert said(scene(*before) + "\n\n" + scene(*after))[-1] == ["three.", "four."]


def test_names_are_not_said(plays):
    names = {f"{speech.speaker}:" for speech in speeches(plays)}
    for conversation in dialogues(plays, "val"):
        for message in conversation.messages:
            assert message.content.partition("\n")[0] not in names


@pytest.mark.parametrize(
    "text",
    [
        scene("A one.", "A two."),
        scene("A one.", "a two."),
        scene("A one.", "B "),
        scene("A ", "B two."),
        "A:\none.\n\n\nB:\ntwo.\n\nA:\nx" + "y" * 200,
        scene("A one.", "B two.").replace("B:", "Exeunt all"),
    ],
    ids=["one person", "one person in capitals", "no answer", "nothing to answer", "another play", "no name"],
)
def test_what_is_no_answer_is_no_dialogue(text):
    if "\n\n\n" in text:
        assert ["one.", "two."] not in said(text)
    else:
        assert said(text) == []


def test_where_all_speakers_change_so_does_the_scene():
    first, second = ["A one.", "B two.", "A three."], ["C four.", "D five.", "C six."]
    found = said(scene(*first, *second), max_turns=1)
    assert ["three.", "four."] not in found
    assert ["four.", "five."] in found
    stays = ["C four.", "D five.", "B six."]
    assert ["three.", "four."] in said(scene(*first, *stays), max_turns=1)


def test_a_text_without_speeches_says_so():
    for text in ("", "\n\n", "Once upon a time.\n\nThe end.", "A:\n\nB:\n"):
        with pytest.raises(DataError, match="no speeches"):
            dialogues(text)


@pytest.mark.parametrize(
    "limits", [{"max_reply": 0}, {"max_prompt": -1}, {"max_turns": 0}, {"val_fraction": 1.0}, {"val_fraction": 0.0}]
)
def test_limits_that_cannot_be_are_refused(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        dialogues(scene("A one.", "B two."), **limits)


@given(st.text(alphabet="ab .!?'\n", max_size=60), st.integers(1, 30))
def test_of_long_words_whole_sentences_stay(words, max_chars):
    words = words.strip()
    first, last = opening(words, max_chars), closing(words, max_chars)
    assert words.startswith(first)
    assert words.endswith(last)
    assert max(len(first), len(last)) <= max_chars
    if len(words) <= max_chars:
        assert first == last == words
    elif first:
        assert first.rstrip("'")[-1] in ".!?"
        assert words[len(first)].isspace()


def test_of_what_is_said_the_end_stays_and_of_a_reply_the_beginning():
    words = "To be, or not to be. That is the question:\nWhether 'tis nobler in the mind to suffer"
    assert opening(words, 40) == "To be, or not to be."
    assert opening(words, 10) == ""
    assert closing(words, 70) == "That is the question:\nWhether 'tis nobler in the mind to suffer"
    assert closing(words, 50) == "Whether 'tis nobler in the mind to suffer"
    assert closing(words, 10) == "to suffer"
    assert closing(words, 3) == ""


def test_a_prompt_is_what_the_last_reply_was_said_to():
    system, asked, answered = Message("system", "s"), Message("user", "a"), Message("assistant", "b")
    again = Message("user", "c")
    assert prompts([Conversation((system, asked, answered, again, answered))]) == [(system, again)]
    assert prompts([Conversation((asked, answered)), Conversation(())]) == [(asked,)]
