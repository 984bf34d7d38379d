"""Row 33: whatever goes into a byte-level tokenizer comes out again, at once or as a stream."""

import pytest

from groundling.data import sources
from groundling.text import vendors

SURROGATES = range(0xD800, 0xE000)
ALL = [chr(point) for point in range(0x110000) if point not in SURROGATES]


@pytest.fixture(scope="module", params=vendors.KINDS)
def tokenizer(request):
    if request.param == "gpt2":
        return vendors.GPT2Tokenizer()
    text = [sources.get("tiny_shakespeare").read_text("utf-8")[:50_000]]
    return (
        vendors.train_bpe(text, 400)
        if request.param == "bpe"
        else vendors.train_sentencepiece(text, request.param, 400)
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
