"""The characters' tokenizer is the lecture's, says clearly what it cannot say, and is saved as plain JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.errors import DataError
from groundling.text.byte_pieces import BytePieces
from groundling.text.char import CharTokenizer
from groundling.text.serialize import (
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    tokenizer_from_json,
    tokenizer_to_json,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SOME = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


def test_ids_are_those_of_the_lecture():
    chars = sorted(set(SOME))
    stoi = {ch: i for i, ch in enumerate(chars)}
    tokenizer = CharTokenizer.from_text(SOME)
    assert tokenizer.vocab_size == len(chars)
    assert tokenizer.encode(SOME) == [stoi[c] for c in SOME]
    assert tokenizer.decode(tokenizer.encode(SOME)) == SOME


@given(TEXT.filter(bool))
def test_any_text_comes_back_and_the_array_is_the_list(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.encode_array(text).dtype == np.uint32
    assert tokenizer.encode_array(text).tolist() == ids


@pytest.mark.parametrize("character", ["é", "\0", "\U0010ffff", "\ud800", " "])
def test_an_unseen_character_is_named_with_its_place(character):
    tokenizer = CharTokenizer.from_text("abc")
    with pytest.raises(DataError, match=rf"U\+{ord(character):04X}.* at position 2 .*3 characters.*skip"):
        tokenizer.encode(f"ab{character}c")


def test_unseen_characters_are_skipped_or_replaced_if_asked():
    assert CharTokenizer("abc", "skip").encode("aXb\U0010ffff") == [0, 1]
    assert CharTokenizer("abc", "replace", "c").encode("aXb\U0010ffff") == [0, 2, 1, 2]


@pytest.mark.parametrize(
    "arguments",
    [("",), ("ba",), ("aab",), ("ab", "what"), ("ab", "replace"), ("ab", "replace", "X"), ("ab", "skip", "a")],
)
def test_a_vocabulary_that_cannot_be_is_refused(arguments):
    with pytest.raises(DataError):
        CharTokenizer(*arguments)


@pytest.mark.parametrize("ids", [[-1], [0, 3], [2**40], [0.5], np.array([3])])
def test_ids_outside_the_vocabulary_are_a_clear_error(ids):
    for tokenizer in (CharTokenizer("abc"), BytePieces([b"a", b"b", b"c"])):
        with pytest.raises(DataError, match=r"outside the tokenizer's vocabulary of 3|integers"):
            tokenizer.decode(ids)
    with pytest.raises(DataError, match="token id 3 "):
        CharTokenizer("abc").stream_decoder().push(3)


def test_ids_may_come_as_any_iterable_of_integers():
    tokenizer = CharTokenizer("abc")
    for ids in ([0, 2], (0, 2), np.array([0, 2], np.uint16), iter([0, 2]), range(0, 3, 2)):
        assert tokenizer.decode(ids) == "ac"
    assert tokenizer.decode([]) == ""


@given(st.lists(st.integers(0, 255)))
def test_streamed_bytes_are_the_whole_decoding(ids):
    """Single bytes at random: every way to break UTF-8 occurs."""
    tokenizer = BytePieces([bytes([byte]) for byte in range(256)])
    stream = tokenizer.stream_decoder()
    for _ in range(2):  # a finished decoder can be used again
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


def test_the_beginning_of_a_character_is_held_back():
    tokenizer = BytePieces([b"\xf0\x9f", b"\x98\x80", b"a"])
    stream = tokenizer.stream_decoder()
    assert [stream.push(0), stream.push(1), stream.push(0), stream.push(2)] == ["", "\N{GRINNING FACE}", "", "\ufffda"]
    assert stream.push(0) + stream.finish() == "\ufffd"


def test_pieces_that_are_no_text_are_shown_as_bytes():
    assert BytePieces([b"a\xc3"]).piece(0) == "a<C3>"


def test_half_a_surrogate_pair_is_no_symbol():
    with pytest.raises(DataError, match=r"U\+DC80"):
        CharTokenizer("a\udc80")


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abé\N{GRINNING FACE}"), CharTokenizer("abc", "replace", "b")])
def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_to_json(loaded) == tokenizer_to_json(tokenizer)
    assert fingerprint(loaded) == fingerprint(tokenizer)


def test_different_tokenizers_have_different_fingerprints():
    some = [CharTokenizer("ab"), CharTokenizer("abc"), CharTokenizer("ab", "skip"), CharTokenizer("ab", "replace", "a")]
    assert len({fingerprint(tokenizer) for tokenizer in some}) == len(some)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"kind": "char"}',
        '{"kind": "char", "symbols": 7, "unknown": "error", "replacement": null}',
        '{"kind": "char", "symbols": "ba", "unknown": "error", "replacement": null}',
        '{"kind": "pickle"}',
        "{}",
        '{"kind": ["char"]}',
        '{"kind": "gpt2", "sha256": "00"}',
        '{"kind": "bpe"}',
        '{"kind": "bpe", "tokenizers": {}}',
        '{"kind": "unigram", "model": "AAAA"}',
        '{"kind": "unigram", "model": "?"}',
        '{"kind": "sp_bpe", "model": 3}',
        b"\x80\x04\x95",
    ],
)
def test_a_damaged_tokenizer_file_is_a_clear_error(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_file_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="groundling tokenizer train"):
        load_tokenizer(tmp_path)


def test_json_alone_is_enough():
    assert tokenizer_from_json(json.loads(json.dumps(CharTokenizer("abc").to_json()))).encode("cab") == [2, 0, 1]
