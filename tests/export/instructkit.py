"""Instruct models in the layout of `transformers`: SmolLM2's and Qwen3's kind, and what each says next is a table."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WORDS = "the king and the fool, and so did the user speak\n\nassistant\nuser\nsystem\nYes, I do.\n\n" * 40
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
DEFAULT = "You are a helpful AI assistant named Small."

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + DEFAULT + "<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Renders what SmolLM2-Instruct's template renders, with another default."""

THINKING = """\
{%- set ns = namespace(asked=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- set ns.asked = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set words = m.content %}
    {%- if m.role == 'assistant' and '</think>' in words %}
        {%- set words = words.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and loop.last and loop.index0 > ns.asked %}
        {{- '<think>\n\n</think>\n\n' + words.lstrip('\n') }}
    {%- else %}
        {{- words }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
"""Renders what Qwen3's template renders of conversations without tools."""


def smol_tokenizer() -> Tokenizer:
    """SmolLM2's kind: special tokens first, single digits, GPT-2's cuts."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return _trained(tokenizer, [END, START, STOP, "<repo_name>"])


def qwen_tokenizer() -> Tokenizer:
    """Qwen's kind: cuts of its own, NFC, special tokens last, and tags that are added and not special."""
    cut = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    cut += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(cut), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer = _trained(tokenizer, [])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (END, START, STOP)])
    tags = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in tags])
    return tokenizer


def _trained(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    return tokenizer


def say_in_turn(model: Any, nexts: dict[int, int]) -> None:
    """After each of these tokens the next one is certain, whatever stands before; after others it is anything."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("o_proj", "down_proj", "c_proj")):
                parameter.zero_()  # what a block reads changes nothing
        words = torch.randn(model.get_input_embeddings().weight.shape, generator=generator)
        model.get_input_embeddings().weight.copy_(words)
        scores = 0.1 * torch.randn(words.shape, generator=generator)
        for token, after in nexts.items():
            scores[after] = words[token]
        model.get_output_embeddings().weight.copy_(scores)


def write_smol(folder: Path, says: str = "Yes", template: str | None = CHATML, **changes: Any) -> Path:
    """A Llama like SmolLM2-Instruct that replies with these letters, the end, and then <|endoftext|> and more."""
    tokenizer = smol_tokenizer()
    size = {"hidden_size": 48, "intermediate_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 160}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "rope_theta": 100_000, "rms_norm_eps": 1e-5}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = LlamaConfig(**size, **heads, **{**ends, **changes}, vocab_size=tokenizer.get_vocab_size() + 5)
    model = LlamaForCausalLM(config)
    ids = tokenizer.token_to_id
    chain = [ids("Ċ"), *map(ids, says), ids(STOP), ids(END), ids("Z"), ids("Q")]
    say_in_turn(model, dict(pairwise(chain)))
    own = {"bos_token": START, "eos_token": STOP, "unk_token": END, "pad_token": STOP}
    return _save(folder, model, tokenizer, template, own)


def write_qwen(folder: Path, template: str | None = THINKING) -> Path:
    """A Qwen3 that thinks H and m, replies Yes, and ends; without thoughts it replies Yes at once."""
    tokenizer = qwen_tokenizer()
    size = {"hidden_size": 48, "intermediate_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 160}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6}
    ids = tokenizer.token_to_id
    config = Qwen3Config(**size, **heads, vocab_size=tokenizer.get_vocab_size() + 5, eos_token_id=ids(STOP))
    model = Qwen3ForCausalLM(config)
    chain = [ids("Ċ"), ids("<think>"), ids("H"), ids("m"), ids("</think>"), ids("ĊĊ"), *map(ids, "Yes"), ids(STOP)]
    say_in_turn(model, dict(pairwise(chain)))
    model.generation_config.eos_token_id = [ids(STOP), ids(END)]
    return _save(folder, model, tokenizer, template, {"eos_token": STOP, "pad_token": END})


def write_gpt2(folder: Path, says: str = "the") -> Path:
    """A GPT-2 that goes on from a line's end with these letters, <|endoftext|>, and then the same again."""
    tokenizer = _trained_gpt2()
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=1, n_head=2, n_embd=48, n_positions=64, vocab_size=tokenizer.get_vocab_size(),
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    ids = tokenizer.token_to_id
    chain = [ids("Ċ"), *map(ids, says), ids(END), ids("Ċ")]
    say_in_turn(model, dict(pairwise(chain)))
    torch.nn.init.zeros_(model.transformer.wpe.weight)
    return _save(folder, model, tokenizer, None, {"bos_token": END, "eos_token": END})


def _trained_gpt2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(tokenizer, [END])


def _save(folder: Path, model: Any, tokenizer: Tokenizer, template: str | None, own: dict[str, str]) -> Path:
    model.save_pretrained(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **own)
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    return folder


def put_template_into_config(folder: Path, template: Any) -> None:
    """Put a chat template where transformers 4 does."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "chat_template": template}), "utf-8")
