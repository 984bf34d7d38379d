"""Write a bundle as one GGUF file in float32, for llama.cpp and programs built on it.

GPT-2, Llama and Qwen3 are supported, with unchanged weights, under the names of the `gguf` package. On a CPU, llama.cpp
reads GELU from a float16 table, which changes a GPT-2's logits by thousandths; the other two families are computed in
float32 throughout, as here (differences: docs/log.md).

Shapes: V tokens of the file, C n_embd, H heads, D head_size.
"""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from groundling.bundle import Bundle
from groundling.bundle.weights import plain_state_dict
from groundling.errors import ConfigError
from groundling.export.additions import rarest_token
from groundling.export.families import GPT2, LLAMA, Family, family_of
from groundling.export.gguf_vocabulary import Vocabulary, vocabulary_of
from groundling.export.weights import TRANSPOSED, to_theirs
from groundling.model.config import GPTConfig
from groundling.storage import atomic, files
from groundling.system.optional import optional_import

MARK = "groundling.version"
"""First key after the architecture; marks a file as ours, which may be replaced."""
MAX_ENDS = 3
"""Maximum number of end ids in a file."""
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
"""Ids that newer programs of llama.cpp suppress; older ones ignore the key."""


def export_gguf(bundle: Bundle, path: Path) -> None:
    """Write a bundle as a GGUF file; replaces `path` atomically.

    Embedding rows beyond the vocabulary and the role tokens are left out: they are never sampled here, but llama.cpp
    would sample them.

    Args:
        bundle: the model to write.
        path: the output file.

    Raises:
        ConfigError: llama.cpp does not support the model or its tokenizer; nothing is written.
        StorageError: the file cannot be written; an existing file is unchanged.
        MissingExtraError: gguf, or the tokenizer's library, is not installed.
    """
    library = _gguf()
    family = runnable_family(bundle.config)
    vocabulary = vocabulary_of(bundle.tokenizer, bundle.chat)
    rows = list(range(len(vocabulary.pieces)))
    if vocabulary.end_is_added:
        rows[vocabulary.ends[0]] = rarest_token(bundle)
    with (
        atomic.new_file(path) as temporary,
        contextlib.closing(library.GGUFWriter(temporary, family.model_type)) as writer,
    ):
        writer.add_string(MARK, version("groundling"))
        _describe_model(writer, bundle.config, family, library)
        _describe_vocabulary(writer, vocabulary)
        for name, array in _arrays(bundle, family, rows, library):
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _gguf() -> Any:
    return optional_import("gguf", "export")


def is_export(path: Path) -> bool:
    """Whether a file is an earlier export of ours, which may be replaced."""
    if not files.is_regular(path):
        return False
    with files.open_regular(path) as file:
        beginning = file.read(1024)
    return beginning.startswith(b"GGUF") and MARK.encode() in beginning


def runnable_family(config: GPTConfig) -> Family:
    """Return the family of a GPT if llama.cpp supports all of it.

    Raises:
        ConfigError: no family matches this GPT exactly, or llama.cpp ignores an option.
    """
    family = family_of(config)
    if family is GPT2 and config.mlp != "gelu":
        raise ConfigError(
            f"mlp is {config.mlp!r}, and llama.cpp computes every GPT-2 with GELU; train with --model.mlp gelu, "
            "or export to Hugging Face"
        )
    return family


def _describe_model(writer: Any, config: GPTConfig, family: Family, library: Any) -> None:
    writer.add_file_type(library.LlamaFileType.ALL_F32)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.hidden_width())
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads())
    if family is GPT2:
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_width())
    writer.add_value_length(config.head_width())
    writer.add_rope_dimension_count(config.head_width())
    writer.add_rope_freq_base(config.rope_theta)


def _describe_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_tokenizer_pre(vocabulary.cut)
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(False)
    # Without both ids, llama.cpp takes ordinary tokens for them.
    end, *others = vocabulary.ends
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(others[0] if others else end)  # llama.cpp ends at eos, eot and eom alike
    if len(others) > 1:
        writer.add_eom_token_id(others[1])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if vocabulary.never_drawn:
        writer.add_array(SUPPRESSED, vocabulary.never_drawn)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _arrays(
    bundle: Bundle, family: Family, rows: list[int], library: Any
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield name and values of each tensor of the file; a token's row is row `rows[token]` of the model."""
    config = bundle.config
    architecture = {name: key for key, name in library.MODEL_ARCH_NAMES.items()}[family.model_type]
    names = library.get_tensor_name_map(architecture, config.n_layer)
    weights = {name: tensor.cpu().float() for name, tensor in plain_state_dict(bundle.model).items()}
    for their_name, tensor in to_theirs(weights, config, family).items():
        name = names.get_name(their_name, try_suffixes=(".weight", ".bias"))
        if name in ("token_embd.weight", "output.weight"):
            tensor = tensor[rows]
        if family is GPT2 and their_name.endswith(TRANSPOSED):
            tensor = tensor.T  # only transformers transposes it
        if family is LLAMA and (".attn_q." in name or ".attn_k." in name):
            tensor = neighbouring_pairs(tensor, config.head_width())
        yield name, tensor.contiguous().numpy()


def neighbouring_pairs(rows: Tensor, head_size: int) -> Tensor:
    """Reorder the rows of queries or keys from pairs (i, i + D/2) to (2i, 2i + 1).

    llama.cpp rotates adjacent pairs for Llama, as in the paper, and our pairs for Qwen3. Queries and keys are reordered
    alike, so their dot products stay the same.

    Args:
        rows: a weight (H D, C) or a bias (H D).
        head_size: D.
    """
    halves = rows.reshape(-1, 2, head_size // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
