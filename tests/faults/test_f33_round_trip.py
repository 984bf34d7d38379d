"""Row 33: whatever goes into a byte-level tokenizer comes out again, at once or as a stream."""

import io
import json

import pytest
import sentencepiece
import tokenizers

from groundling.data import datasets
from groundling.errors import ConfigError
from groundling.export.gguf_vocabulary import vocabulary_of
from groundling.export.hf_tokenizer import tokenizer_spec
from groundling.text import bpe, gpt2, libraries, sentence_piece

SURROGATES = range(0xD800, 0xE000)
ALL = [chr(point) for point in range(0x110000) if point not in SURROGATES]


@pytest.fixture(scope="module", params=libraries.KINDS)
def tokenizer(request):
    if request.param == "gpt2":
        return gpt2.GPT2Tokenizer()
    text = [datasets.get("tiny_shakespeare").read_text("utf-8")[:50_000]]
    return (
        bpe.train_bpe(text, 400)
        if request.param == "bpe"
        else sentence_piece.train_sentencepiece(text, request.param, 400)
    )


@pytest.mark.slow
@pytest.mark.parametrize("between", ["", " ", "a"])
def test_every_character_there_is_comes_back(tokenizer, between):
    for start in range(0, len(ALL), 1 << 16):
        text = between.join(ALL[start : start + (1 << 16)])
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text


def test_streamed_one_by_one_every_kind_of_character_comes_back(tokenizer):
    text = "".join(ALL[::1009])
    stream = tokenizer.stream_decoder()
    pieces = [*map(stream.push, tokenizer.encode(text)), stream.finish()]
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    assert "\ufffd" not in "".join(pieces)


SPACES = ["a b", " ", "  a", "a ", "\u2581 \u2581 a\u2581b", "c \n d e\u0301 \U0001f600 f"]


def without_a_piece_for_a_space(kind):
    """As it was trained before a space was required: from a text that has none."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["abcabd", "xyzabc"] * 50),
        model_writer=model,
        model_type="unigram" if kind == "unigram" else "bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return sentence_piece.SentencePieceTokenizer(model.getvalue(), kind)


@pytest.mark.parametrize("text", SPACES)
@pytest.mark.parametrize("kind", ["unigram", "sp_bpe"])
@pytest.mark.parametrize("was", ["new", "saved earlier"])
def test_a_space_comes_back_from_a_tokenizer_that_has_never_seen_one(was, kind, text):
    """As a space, and not as the sign that SentencePiece writes for it."""
    if was == "new":
        tokenizer = sentence_piece.train_sentencepiece(["abcabd\nxyzabc\n" * 50], kind, 300)
    else:
        tokenizer = without_a_piece_for_a_space(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    exported = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_spec(tokenizer)))
    assert exported.encode(text).ids == ids
    assert exported.decode(ids) == text
    if was == "saved earlier" and kind == "sp_bpe":
        with pytest.raises(ConfigError, match="no piece for a space"):
            vocabulary_of(tokenizer)
