"""The command line of a stage; a resumed stage defaults to its own settings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from groundling.align.stage import StageConfig
from groundling.config import from_dict, parse, read_toml
from groundling.errors import CheckpointError, ConfigError
from groundling.storage import atomic
from groundling.train.arguments import peek

C = TypeVar("C", bound=StageConfig)


def parse_stage(config_class: type[C], argv: Sequence[str], prog: str) -> C:
    """Parse the config of a stage. `groundling sft --resume --out-dir RUN` needs no further flags.

    Raises:
        ConfigError: as `groundling.config.parse`, or the settings in the folder are invalid.
        CheckpointError: there is no run to resume.
    """
    seen = peek(argv, config_class)
    own = seen.out_dir / "run.toml"
    if not seen.resume or not os.path.lexists(own):
        if seen.resume is True:
            raise CheckpointError(f"{seen.out_dir} holds no run to resume; start it without --resume")
        return parse(config_class, argv, prog)
    _require_stage(seen.out_dir, prog.split()[-1])
    try:
        base = from_dict(config_class, read_toml(own))
    except ConfigError as error:
        try:
            return parse(config_class, argv, prog)  # the checkpoint checks that they match the run
        except ConfigError:
            raise ConfigError(f"{own}: {error}; give all settings of the run as flags") from error
    return parse(config_class, argv, prog, base=base)


def _require_stage(run: Path, name: str) -> None:
    try:
        stage = atomic.read_json(run / "env.json")["stage"]
    except (OSError, ValueError, LookupError, TypeError):  # checked again with the checkpoint
        return
    if stage != name:
        raise CheckpointError(f"{run} holds a run of {stage}; go on with it by groundling {stage}")
