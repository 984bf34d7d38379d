"""One trained tokenizer of each library, shared by the tests."""

import pytest

from groundling.data import datasets
from groundling.text import bpe, gpt2, sentence_piece


@pytest.fixture(scope="session")
def plays():
    return datasets.get("tiny_shakespeare").read_text("utf-8")


@pytest.fixture(scope="session")
def trained(plays):
    sample = [plays[:200_000]]
    return {
        "gpt2": gpt2.GPT2Tokenizer(),
        "bpe": bpe.train_bpe(sample, 400),
        "unigram": sentence_piece.train_sentencepiece(sample, "unigram", 400),
        "sp_bpe": sentence_piece.train_sentencepiece(sample, "sp_bpe", 400),
    }
