"""One command of `groundling chatgpt`: what it reads and writes, whether it is done, and how it goes on."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundling.align.checkpoint import CHECKPOINTS
from groundling.align.preferences import simulate
from groundling.align.preferences.store import Rankings
from groundling.errors import CheckpointError
from groundling.storage import atomic
from groundling.system.signals import ASKED_TO_STOP
from groundling.train import run_folder
from groundling.train.checkpoints.folder import CheckpointFolder

RANK = "rankings simulate"


@dataclass(frozen=True)
class Stage:
    """One command."""

    verb: str
    run: Callable[[Sequence[str]], int]
    argv: list[str]

    def output(self) -> str:
        """The path that it writes."""
        return _value(self.argv, "--rankings" if self.verb == RANK else "--out-dir")

    def needs(self, path: str) -> bool:
        """Whether it reads what another stage writes there."""
        return path in self.argv and path != self.output()

    def learns(self) -> bool:
        """Whether it is a training, with a folder that an interrupted one leaves behind."""
        return self.verb not in (RANK, "align-report")

    def way_on(self) -> list[str]:
        """The flags by which a stage that was interrupted goes on, or else begins anew."""
        if not self.learns():
            return []
        return ["--resume"] if self.has_good_checkpoint() and not self.has_failed() else ["--overwrite"]

    def has_good_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        try:
            CheckpointFolder(Path(self.output()) / CHECKPOINTS).newest_good()
        except CheckpointError:
            return False
        return True

    def forget(self) -> None:
        """Remove what marks it as done or resumable: its inputs are made again, and a kill may come before it is.

        Raises:
            CheckpointError: another process uses its folder.
        """
        run = Path(self.output())
        if not self.learns() or not run.is_dir():
            return
        with run_folder.locked(run):
            atomic.remove(run / run_folder.SUMMARY)
            atomic.remove(run / CHECKPOINTS)

    def has_failed(self) -> bool:
        """Whether it came to a loss that was not finite: going on would lead there again."""
        return bool(run_folder.read_summary(Path(self.output())).get("failed", False))

    def is_done(self) -> bool:
        """Whether it has left its result; the report is always made anew."""
        if self.verb == "align-report":
            return False
        if self.verb == RANK:
            file = Path(self.output())
            return has_rankings(file) and not simulate.is_unfinished(file)
        summary = run_folder.read_summary(Path(self.output()))
        return summary.get("reason") not in (None, ASKED_TO_STOP) and not summary.get("failed", True)

    def line(self) -> str:
        """As it is typed."""
        return f"groundling {self.verb} {shlex.join(self.argv)}"


def _value(argv: Sequence[str], flag: str) -> str:
    return argv[list(argv).index(flag) + 1]


def has_rankings(file: Path) -> bool:
    """Whether there is at least one."""
    if not file.is_file():
        return False
    with Rankings(file, must_exist=True) as rankings:
        return any(True for _ in rankings)
