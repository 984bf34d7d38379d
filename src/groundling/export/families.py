"""Convert between a GPTConfig and the `config.json` of a published family in `transformers`.

The family follows from the position encoding and `qk_norm`; an option that it does not support raises an error. Beside
the family's keys, our `config.json` holds the whole GPTConfig under "groundling", because Llama has no key for dropout
and GPT-2 none for absent biases. It is used only if it describes the same model as the family's keys, except for the
vocabulary size, which the family's keys give.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from groundling.config import from_dict
from groundling.errors import CheckpointError, ConfigError
from groundling.export.config_json import ForeignConfig
from groundling.model.config import MAX_LAYERS, GPTConfig

NOTE = "groundling"
"""Key of the GPTConfig in `config.json`; marks a folder as written by us."""


class Family(NamedTuple):
    """A published architecture: its name, its class in `transformers`, and the prefix of its tensors' names."""

    model_type: str
    architecture: str
    prefix: str


GPT2 = Family("gpt2", "GPT2LMHeadModel", "transformer.")
LLAMA = Family("llama", "LlamaForCausalLM", "model.")
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", "model.")
FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, QWEN3)}

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "relu2": "relu2"}
"""Our activations and their names in GPT-2 of `transformers`, whose "gelu" is exact; ours is the tanh approximation."""
SAME_ACTIVATION = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}


def family_of(config: GPTConfig) -> Family:
    """Return the family that matches a GPT exactly.

    Raises:
        ConfigError: there is none; the message names each option in the way, and what to train instead.
    """
    family = GPT2 if config.position == "learned" else QWEN3 if config.qk_norm else LLAMA
    problems = _against_gpt2(config) if family is GPT2 else _against_llama(config, family)
    if problems:
        raise ConfigError(f"this model is none of GPT-2, Llama and Qwen3: {'; '.join(problems)}")
    return family


def _against_gpt2(config: GPTConfig) -> list[str]:
    """List the options that GPT-2 does not support. Absent biases are written as zeros."""
    having = "with learned positions: no family has this; train with"
    width = config.n_head * config.head_width()
    problems = {
        f"norm rmsnorm {having} --model.norm layernorm": config.norm != "layernorm",
        f"mlp swiglu {having} --model.mlp gelu": config.mlp not in ACTIVATIONS,
        f"qk_norm {having} --model.no-qk-norm": config.qk_norm,
        f"n_kv_head {config.kv_heads()} {having} as many as n_head, {config.n_head}": config.kv_heads()
        != config.n_head,
        f"{config.n_head} heads of {config.head_width()} in a width of {config.n_embd} {having} "
        "n_head * head_size == n_embd": width != config.n_embd,
    }
    return [problem for problem, is_there in problems.items() if is_there]


def _against_llama(config: GPTConfig, family: Family) -> list[str]:
    """List the options that Llama or Qwen3 does not support."""
    having = "with rotary positions: no family has this; train with"
    problems = {
        f"norm layernorm {having} --model.norm rmsnorm": config.norm != "rmsnorm",
        f"mlp {config.mlp} {having} --model.mlp swiglu": config.mlp != "swiglu",
        "qk_norm with biases: Qwen3 has none in its MLP; train with --model.no-bias": family is QWEN3 and config.bias,
        f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}, and transformers refuses such a Llama; "
        "train with another n_head, or as a Qwen3 with --model.qk-norm": family is LLAMA
        and config.n_embd % config.n_head != 0,
    }
    return [problem for problem, is_there in problems.items() if is_there]


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Return the `config.json` of a GPT, for transformers 4 and 5.

    Raises:
        ConfigError: no family matches this GPT exactly.
    """
    family = family_of(config)
    shared = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_weights,
        # Overrides the families' defaults: our tokenizers have no token that starts or ends a text.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    own = _gpt2_keys(config) if family is GPT2 else _llama_keys(config, family)
    return {**shared, **own, NOTE: dataclasses.asdict(config)}


def _gpt2_keys(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.hidden_width(),
        "n_positions": config.block_size,
        "activation_function": ACTIVATIONS[config.mlp],
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
    }


def _llama_keys(config: GPTConfig, family: Family) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads(),
        "head_dim": config.head_width(),
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden_width(),
        "max_position_embeddings": config.block_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # read by transformers 4 and programs written for it
        "attention_bias": config.bias,
        "attention_dropout": config.attention_dropout,
        **({"mlp_bias": config.bias} if family is LLAMA else {}),
    }


def read_config(values: Mapping[str, Any], where: str) -> tuple[Family, GPTConfig]:
    """Return the family and the config described by a `config.json` of transformers 4 or 5.

    Args:
        values: content of the file.
        where: name of the file in errors.

    Raises:
        CheckpointError: the family is unknown, a size is missing, or our model does not support an option.
    """
    family, config = _read_plain(values, where)
    note = values.get(NOTE)
    if not isinstance(note, dict):
        return family, config
    try:
        # An export can have rows for added tokens (see export_note), which our config does not count.
        ours = dataclasses.replace(from_dict(GPTConfig, note), vocab_size=config.vocab_size)
        is_same = _read_plain(write_config(ours), where) == (family, config)
    except (ConfigError, TypeError, AttributeError):
        return family, config
    return family, ours if is_same else config


def _read_plain(values: Mapping[str, Any], where: str) -> tuple[Family, GPTConfig]:
    """Convert the family's own keys; sizes that follow from others stay unset."""
    theirs = ForeignConfig(values, where)
    family = FAMILIES.get(str(theirs.values.get("model_type")))
    if family is None:
        raise CheckpointError(
            f"{where}: model_type is {theirs.values.get('model_type')!r}; {', '.join(FAMILIES)} can be imported"
        )
    theirs.require("quantization_config", None, None)
    layers = theirs.size("n_layer" if family is GPT2 else "num_hidden_layers")
    if layers > MAX_LAYERS:
        raise CheckpointError(f"{where}: {layers:,} layers are more than the {MAX_LAYERS:,} that are built")
    try:
        config = GPTConfig(**(_read_gpt2(theirs) if family is GPT2 else _read_llama(theirs, family)))
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
    follows = dataclasses.replace(
        config,
        n_kv_head=None if config.kv_heads() == config.n_head else config.n_kv_head,
        head_size=None if config.n_embd == config.n_head * config.head_width() else config.head_size,
    )
    if follows.hidden_width() == dataclasses.replace(follows, n_hidden=None).hidden_width():
        follows = dataclasses.replace(follows, n_hidden=None)
    return family, follows


