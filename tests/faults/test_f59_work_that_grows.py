"""Row 59: twice the text is twice the work, whatever the text: counted, not timed."""

import json
import re

import pytest

from groundling.data.examples import encoding, jsonl
from groundling.text import bpe, gpt2, libraries, sentence_piece
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chunking import CHUNK_CHARS, RUN_CHARS, chunks, parts
from groundling.text.trainers import MAX_CHARS, sentences, short_runs

TWICE = 2.2
"""Twice the work, and a little for what stands at the edges."""


class Counted(str):
    """A text that counts the characters that are copied or looked through when something is done with it."""

    touched = 0

    @classmethod
    def _count(cls, text):
        cls.touched += len(text)
        return cls(text)

    def __add__(self, other):
        return self._count(str(self) + str(other))

    def __radd__(self, other):
        return self._count(str(other) + str(self))

    def __getitem__(self, place):
        return self._count(str(self)[place])

    def split(self, *how):
        self._count(str(self))
        return [Counted(part) for part in str(self).split(*how)]


@pytest.fixture
def work():
    """Counts what a function does to a text."""

    def count(function, text):
        Counted.touched = 0
        function(text)
        return Counted.touched

    return count


def test_one_long_line_is_read_in_work_that_grows_with_its_length(tmp_path, monkeypatch, work):
    def read(text):
        pieces = [Counted(text[i : i + 1000]) for i in range(0, len(text), 1000)]
        monkeypatch.setattr(jsonl, "_pieces", lambda _: iter(pieces))
        assert sum(1 for _ in jsonl.lines(tmp_path)) == 1

    once, twice = (work(read, "x" * n) for n in (200_000, 400_000))
    assert 0 < twice <= TWICE * once


def test_an_array_on_one_line_is_read_in_work_that_grows_with_its_length(tmp_path, monkeypatch, work):
    def read(text):
        pieces = [Counted(text[i : i + 1000]) for i in range(0, len(text), 1000)]
        monkeypatch.setattr(jsonl, "_pieces", lambda _: iter(pieces))
        assert len(list(jsonl.rows(tmp_path))) == len(text) // 13

    # Joined once, and no longer ours to count; at the beginning only the first piece is looked at.
    once, twice = (work(read, json.dumps([{"a": 1234}] * n)) for n in (20_000, 40_000))
    assert twice <= TWICE * max(once, 1000)


@pytest.mark.parametrize("letter", ["x", "x ", " ", "x\n"])
def test_a_long_text_is_cut_in_work_that_grows_with_its_length(work, letter):
    def cut(text):
        assert sum(map(len, chunks([Counted(text)], 1000))) == len(text)

    once, twice = (work(cut, letter * (n // len(letter))) for n in (200_000, 400_000))
    assert 0 < twice <= TWICE * once


RUNS = {"letters": "x", "blanks": " ", "lines": "\n", "words": "word ", "signs": "漢字"}


@pytest.mark.parametrize("letters", RUNS.values(), ids=RUNS.keys())
def test_a_trainer_gets_no_word_of_which_it_would_take_the_square(letters):
    """The BPE trainer goes through a whole word for each of its merges: the work is the sum of the squares."""

    def squares(text):
        units = list(short_runs([text[: len(text) // 2], text[len(text) // 2 :]]))
        assert "".join(units) == text
        return sum(len(run) ** 2 for unit in units for run in re.findall(r"\S+|\s+", unit))

    once, twice = (squares(letters * (n // len(letters))) for n in (200_000, 400_000))
    assert twice <= TWICE * once
    assert max(map(len, sentences([letters * 100_000])), default=0) <= MAX_CHARS


def test_ordinary_text_is_not_cut_for_the_trainer():
    text = "To be, or not to be: " * 5000 + "x" * MAX_CHARS + "\n" + " " * (MAX_CHARS - 1)
    assert list(short_runs([text])) == [text]


def test_a_long_conversation_is_shortened_in_work_that_grows_with_its_length(monkeypatch):
    tokenizer = CharTokenizer("ab")
    chat, counted = RoleTokens.after(2), []
    length = encoding._length
    monkeypatch.setattr(encoding, "_length", lambda parts: counted.append(len(parts)) or length(parts))

    def steps(n_turns):
        counted.clear()
        turns = (Message("user", "a"), Message("assistant", "b")) * n_turns
        encoded = encoding.encode_conversation(
            encoding.Conversation(turns), chat, tokenizer, 32, encoding.EncodingCounts()
        )
        assert len(encoded.ids) <= 32
        return sum(counted)

    assert steps(2000) <= TWICE * steps(1000)


# A run without a place to cut

KINDS = list(libraries.KINDS)
LONG = {
    "letters": "ab" * (2 * RUN_CHARS),
    "blanks": " " * (3 * RUN_CHARS + 5),
    "between words": "a b\nc d " + "xy" * (RUN_CHARS + 100) + " e f " + "\n" * 70_000 + "g!\n" + "!" * 70_000 + " h",
}


@pytest.fixture(scope="module")
def tokenizers():
    text = ["ab xy a b c d e f g h! ab " * 50 + "\n"]
    made = {kind: sentence_piece.train_sentencepiece(text, kind, 300) for kind in ("unigram", "sp_bpe")}
    return {**made, "bpe": bpe.train_bpe(text, 300), "gpt2": gpt2.GPT2Tokenizer()}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_cut_at_the_same_places_in_a_chunk_as_in_the_whole(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(map(len, parts(text))) <= RUN_CHARS
    for n_chars in (RUN_CHARS, 2 * RUN_CHARS):
        assert [token for chunk in chunks([text], n_chars) for token in tokenizer.encode(chunk)] == ids
    assert CHUNK_CHARS % RUN_CHARS == 0


def test_a_million_blanks_are_encoded(tokenizers):
    """tiktoken's pattern fails on so many at once."""
    text = " " * 1_100_000 + "a"
    assert tokenizers["gpt2"].decode(tokenizers["gpt2"].encode(text)) == text
