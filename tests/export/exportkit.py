"""Models of all three families at awkward sizes, with weights far from their first values, and their tokenizers."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from groundling.align.chat_vocab import with_chat
from groundling.bundle import Bundle, save_bundle
from groundling.bundle.weights import plain_state_dict
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text import bpe, gpt2, sentence_piece
from groundling.text.char import CharTokenizer
from groundling.text.serialize import fingerprint
from groundling.text.tokenizer import Tokenizer

SYMBOLS = "".join(sorted("\n\t\r\0 $<>\"'\\&aeinorst\u00a0\u00e9\u0301\u2581\ufffd\U0001f642日本"))
CHARACTERS = CharTokenizer(SYMBOLS)
TEXT = 'atone\n\t \'tis <a>$&\\ \r\n\0 "日本" \u00e9\u0301\u00a0\u2581\U0001f642\ufffd  rain'
"""All characters of `CHARACTERS`, in an order that tests blanks, quotes and marks that join."""

BASE = GPTConfig(n_layer=2, n_head=6, n_embd=36, block_size=112, vocab_size=CHARACTERS.vocab_size)
ROTARY = GPTConfig(
    n_layer=2,
    n_head=6,
    n_kv_head=2,
    n_embd=36,
    n_hidden=50,
    block_size=112,
    vocab_size=CHARACTERS.vocab_size,
    norm="rmsnorm",
    mlp="swiglu",
    position="rotary",
    bias=False,
    rope_theta=500.0,
)


def lively(model: nn.Module, seed: int = 3) -> nn.Module:
    """Weights far from their small first values, gains and biases too, so that every part speaks in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * 0.15
    return model.eval()


def make_bundle(config: GPTConfig, tokenizer: Tokenizer = CHARACTERS) -> Bundle:
    return Bundle(config, lively(GPT(config)), tokenizer)


def make_chat(config: GPTConfig, tokenizer: Tokenizer = CHARACTERS) -> Bundle:
    """A model with ids for a conversation's structure, each row as lively as the others."""
    bundle = with_chat(make_bundle(dataclasses.replace(config, vocab_size=tokenizer.vocab_size), tokenizer))
    return dataclasses.replace(bundle, model=lively(bundle.model))


def save(bundle: Bundle, folder: Path) -> Path:
    save_bundle(folder, bundle.model, bundle.tokenizer, None, bundle.chat)
    return folder


def assert_equal(found: Bundle, expected: Bundle) -> None:
    """The same config, tokenizer, template and weights, to the last bit."""
    assert found.config == expected.config
    assert found.chat == expected.chat
    assert fingerprint(found.tokenizer) == fingerprint(expected.tokenizer)
    ours, theirs = plain_state_dict(found.model), plain_state_dict(expected.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def assert_same_logits(theirs: nn.Module, ours: GPT, n_ids: int | None = None) -> None:
    idx_BT = torch.randint(
        n_ids or ours.config.vocab_size, (2, ours.config.block_size), generator=torch.Generator().manual_seed(8)
    )
    expected, found = theirs(idx_BT).logits, ours(idx_BT)
    assert expected.std() > 0.3, "logits that are all alike would prove nothing"
    V = ours.config.vocab_size
    torch.testing.assert_close(found, expected[..., :V], rtol=1e-5, atol=1e-5)
    # Rows that only the exported files have are copies of one row, so that none of them is ever the likeliest.
    assert (expected[..., V:] <= expected[..., :V].amax(-1, keepdim=True) + 1e-5).all()


def tokenizer_of(kind: str, text: str) -> Tokenizer:
    """A tokenizer of each kind; the trained ones of `text`."""
    if kind == "gpt2":
        return gpt2.GPT2Tokenizer()
    if kind == "bpe":
        return bpe.train_bpe([text], 300)
    if kind in ("unigram", "sp_bpe"):
        return sentence_piece.train_sentencepiece([text], kind, 320)
    unknown = kind.removeprefix("char ")
    return CharTokenizer(SYMBOLS, unknown, "e" if unknown == "replace" else None)


KINDS = ["char error", "char skip", "char replace", "gpt2", "bpe", "unigram", "sp_bpe"]