def _read_gpt2(theirs: ForeignConfig) -> dict[str, Any]:
    theirs.require("scale_attn_weights", True, True)
    theirs.require("scale_attn_by_inverse_layer_idx", False, False)
    theirs.require("reorder_and_upcast_attn", False, False)
    theirs.require("add_cross_attention", False, False)
    ours = {name: kind for kind, name in ACTIVATIONS.items()}
    return {
        "n_layer": theirs.size("n_layer"),
        "n_head": theirs.size("n_head"),
        "n_embd": theirs.size("n_embd"),
        "n_hidden": theirs.size("n_inner", 4 * theirs.size("n_embd")),
        "block_size": theirs.size("n_positions"),
        "vocab_size": theirs.size("vocab_size"),
        "mlp": ours[theirs.choice("activation_function", "gelu_new", ours, SAME_ACTIVATION)],
        "norm_eps": theirs.number("layer_norm_epsilon", 1e-5),
        "dropout": theirs.number("resid_pdrop", 0.1),
        "attention_dropout": theirs.number("attn_pdrop", 0.1),
        "tie_weights": theirs.flag("tie_word_embeddings", True),
    }


def _read_llama(theirs: ForeignConfig, family: Family) -> dict[str, Any]:
    theirs.choice("hidden_act", "silu", ["silu"], SAME_ACTIVATION)
    theirs.require("use_sliding_window", False, False)
    if "sliding_attention" in str(theirs.values.get("layer_types")):
        raise CheckpointError(f"{theirs.where}: layer_types has sliding_attention; our model has full attention only")
    n_head, n_embd = theirs.size("num_attention_heads"), theirs.size("hidden_size")
    bias = theirs.flag("attention_bias", False)
    if family is QWEN3:
        theirs.require("attention_bias", False, False)
    elif theirs.flag("mlp_bias", False) != bias:
        raise CheckpointError(
            f"{theirs.where}: attention_bias is {bias} and mlp_bias {not bias}; our one `bias` is for both, "
            "so only a model where they agree can be imported"
        )
    # transformers' defaults for absent keys
    kv_heads, head_width = (n_head, n_embd // n_head) if family is LLAMA else (32, 128)
    return {
        "n_layer": theirs.size("num_hidden_layers"),
        "n_head": n_head,
        "n_kv_head": theirs.size("num_key_value_heads", kv_heads),
        "n_embd": n_embd,
        "head_size": theirs.size("head_dim", head_width),
        "n_hidden": theirs.size("intermediate_size"),
        "block_size": theirs.size("max_position_embeddings"),
        "vocab_size": theirs.size("vocab_size"),
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "position": "rotary",
        "qk_norm": family is QWEN3,
        "bias": bias,
        "norm_eps": theirs.number("rms_norm_eps", 1e-6),
        "rope_theta": theirs.rope_theta(),
        "attention_dropout": theirs.number("attention_dropout", 0.0),
        "tie_weights": theirs.flag("tie_word_embeddings", False),
    }
