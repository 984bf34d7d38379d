"""Row 32: a character that the character tokenizer has never seen gets a clear answer, whatever the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.errors import DataError
from groundling.text.char import CharTokenizer

KNOWN = "".join(sorted("\n !abcdefghijklmnopqrstuvwxyz"))


@given(st.text())
def test_any_text_is_encoded_or_refused_by_name(text):
    unseen = [(place, character) for place, character in enumerate(text) if character not in KNOWN]
    tokenizer = CharTokenizer(KNOWN)
    if not unseen:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    place, character = unseen[0]
    with pytest.raises(DataError) as caught:
        tokenizer.encode(text)
    assert f"U+{ord(character):04X}" in str(caught.value)
    assert f"at position {place} " in str(caught.value)
    str(caught.value).encode("utf-8")  # it can be printed and sent


@given(st.text())
def test_skipped_is_left_out_and_replaced_keeps_the_length(text):
    known = "".join(character for character in text if character in KNOWN)
    assert (tokenizer := CharTokenizer(KNOWN, "skip")).decode(tokenizer.encode(text)) == known
    tokenizer = CharTokenizer(KNOWN, "replace", "!")
    assert tokenizer.decode(tokenizer.encode(text)) == "".join(c if c in KNOWN else "!" for c in text)
