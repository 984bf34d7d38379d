"""Groundling: a GPT from the ground up.

from groundling import generate, load_bundle
bundle = load_bundle("runs/speedrun")
print(generate(bundle, "ROMEO:"))

In reading order:

    cli.py      the command: one module a verb
    ladder/     the lecture, one rung a file
    model/      the production GPT
    text/       tokenizers and chat templates
    data/       text and conversations to batches
    bundle/     a model, its config and its tokenizer in one folder
    train/      train step, loop, pretrain
    evals/      losses, statistics
    sample/     sampling, the decoding engine
    align/      SFT, rankings, reward model, PPO, DPO, GRPO, report
    safety/     rules and a classifier for prompts and replies
    serve/      the HTTP server and its pages
    export/     Hugging Face, GGUF, nanoGPT
    tools/      doctor, plot, verify-checkpoint
    system/     device, memory, ranks, processes, logs, metrics
    config.py   defaults and presets
    flags.py    the command line
    storage/    files: safe, atomic, hashed, downloaded
    errors.py   errors a user can cause
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundling.bundle import Bundle, load_bundle
    from groundling.model.config import GPTConfig
    from groundling.model.gpt import GPT
    from groundling.sample.generate import generate, stream

__all__ = ["GPT", "Bundle", "GPTConfig", "generate", "load_bundle", "stream"]

# Imported on first access: `groundling --help` must not import torch.
_MODULES = {
    "Bundle": "groundling.bundle",
    "GPT": "groundling.model.gpt",
    "GPTConfig": "groundling.model.config",
    "generate": "groundling.sample.generate",
    "load_bundle": "groundling.bundle",
    "stream": "groundling.sample.generate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'groundling' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
