"""Row 24: the end of a reply is learned like its words, so a model learns to stop; a reply cut short teaches no end."""

import pytest

from groundling.data.examples.conversations import Conversation
from groundling.data.examples.encoding import EncodingCounts, encode_conversation
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens

TOKENIZER = CharTokenizer("ab")
CHAT = RoleTokens.after(2)
USER, REPLY = Message("user", "ab"), Message("assistant", "ba")


@pytest.mark.parametrize("n_turns", [1, 2, 5])
def test_each_reply_teaches_its_end_and_no_prompt_does(n_turns):
    encoded = encode_conversation(Conversation((USER, REPLY) * n_turns), CHAT, TOKENIZER, 999, EncodingCounts())
    ends = [learned for id, learned in zip(encoded.ids, encoded.loss_mask, strict=True) if id == CHAT.end]
    assert ends == [False, True] * n_turns


def test_the_mask_to_the_letter():
    """user a b end assistant b a end: learned are b, a and the end."""
    encoded = encode_conversation(Conversation((USER, REPLY)), CHAT, TOKENIZER, 999, EncodingCounts())
    assert encoded.ids == [4, 0, 1, 2, 5, 1, 0, 2]
    assert encoded.loss_mask == [False, False, False, False, False, True, True, True]


def test_a_reply_cut_short_teaches_no_end():
    counts = EncodingCounts()
    encoded = encode_conversation(Conversation((USER, Message("assistant", "b" * 99))), CHAT, TOKENIZER, 40, counts)
    assert len(encoded.ids) == 40
    assert encoded.ids.count(CHAT.end) == 1
    assert encoded.loss_mask[-1]
    assert encoded.ids[-1] != CHAT.end
    assert counts.n_cut == 1


def test_the_end_is_no_id_that_stands_for_anything_else():
    assert CHAT.end not in {*range(TOKENIZER.vocab_size), CHAT.system, CHAT.user, CHAT.assistant}
