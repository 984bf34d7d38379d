"""Convert tensors to and from the names and shapes of GPT-2, Llama and Qwen3.

Shapes: C n_embd, F hidden, H heads, D head_size. GPT-2 in `transformers` stores matrices transposed (C, F instead of
F, C); Llama and Qwen3 separate q, k and v, which ours stacks in this order.
"""

import dataclasses
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from groundling.bundle.weights import plain_state_dict
from groundling.errors import CheckpointError
from groundling.export.families import GPT2, Family
from groundling.model.config import GPTConfig
from groundling.model.uninitialized import blank_gpt

LLAMA_MODULES = {
    "wte": "embed_tokens",
    "ln_f": "norm",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "mlp.c_gate": "mlp.gate_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
"""Module names of a block, and those outside the blocks. Ours stacks q, k and v."""
TRANSPOSED = ("c_attn.weight", "c_fc.weight", "c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Derived tables that older releases stored with the weights."""


def their_names(name: str, family: Family) -> tuple[str, ...]:
    """Return the family's names of one of our tensors; three if it separates q, k and v."""
    if name == "lm_head.weight":
        return (name,)
    if family is GPT2:
        return (family.prefix + name.removeprefix("positions."),)
    block, module, kind = "", *name.rsplit(".", 1)
    if name.startswith("h."):
        _, layer, module = module.split(".", 2)
        block = f"layers.{layer}."
    if module == "attn.c_attn":
        return tuple(f"{family.prefix}{block}self_attn.{part}_proj.{kind}" for part in "qkv")
    return (f"{family.prefix}{block}{LLAMA_MODULES[module]}.{kind}",)


def to_theirs(weights: Mapping[str, Tensor], config: GPTConfig, family: Family) -> dict[str, Tensor]:
    """Convert our tensors, from `plain_state_dict`, to those of a family.

    GPT-2 requires biases; they are zeros if our model has none.
    """
    theirs: dict[str, Tensor] = {}
    for name, shape in our_shapes(with_biases(config, family)).items():
        ours = weights[name] if name in weights else torch.zeros(shape)
        names = their_names(name, family)
        for their_name, part in zip(names, torch.split(ours, _rows(names, shape, config)), strict=True):
            turned = part.T if family is GPT2 and name.endswith(TRANSPOSED) else part
            theirs[their_name] = turned.contiguous()
    return theirs


def to_ours(
    theirs: Mapping[str, Tensor], config: GPTConfig, family: Family, where: str, transposed: bool = True
) -> dict[str, Tensor]:
    """Convert a family's tensors to ours, in float32.

    Args:
        theirs: with or without the family's prefix; a tied output matrix is optional.
        config: the config they have to fit.
        family: family of the names.
        where: name of the file in errors.
        transposed: whether GPT-2's matrices are transposed; nanoGPT's are not.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of a wrong shape, or not floating point.
    """
    left = {_full_name(name, family): tensor for name, tensor in theirs.items() if not name.endswith(BUFFERS)}
    if config.tie_weights and "lm_head.weight" in left:
        output, table = left.pop("lm_head.weight"), left.get(their_names("wte.weight", family)[0])
        if table is not None and not torch.equal(output, table):
            raise CheckpointError(
                f"{where}: the embedding and lm_head.weight differ, and its config says that they are tied; "
                'set "tie_word_embeddings" to false there if they are meant to differ'
            )
    _require_layers(left, config, family, where)
    turns = family is GPT2 and transposed
    ours: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, shape in our_shapes(config).items():
        names = their_names(name, family)
        parts: list[Tensor] = []
        for their_name, rows in zip(names, _rows(names, shape, config), strict=True):
            turn = turns and name.endswith(TRANSPOSED)
            expected = (rows, *shape[1:])
            part = left.pop(their_name, None)
            problem = _problem(part, their_name, expected[::-1] if turn else expected)
            if part is None or problem:
                problems.append(problem)
            else:
                parts.append((part.T if turn else part).float())
        if len(parts) == len(names):
            ours[name] = torch.cat(parts).contiguous()
    problems += [f"{name} is unexpected: the model has no such tensor" for name in sorted(left)]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{where} does not fit its config: {'; '.join(problems[:3])}{more}")
    return ours


def _require_layers(theirs: Collection[str], config: GPTConfig, family: Family, where: str) -> None:
    """Compare the number of layers before building any, which takes time even without memory."""
    begin = f"{family.prefix}{'h' if family is GPT2 else 'layers'}."
    layers = {name[len(begin) :].partition(".")[0] for name in theirs if name.startswith(begin)}
    if len(layers) != config.n_layer:
        raise CheckpointError(f"{where} has the weights of {len(layers)} layers, and its config says {config.n_layer}")


def our_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the tensors of our model: name -> shape.

    Raises:
        CheckpointError: the sizes are impossible.
    """
    try:
        outline = blank_gpt(config, "meta")
    except RuntimeError as error:
        raise CheckpointError(f"the config has sizes that no machine can hold: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in plain_state_dict(outline).items()}


def with_biases(config: GPTConfig, family: Family) -> GPTConfig:
    """Return the config as the family supports it: a GPT-2 always has biases."""
    return dataclasses.replace(config, bias=True) if family is GPT2 else config


def without_absent_biases(ours: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights without biases if all of them are zero; otherwise None."""
    biases = [name for name in ours if name.endswith(".bias")]
    if any(ours[name].count_nonzero() for name in biases):
        return None
    return {name: tensor for name, tensor in ours.items() if name not in biases}


def _rows(names: tuple[str, ...], shape: tuple[int, ...], config: GPTConfig) -> list[int]:
    """Return how many rows of our tensor go to each of the family's: all, or those of q, k and v."""
    if len(names) == 1:
        return [shape[0]]
    return [heads * config.head_width() for heads in (config.n_head, config.kv_heads(), config.kv_heads())]


def _full_name(name: str, family: Family) -> str:
    """Add the family's prefix if it is missing, as in files without an output matrix, such as GPT-2's first ones."""
    return name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name


def _problem(tensor: Tensor | None, name: str, shape: tuple[int, ...]) -> str:
    """Return why a tensor is unsuitable; "" if it fits."""
    if tensor is None:
        return f"{name} is missing, expected {shape}"
    if tuple(tensor.shape) != shape:
        return f"{name} is {tuple(tensor.shape)}, expected {shape}"
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        return f"{name} is of type {tensor.dtype}, expected float32, float16 or bfloat16, not quantised"
    return ""
