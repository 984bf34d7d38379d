"""One trained tokenizer of each library, shared by the tests."""

import pytest

from groundling.data import sources
from groundling.text import vendors


@pytest.fixture(scope="session")
def plays():
    return sources.get("tiny_shakespeare").read_text("utf-8")


@pytest.fixture(scope="session")
def trained(plays):
    sample = [plays[:200_000]]
    return {
        "gpt2": vendors.GPT2Tokenizer(),
        "bpe": vendors.train_bpe(sample, 400),
        "unigram": vendors.train_sentencepiece(sample, "unigram", 400),
        "sp_bpe": vendors.train_sentencepiece(sample, "sp_bpe", 400),
    }
