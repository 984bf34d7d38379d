"""The command line of a stage: a resumed stage uses its own settings unless flags override them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from groundling.align.stage import StageConfig
from groundling.config import parse
from groundling.errors import CheckpointError, ConfigError
from groundling.storage import atomic
from groundling.train.arguments import peek, read_run_settings

C = TypeVar("C", bound=StageConfig)


def parse_stage(config_class: type[C], argv: Sequence[str], prog: str) -> C:
    """Read the config of a stage. `groundling sft --resume --out-dir RUN` is enough to resume one.

    Raises:
        ConfigError: as `groundling.config.parse`, or the run's settings cannot be read.
        CheckpointError: the folder holds no run of this stage to resume.
    """
    seen = peek(argv, config_class)
    if not seen.resume or not os.path.lexists(seen.out_dir / "run.toml"):
        if seen.resume is True:
            raise CheckpointError(f"{seen.out_dir} holds no run to resume; start it without --resume")
        return parse(config_class, argv, prog)
    _require_stage(seen.out_dir, prog.split()[-1])
    try:
        base = read_run_settings(config_class, seen.out_dir)
    except ConfigError as error:
        try:
            return parse(config_class, argv, prog)  # the checkpoint tells whether these are the run's settings
        except ConfigError:
            raise ConfigError(f"{error}; give all settings of the run as flags") from error
    return parse(config_class, argv, prog, base=base)


def _require_stage(run: Path, name: str) -> None:
    try:
        stage = atomic.read_json(run / "env.json")["stage"]
    except (OSError, ValueError, LookupError, TypeError):  # its checkpoint is checked anyway
        return
    if stage != name:
        raise CheckpointError(f"{run} holds a run of {stage}; resume it with groundling {stage}")
