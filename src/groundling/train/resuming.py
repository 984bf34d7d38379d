"""Going on with a run: whether there is anything to go on with, and what may be other than it was."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from groundling.config import completed, differences
from groundling.errors import CheckpointError, ConfigError
from groundling.system import distributed
from groundling.train import run_folder
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.settings import MAY_CHANGE, PretrainConfig

NEVER_SAID = ("out_dir", "resume", "overwrite")
"""How a command was given, and not how a run is."""
MAX_SAID = 20
"""Settings that are named in one line."""
AFTER_A_LOST_RANK = (
    "what was saved is still there: go on from it with --resume if-present, "
    "with which torchrun --max-restarts 1 does so by itself"
)


class Resumable(Protocol):
    """The config of a run that can go on."""

    @property
    def out_dir(self) -> Path:
        """The run's folder."""

    @property
    def resume(self) -> bool | Literal["if-present"]:
        """Whether to go on."""


R = TypeVar("R", bound=Resumable)


def decided(config: R) -> R:
    """The config with `resume` true or false: "if-present" goes on with what is there, and else starts the run.

    All ranks call this together and get the first one's answer. What a run left that ended before its first checkpoint
    is removed when the new one begins. A damaged checkpoint, or a model without checkpoints, is no such thing.
    """
    if config.resume != "if-present":
        return config
    starts = distributed.any_rank(distributed.is_first() and run_folder.has_nothing_to_lose(config.out_dir))
    return dataclasses.replace(config, resume=not starts, overwrite=starts)  # type: ignore[type-var]


def require_same_run(
    config: PretrainConfig, plain: dict[str, Any], record: dict[str, Any], data_fingerprint: str
) -> list[str]:
    """Check a config against the checkpoint it would go on from; return what has changed, as `name: old -> new`.

    Args:
        config: of the run that goes on.
        plain: the same as data, with the size of the vocabulary filled in.
        record: `state.json` of the checkpoint.
        data_fingerprint: of the text and all else that is learned from.

    Raises:
        ConfigError: the run has made more steps than it now shall.
        CheckpointError: it would be another run.
    """
    changed, refused = changes(PretrainConfig, record["config"], plain, MAY_CHANGE)
    if refused:
        raise CheckpointError(
            f"{config.out_dir} was trained with other settings ({refused}); "
            "leave the preset and these flags out to take its own run.toml, or start a new run in another --out-dir"
        )
    if record["data_fingerprint"] != data_fingerprint:
        taught = " or a model that taught it" if config.teacher.models else ""
        raise CheckpointError(
            f"the text or its tokenizer{taught} is not the one that {config.out_dir} was trained on; "
            "resume with that one, or start a new run in another --out-dir"
        )
    reached = record["progress"]["step"]
    if config.steps < reached:
        raise ConfigError(
            f"steps is {config.steps}, and {config.out_dir} has made {reached} already; "
            f"give --steps {reached} or more, or start a new run in another --out-dir"
        )
    return changed


def changes(
    config_class: type, earlier: Mapping[str, Any], now: Mapping[str, Any], may_change: tuple[str, ...]
) -> tuple[list[str], str]:
    """The settings in which a run that goes on differs from what it was, as `name: old -> new`.

    Args:
        config_class: of both.
        earlier: what a checkpoint or a summary says, as `to_dict` made it.
        now: of the run that goes on.
        may_change: the settings that may, besides how a command is given.

    Returns:
        Those that may differ, but for how the command was given; and those that may not, as one text ("" for none).
    """
    lines = differences(completed(config_class, earlier), now)
    refused = [line for line in lines if not _is_about(line, may_change)]
    more = [f"and {len(refused) - MAX_SAID:,} more"] if len(refused) > MAX_SAID else []
    return [line for line in lines if not _is_about(line, NEVER_SAID)], "; ".join([*refused[:MAX_SAID], *more])


def way_on(config: PretrainConfig) -> str:
    """The command that goes on with a run at a tenth of its learning rates, whether or not it has a checkpoint."""
    where = shlex.quote(str(config.out_dir))
    return f"groundling pretrain --resume if-present --out-dir {where} {lower_rates(config)}"


def lower_rates(config: Any) -> str:
    """The flags that set a tenth of a config's learning rates that are in use."""
    flags = []
    for field in dataclasses.fields(config):
        optim = getattr(config, field.name)
        if isinstance(optim, OptimConfig):
            flag = f"--{field.name.replace('_', '-')}"
            flags.append(f"{flag}.lr {optim.lr / 10:.3g}")
            if optim.kind == "muon":
                flags.append(f"{flag}.muon-lr {optim.muon_lr / 10:.3g}")
    return " ".join(flags)


def _is_about(line: str, names: tuple[str, ...]) -> bool:
    """Whether a line of `differences` is about one of these settings, or one of those inside them."""
    return line.startswith(tuple(f"{name}{end}" for name in names for end in (":", ".")))
