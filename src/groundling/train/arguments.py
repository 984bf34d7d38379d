"""The command line of `pretrain`: which preset stands below the flags, and which defaults below the preset."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundling.bundle.layout import read_config
from groundling.config import from_dict, load_preset, parse, read_toml
from groundling.errors import ConfigError
from groundling.train.settings import PretrainConfig

DEFAULT_PRESET = "shakespeare_char.toml"


def parse_arguments(argv: Sequence[str]) -> PretrainConfig:
    """Read the config of a run.

    Without a preset on the command line, a run that is resumed takes its own settings, a run that begins with a bundle
    takes the bundle's model and else the defaults, and any other run takes `DEFAULT_PRESET`.

    Raises:
        ConfigError: as `groundling.config.parse`, or the first word is no preset.
        CheckpointError: init_from names no bundle.
    """
    seen = peek(argv, PretrainConfig)
    first = argv[0] if argv and not argv[0].startswith("-") else None
    named = first if first is not None and first.endswith(".toml") else None
    if first is not None and named is None:
        raise ConfigError(f"{first} is not a preset, a TOML file; if it is a text, give --data.path before it")
    own = seen.out_dir / "run.toml"
    if named is None and seen.resume and os.path.lexists(own):
        return parse(PretrainConfig, argv, "groundling pretrain", base=_own_settings(own))
    init_from = seen.init_from or (None if named is None else load_preset(named).get("init_from"))
    if init_from in (None, "", "None"):
        return parse(PretrainConfig, argv, "groundling pretrain", default_preset=DEFAULT_PRESET)
    base = PretrainConfig(init_from=str(init_from), model=read_config(str(init_from)))
    return parse(PretrainConfig, argv, "groundling pretrain", base=base)


def _own_settings(file: Path) -> PretrainConfig:
    """What a run's own preset says.

    Raises:
        ConfigError: it cannot be read.
    """
    values = read_toml(file)
    try:
        return from_dict(PretrainConfig, values)
    except ConfigError as error:
        raise ConfigError(f"preset {file}: {error}") from error


def peek(argv: Sequence[str], config_class: Any) -> argparse.Namespace:
    """What decides about presets and defaults (out_dir, resume, init_from); all else is left to the parser."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--out-dir", "--out_dir", type=Path, default=config_class.out_dir)
    parser.add_argument("--resume", nargs="?", const=True, default=False, type=_resume)
    parser.add_argument("--init-from", "--init_from", default=None)
    try:
        return parser.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:  # a flag without its value: the parser proper says so
        return parser.parse_args([])


def _resume(word: str) -> bool | str:
    return {"True": True, "False": False}.get(word, word)
