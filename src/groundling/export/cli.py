"""`groundling export hf|gguf|bundle`."""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from groundling import config
from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.bundle.layout import HEAD, find_bundle, looks_like_bundle, require_language_model
from groundling.errors import StorageError
from groundling.storage import atomic
from groundling.storage.tensors import read_tensors
from groundling.system.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a trained model for other programs."""

    path: tyro.conf.Positional[Path]
    """Bundle, checkpoint or run folder."""
    out: tyro.conf.Positional[Path]
    """Output: a folder for hf and bundle, a file for gguf."""
    checkpoint: str = "best"
    """Checkpoint of a run: best, last, or a step number."""
    context: int | None = None
    """Context length of the export in tokens; None: the model's."""
    overwrite: bool = False
    """Replace an earlier export at `out`; other files there are kept."""


def main(argv: Sequence[str]) -> int:
    """Run `groundling export hf|gguf|bundle`."""
    commands = {
        "hf": (_hf, "a folder for transformers and vLLM: GPT-2, Llama or Qwen3, with tokenizer"),
        "gguf": (_gguf, "a GGUF file for llama.cpp and Ollama"),
        "bundle": (_bundle, "a self-contained bundle: a merged LoRA adapter, or one checkpoint of a run"),
    }
    with Progress("exporting"):
        return config.run_subcommand(argv, commands, "groundling export")


def _hf(argv: list[str]) -> int:
    from groundling.export.hf import export_hf, is_export

    chosen = config.parse(Config, argv, "groundling export hf", "Export a folder for transformers and vLLM.")
    bundle = _load_language_model(chosen, is_export)
    family = export_hf(bundle, chosen.out)
    print(f"{chosen.out}: {family.architecture}, {_summary(bundle)}")
    where = json.dumps(str(chosen.out), ensure_ascii=False)  # as Python spells it
    print(f"load it: transformers.AutoModelForCausalLM.from_pretrained({where})")
    if bundle.chat is not None:
        print(f"chat with it: transformers.AutoTokenizer.from_pretrained({where}).apply_chat_template(...)")
    return 0


def _gguf(argv: list[str]) -> int:
    from groundling.export.gguf import MAX_ENDS, export_gguf, is_export
    from groundling.export.gguf_vocabulary import is_composing

    chosen = config.parse(Config, argv, "groundling export gguf", "Export a GGUF file for llama.cpp and Ollama.")
    bundle = _load_language_model(chosen, is_export)
    atomic.make_folder(chosen.out.parent)
    export_gguf(bundle, chosen.out)
    print(f"{chosen.out}: GGUF, {_summary(bundle)}")
    jinja = " --jinja" if bundle.chat is not None else ""
    print(f"run it: llama-cli -m {shlex.quote(str(chosen.out))}{jinja}")
    for id in bundle.end_ids[MAX_ENDS:]:
        name = bundle.tokenizer.piece(id)
        print(f"a GGUF file holds at most {MAX_ENDS} end tokens: llama.cpp may continue after {name!r}")
    if bundle.tokenizer.kind == "bpe" and is_composing(bundle.tokenizer.to_json()["tokenizers"]):
        print("its tokenizer normalises text to NFC and llama.cpp does not: only text in NFC gets the same tokens")
    return 0


def _bundle(argv: list[str]) -> int:
    chosen = config.parse(Config, argv, "groundling export bundle", "Export a self-contained bundle.")
    bundle = _load(chosen, looks_like_bundle)
    head = find_bundle(chosen.path, chosen.checkpoint) / HEAD
    save_bundle(
        chosen.out,
        bundle.model,
        bundle.tokenizer,
        None,
        bundle.chat,
        read_tensors(head) if os.path.lexists(head) else None,
    )
    print(f"{chosen.out}: {_summary(bundle)}")
    return 0


def _load_language_model(chosen: Config, may_replace: Callable[[Path], bool]) -> Bundle:
    """Load a bundle of a model that generates text.

    Raises:
        ConfigError: it is a reward model, whose head no other program supports.
    """
    bundle = _load(chosen, may_replace)
    require_language_model(find_bundle(chosen.path, chosen.checkpoint))
    return bundle


def _load(chosen: Config, may_replace: Callable[[Path], bool]) -> Bundle:
    """Load the bundle after checking the output path.

    Raises:
        StorageError: the output path exists and must not be replaced.
        CheckpointError: there is no bundle, or it is damaged.
    """
    if chosen.out.exists() or chosen.out.is_symlink():
        if not chosen.overwrite:
            raise StorageError(f"{chosen.out} exists; choose another name, or --overwrite to replace an earlier export")
        if not may_replace(chosen.out):
            raise StorageError(f"{chosen.out} is not an earlier export, and was left alone; choose another name")
        for source in (Path(chosen.path), find_bundle(chosen.path, chosen.checkpoint)):
            atomic.require_apart(source, chosen.out)
    return load_bundle(chosen.path, checkpoint=chosen.checkpoint, context=chosen.context)


def _summary(bundle: Bundle) -> str:
    n_parameters, tokenizer = bundle.model.n_parameters(), bundle.tokenizer
    return f"{n_parameters:,} parameters, the {tokenizer.kind} tokenizer with {tokenizer.vocab_size:,} ids"
