"""Rewards by a reward model or a Python function."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from groundling.align.chat_vocab import reads_the_same
from groundling.align.logprobs import exchanges_of
from groundling.align.replies import Reply, Rewards
from groundling.align.reward.model import load_reward_model, scores_of
from groundling.bundle import ChatBundle
from groundling.bundle.adapter import base_at
from groundling.bundle.layout import HEAD
from groundling.errors import ConfigError
from groundling.storage.manifest import read_manifest
from groundling.system.runtime import Runtime
from groundling.text.chat.reading import last_words


def make_rewards(name: str, bundle: ChatBundle, picked: Runtime) -> Rewards:
    """Make the rewards named by a setting: a reward model's folder, or MODULE:FUNCTION.

    Raises:
        ConfigError: there is no such function, or the reward model's vocabulary or context does not fit the policy.
        CheckpointError: there is no reward model, or it is damaged.
    """
    if is_function(name):
        return from_function(_imported(name), bundle, name)
    model, theirs = load_reward_model(name, picked.device)
    if not reads_the_same(theirs, bundle):
        raise ConfigError(
            f"the reward model {name} has another chat template or tokenizer than the policy, or a shorter context"
        )
    return lambda replies: scores_of(model, exchanges_of(replies), picked.autocast)


def reward_fingerprint(name: str) -> str:
    """Hash of the weights and head of a reward model; of a function, its name.

    Raises:
        CheckpointError: there is no reward model, or it is damaged.
    """
    if is_function(name):
        return name
    base = base_at(name)
    return f"{base.sha256} {read_manifest(base.folder)['files'].get(HEAD)}"


def is_function(name: str) -> bool:
    """Whether a setting names a function (MODULE:FUNCTION) instead of a folder."""
    return ":" in name and "/" not in name


def from_function(
    function: Callable[[str, str], float], bundle: ChatBundle, name: str = "the reward function"
) -> Rewards:
    """Rewards by a function of the last user message and the reply, both as text.

    The rewards raise ConfigError if the function fails or does not return a finite number.
    """

    def rewards(replies: Sequence[Reply]) -> list[float]:
        values = []
        for reply in replies:
            prompt = last_words(reply.prompt, "user", bundle.chat, bundle.tokenizer)
            try:
                value: Any = function(prompt, reply.text)
            except Exception as error:
                raise ConfigError(
                    f"{name} failed on the reply {reply.text!r}: {type(error).__name__}: {error}; "
                    "GROUNDLING_TRACEBACK=1 shows where"
                ) from error
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{name} gave {value!r} for {reply.text!r}; it must be a finite number")
            values.append(float(value))
        return values

    return rewards


def _imported(name: str) -> Callable[[str, str], float]:
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # installed commands do not search the current folder
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"there is no reward function {name}: {error}; give MODULE:FUNCTION") from error
    if not callable(function):
        raise ConfigError(f"{name} is a {type(function).__name__}, not a function of (prompt, reply)")
    return function  # type: ignore[no-any-return]
