"""Row 26: a preference pair from which nothing can be learned is left out and counted, never trained on."""

import json

import pytest

from groundling.data.examples.conversations import read_preferences
from groundling.data.examples.encoding import EncodingCounts, encode_preference
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens

TOKENIZER = CharTokenizer(" abc")
CHAT = RoleTokens.after(4)
GOOD = {"prompt": "a b", "chosen": "b", "rejected": "c"}
BAD = {
    "the same": ({"rejected": "b"}, {"n_same": 1}),
    "an empty winner": ({"chosen": ""}, {"n_empty": 1}),
    "an empty loser": ({"rejected": ""}, {"n_empty": 1}),
    "only blanks": ({"rejected": "  \n"}, {"n_empty": 1}),
    "both empty": ({"chosen": "", "rejected": ""}, {"n_empty": 1}),
    "no room for the prompt": ({"chosen": "b" * 60}, {"n_long": 1}),
    "a loser that is too long": ({"rejected": "b" * 600}, {"n_long": 1}),
    "unknown characters": ({"chosen": "x"}, {"n_unknown": 1}),
}


@pytest.mark.parametrize(("change", "counted"), BAD.values(), ids=BAD.keys())
def test_it_is_left_out_and_counted(tmp_path, change, counted):
    path, counts = tmp_path / "pairs.jsonl", EncodingCounts()
    path.write_text("\n".join(json.dumps(row) for row in (GOOD, GOOD | change, GOOD)))
    pairs = [encode_preference(found, CHAT, TOKENIZER, 64, counts) for found in read_preferences(path)]
    assert [pair is None for pair in pairs] == [False, True, False]
    counts.first_unknown = ""
    assert counts == EncodingCounts(n_read=3, n_kept=2, **counted)


def test_a_long_prompt_is_no_reason(tmp_path):
    path, counts = tmp_path / "pairs.jsonl", EncodingCounts()
    path.write_text(json.dumps(GOOD | {"prompt": "a " * 500 + "c"}))
    (found,) = read_preferences(path)
    pair = encode_preference(found, CHAT, TOKENIZER, 64, counts)
    assert len(pair.prompt) + len(pair.chosen) == 64
    assert TOKENIZER.decode(pair.prompt[1:-2]).endswith(" a c")
    assert counts == EncodingCounts(n_read=1, n_kept=1, n_cut_fronts=1)


def test_replies_that_differ_only_in_what_the_tokenizer_drops_are_the_same(tmp_path):
    """Their logits would be identical, and the loss stay at ln 2 for ever."""
    path, counts = tmp_path / "pairs.jsonl", EncodingCounts()
    path.write_text("\n".join(json.dumps(GOOD | {"chosen": "b!", "rejected": loser}) for loser in ("b?", "?")))
    for found in read_preferences(path):
        assert encode_preference(found, CHAT, CharTokenizer(" ab", "skip"), 64, counts) is None
    assert counts == EncodingCounts(n_read=2, n_same=1, n_empty=1)
