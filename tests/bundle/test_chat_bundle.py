"""A chat bundle: its methods are its template's, and nothing else loads as one."""

import pytest
import torch

from groundling.bundle import Bundle, ChatBundle, load_bundle, load_chat_bundle, require_chat_model, save_bundle
from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens

TOKENIZER = CharTokenizer(" abcdefg")
CHAT = RoleTokens.after(TOKENIZER.vocab_size)
ASKED = [Message("user", "abc")]


@pytest.fixture
def model() -> GPT:
    vocab_size = max(CHAT.special_ids()) + 1
    return GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=vocab_size))


def test_it_encodes_and_decodes_as_its_template(model, tmp_path):
    save_bundle(tmp_path / "chat", model, TOKENIZER, chat=CHAT)
    bundle = load_chat_bundle(tmp_path / "chat")
    prompt, reply = bundle.encode_chat(ASKED), bundle.encode_reply("fad")
    assert prompt == CHAT.prompt(ASKED, TOKENIZER)
    assert reply == [*TOKENIZER.encode("fad"), CHAT.end]
    assert bundle.decode_chat(prompt) == [*ASKED, Message("assistant", "")]
    assert bundle.decode_reply(reply) == "fad"


def test_a_base_model_and_a_reward_model_are_refused(model, tmp_path):
    save_bundle(tmp_path / "base", model, TOKENIZER)
    with pytest.raises(ConfigError, match="base is a base model, not a chat model; fine-tune it with `groundling sft"):
        load_chat_bundle(tmp_path / "base")
    with pytest.raises(ConfigError, match="a base model, not a chat model"):
        require_chat_model(load_bundle(tmp_path / "base"), "here")
    save_bundle(tmp_path / "reward", model, TOKENIZER, chat=CHAT, head={"weight": torch.zeros(1, 8)})
    with pytest.raises(ConfigError, match="reward is a reward model"):
        load_chat_bundle(tmp_path / "reward")


def test_a_chat_bundle_cannot_be_made_without_a_template(model):
    assert Bundle(model.config, model, TOKENIZER).chat is None
    with pytest.raises(TypeError, match="chat"):
        ChatBundle(model.config, model, TOKENIZER)
