"""The command line of `pretrain`: flags override a preset, and a preset overrides defaults."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from groundling.bundle.layout import read_config
from groundling.config import from_dict, load_preset, parse, read_toml
from groundling.errors import ConfigError
from groundling.train.settings import PretrainConfig

DEFAULT_PRESET = "shakespeare_char.toml"
C = TypeVar("C")


def parse_arguments(argv: Sequence[str]) -> PretrainConfig:
    """Read the config of a run.

    Without a preset on the command line, a resumed run takes its own run.toml, a run with `init_from` takes the
    bundle's model and defaults for the rest, and any other run takes `DEFAULT_PRESET`.

    Raises:
        ConfigError: as `groundling.config.parse`, or the first word is not a preset.
        CheckpointError: init_from names no bundle.
    """
    seen = peek(argv, PretrainConfig)
    first = argv[0] if argv and not argv[0].startswith("-") else None
    named = first if first is not None and first.endswith(".toml") else None
    if first is not None and named is None:
        raise ConfigError(f"{first} is not a preset, a TOML file; if it is a text, give --data.path before it")
    if named is None and seen.resume and (own := read_run_settings(PretrainConfig, seen.out_dir)) is not None:
        return parse(PretrainConfig, argv, "groundling pretrain", base=own)
    init_from = seen.init_from or (None if named is None else load_preset(named).get("init_from"))
    if init_from in (None, "", "None"):
        return parse(PretrainConfig, argv, "groundling pretrain", default_preset=DEFAULT_PRESET)
    base = PretrainConfig(init_from=str(init_from), model=read_config(str(init_from)))
    return parse(PretrainConfig, argv, "groundling pretrain", base=base)


def read_run_settings(config_class: type[C], run: Path) -> C | None:
    """Read a run's `run.toml`; None if there is no such file.

    Raises:
        ConfigError: the file cannot be read, or does not hold a config of this class.
    """
    file = run / "run.toml"
    if not os.path.lexists(file):
        return None
    values = read_toml(file)
    try:
        return from_dict(config_class, values)
    except ConfigError as error:
        raise ConfigError(f"preset {file}: {error}") from error


def peek(argv: Sequence[str], config_class: Any) -> argparse.Namespace:
    """Read only the flags that decide on presets and defaults: out_dir, resume, init_from."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--out-dir", "--out_dir", type=Path, default=config_class.out_dir)
    parser.add_argument("--resume", nargs="?", const=True, default=False, type=_resume)
    parser.add_argument("--init-from", "--init_from", default=None)
    try:
        return parser.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:  # a flag without its value: the real parser reports it
        return parser.parse_args([])


def _resume(word: str) -> bool | str:
    return {"True": True, "False": False}.get(word, word)
