"""Resuming a run: whether to resume, and which settings may have changed."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from groundling.config import differences, with_new_defaults
from groundling.errors import CheckpointError, ConfigError
from groundling.system import distributed
from groundling.train import run_folder
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.settings import MAY_CHANGE, PretrainConfig

COMMAND_SETTINGS = ("out_dir", "resume", "overwrite")
"""Settings of the command, not of the run; their changes are not reported."""
MAX_LISTED = 20
"""Settings named in one error message."""
LOST_RANK_ADVICE = (
    "the checkpoints are intact: resume with --resume if-present, which torchrun --max-restarts 1 then does by itself"
)


class Resumable(Protocol):
    """The config of a run that can be resumed."""

    @property
    def out_dir(self) -> Path:
        """The run folder."""

    @property
    def resume(self) -> bool | Literal["if-present"]:
        """Whether to resume; "if-present": resume if there is a checkpoint, else start a new run."""


R = TypeVar("R", bound=Resumable)


def resolve_resume(config: R) -> R:
    """Resolve `resume="if-present"` to true or false. All ranks call this together and get the first rank's answer.

    Start a new run, and remove the folder's contents, if it holds neither a checkpoint nor a model. Never remove a
    damaged checkpoint, or a model without checkpoints.
    """
    if config.resume != "if-present":
        return config
    starts = distributed.any_rank(distributed.is_first() and run_folder.has_nothing_to_lose(config.out_dir))
    return dataclasses.replace(config, resume=not starts, overwrite=starts)  # type: ignore[type-var]


def require_same_run(
    config: PretrainConfig, plain: dict[str, Any], record: dict[str, Any], data_fingerprint: str
) -> list[str]:
    """Check a config against the checkpoint to resume from; return the allowed changes, as `name: old -> new`.

    Args:
        config: of the resumed run.
        plain: the same as data, with the size of the vocabulary filled in.
        record: `state.json` of the checkpoint.
        data_fingerprint: of the text and the teachers.

    Raises:
        ConfigError: the checkpoint has more steps than the config.
        CheckpointError: a setting differs that may not, or the data.
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
    """The settings in which a resumed run differs from the original, as `name: old -> new`.

    Args:
        config_class: of both.
        earlier: the config in a checkpoint or a summary, as `to_dict` made it.
        now: of the resumed run.
        may_change: the settings that may differ.

    Returns:
        The differences except in `COMMAND_SETTINGS`; and those not in `may_change`, as one text ("": none).
    """
    lines = differences(with_new_defaults(config_class, earlier), now)
    refused = [line for line in lines if not _is_about(line, may_change)]
    more = [f"and {len(refused) - MAX_LISTED:,} more"] if len(refused) > MAX_LISTED else []
    return [line for line in lines if not _is_about(line, COMMAND_SETTINGS)], "; ".join([*refused[:MAX_LISTED], *more])


def retry_command(config: PretrainConfig) -> str:
    """The command that resumes a run, or starts it again, at a tenth of its learning rates."""
    where = shlex.quote(str(config.out_dir))
    return f"groundling pretrain --resume if-present --out-dir {where} {lower_rates(config)}"


def lower_rates(config: Any) -> str:
    """Flags that set a tenth of the learning rates a config uses."""
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
    """Whether a line of `differences` names one of these settings, or one nested in them."""
    return line.startswith(tuple(f"{name}{end}" for name in names for end in (":", ".")))
