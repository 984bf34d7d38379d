"""One step of `groundling chatgpt`: its config, inputs and output; whether it is done, and how it resumes."""

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from groundling.align.pipeline.command_line import changed_fields, to_argv
from groundling.align.preferences import simulate
from groundling.align.preferences.store import Rankings
from groundling.align.stage import StageConfig
from groundling.bundle.layout import CHECKPOINTS
from groundling.config import from_dict
from groundling.errors import CheckpointError, ConfigError
from groundling.storage import atomic
from groundling.system.signals import ASKED_TO_STOP
from groundling.train import run_folder
from groundling.train.arguments import read_run_settings
from groundling.train.checkpoints.folder import CheckpointFolder

C = TypeVar("C")
RANK = "rankings simulate"


@dataclass(frozen=True)
class PipelineStep(Generic[C]):
    """A verb with its config."""

    verb: str
    run: Callable[[C], int]
    """Runs the verb; returns its exit code."""
    config: C
    output: Path
    """The run folder or file that it writes."""
    inputs: tuple[Path, ...]
    """The run folders and files that it reads."""

    def trains(self) -> bool:
        """Whether it is a training stage, whose folder can hold checkpoints."""
        return isinstance(self.config, StageConfig)

    def config_to_run(self) -> C:
        """The config that resumes an interrupted training stage, or else overwrites it."""
        if not isinstance(self.config, StageConfig):
            return self.config
        if not self.has_good_checkpoint() or self.has_failed():
            return dataclasses.replace(self.config, overwrite=True)
        config = dataclasses.replace(self.config, resume=True)
        try:  # like `groundling VERB --resume`: settings that the recipe leaves at their defaults come from the run
            return from_dict(type(config), changed_fields(config), read_run_settings(type(config), self.output))
        except ConfigError:
            return config  # resuming checks the settings against the checkpoint

    def has_good_checkpoint(self) -> bool:
        """Whether its folder holds an intact checkpoint."""
        try:
            CheckpointFolder(self.output / CHECKPOINTS).newest_good()
        except CheckpointError:
            return False
        return True

    def forget(self) -> None:
        """Remove the files that mark a training stage as done or resumable, because its inputs will change.

        Raises:
            CheckpointError: another process uses its folder.
        """
        if not self.trains() or not self.output.is_dir():
            return
        with run_folder.locked(self.output):
            atomic.remove(self.output / run_folder.SUMMARY)
            atomic.remove(self.output / CHECKPOINTS)

    def has_failed(self) -> bool:
        """Whether its loss or gradient was not finite; resuming would fail again."""
        return bool(run_folder.read_summary(self.output).get("failed", False))

    def is_done(self) -> bool:
        """Whether its output is complete. The report is always made again."""
        if self.verb == RANK:
            return has_rankings(self.output) and not simulate.is_unfinished(self.output)
        if not self.trains():
            return False
        summary = run_folder.read_summary(self.output)
        return summary.get("reason") not in (None, ASKED_TO_STOP) and not summary.get("failed", True)

    def command(self) -> str:
        """The equivalent command line, to print."""
        return f"groundling {self.verb} {shlex.join(to_argv(self.config))}"


def has_rankings(file: Path) -> bool:
    """Whether the file holds at least one judgement."""
    if not file.is_file():
        return False
    with Rankings(file, must_exist=True) as rankings:
        return any(True for _ in rankings)
