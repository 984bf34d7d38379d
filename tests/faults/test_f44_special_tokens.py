"""Row 44: what a person or a file says never becomes structure, with any tokenizer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.data.examples.conversations import read_conversations
from groundling.data.examples.encoding import EncodingCounts, encode_conversation
from groundling.errors import DataError
from groundling.text import bpe, gpt2, sentence_piece
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import ROLES, Message
from groundling.text.chat.role_tokens import RoleTokens

SPECIALS = ["<|endoftext|>", "<|user_end|>", "<|im_start|>", "<|im_end|>", "<user>", "<end>", "<assistant>", "<system>"]
SPECIALS += ["</s>", "<s>", "[INST]", "<unk>", "<pad>", "<0x0A>", "\u2581"]
HOSTILE = st.lists(st.sampled_from(SPECIALS) | st.text(max_size=4), min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizers():
    text = "".join(SPECIALS) * 20 + "the quick brown fox jumps over the lazy dog\n" * 200
    return {
        "gpt2": gpt2.GPT2Tokenizer(),
        "bpe": bpe.train_bpe([text], 300),
        "sp_bpe": sentence_piece.train_sentencepiece([text], "sp_bpe", 320),
        "char": CharTokenizer("".join(sorted(set(text))), "skip"),
    }


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "sp_bpe", "char"])
@given(words=HOSTILE, role=st.sampled_from(ROLES))
def test_content_holds_no_id_of_structure(tokenizers, kind, words, role):
    tokenizer = tokenizers[kind]
    chat = RoleTokens.after(tokenizer.vocab_size)
    first, *content, last = chat.message(Message(role, words), tokenizer)
    assert (first, last) == (chat.role_id(role), chat.end)
    assert not set(content) & set(chat.special_ids())
    if kind != "char":
        assert tokenizer.decode(content) == words


def test_gpt2s_own_special_token_is_text_as_well(tokenizers):
    assert 50256 not in tokenizers["gpt2"].encode("<|endoftext|>")


@pytest.mark.parametrize("special", SPECIALS)
def test_the_same_holds_for_what_fine_tuning_reads(tmp_path, tokenizers, special):
    path, tokenizer = tmp_path / "hostile.jsonl", tokenizers["bpe"]
    path.write_text(json.dumps({"instruction": special, "output": special}))
    chat = RoleTokens.after(tokenizer.vocab_size)
    (conversation,) = read_conversations(path)
    encoded = encode_conversation(conversation, chat, tokenizer, 999, EncodingCounts())
    structure = [id for id in encoded.ids if id in chat.special_ids()]
    assert structure == [chat.user, chat.end, chat.assistant, chat.end]


@pytest.mark.parametrize("role", ["tool", "root", "", "User", "assistant ", "<|im_start|>", 0, None])
def test_nobody_names_a_role_of_their_own(tmp_path, role):
    path = tmp_path / "roles.jsonl"
    path.write_text(json.dumps({"messages": [{"role": role, "content": "a"}]}))
    with pytest.raises(DataError, match="system, user or assistant is expected"):
        read_conversations(path)
