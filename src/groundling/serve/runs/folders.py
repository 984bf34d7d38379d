"""Find training runs: folders with metrics.

A bounded scan that follows no links collects their names. Names from clients are looked up there, never used as paths.
"""

import heapq
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundling.bundle.layout import CHECKPOINTS
from groundling.serve.runs.curves import is_number, last_values, printable
from groundling.storage import atomic, files
from groundling.train.run_folder import holder_of, read_summary

METRICS, LADDER = "metrics.jsonl", "ladder.json"
DEEPEST = 4
MAX_FOLDERS = 3000
MAX_RUNS = 500
MAX_JSON = 1 << 20
TEXTS = {"rung": 100, "adds": 1000, "sample": 4000}
"""Text fields of a rung, and their maximum lengths."""
NUMBERS = ("parameters", "val_loss", "val_loss_random_batches", "lecture_val_loss", "seconds")
SKIPPED = (CHECKPOINTS, "bundle", "bundle.previous", "tensorboard")
"""Subfolders of a run that are not scanned."""


@dataclass(frozen=True)
class RunFolder:
    """A run, and the served models from it."""

    name: str
    path: Path
    served: tuple[str, ...] = ()


def find_runs(root: Path, served: Mapping[str, Path]) -> dict[str, RunFolder]:
    """All runs by name: the path relative to `root`, or `served:NAME` for served runs elsewhere.

    Args:
        root: the folder of runs; may be missing.
        served: paths of the served models by name.
    """
    names_at: dict[Path, list[str]] = {}
    for name, path in served.items():
        place = Path(os.path.realpath(path))  # terminates for cyclic links
        names_at.setdefault(place.parent if place.name == "bundle" else place, []).append(name)
    found = {}
    for path in _folders(root):
        name = path.relative_to(root).as_posix()
        found[name] = RunFolder(name, path, tuple(names_at.pop(Path(os.path.realpath(path)), ())))
    for path, names in names_at.items():
        if _has_records(path):
            found[f"served:{names[0]}"] = RunFolder(f"served:{names[0]}", path, tuple(names))
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _folders(root: Path) -> list[Path]:
    """Folders with metrics below a folder, breadth first."""
    level, n_seen = [root], 0
    found: list[Path] = []
    for _ in range(DEEPEST):
        below = []
        for folder in level:
            try:
                with os.scandir(folder) as listed:
                    names = (entry.name for entry in listed if entry.is_dir(follow_symlinks=False))
                    inside = heapq.nsmallest(MAX_FOLDERS + 1, names)
            except OSError:  # missing or not readable
                continue
            for name in inside:
                if name.startswith(".") or name in SKIPPED or not _is_printable(name):
                    continue
                n_seen += 1
                if n_seen > MAX_FOLDERS or len(found) >= MAX_RUNS:
                    return found
                below.append(folder / name)
                if _has_records(folder / name):
                    found.append(folder / name)
        level = below
    return found


def _has_records(path: Path) -> bool:
    return any(files.is_regular(path / name) for name in (METRICS, LADDER))


def _is_printable(name: str) -> bool:
    return name.isprintable() and len(name) <= 200 and not any("\ud800" <= char <= "\udfff" for char in name)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: ppo-2 before ppo-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,15})", name)]


def run_info(run: RunFolder) -> dict[str, Any]:
    """A run's entry in the list: kind, progress, and whether it is running."""
    summary, environment = read_summary(run.path), _read_json(run.path / "env.json")
    has_metrics = files.is_regular(run.path / METRICS)
    last = last_values(run.path / METRICS) if has_metrics else {}
    ended = summary.get("reason")
    if not has_metrics:
        state = "ended"
    elif _is_held(run.path):
        state = "live"
    else:
        state = "ended" if summary else "broken off"
    return {
        "name": run.name,
        "kind": printable(environment.get("stage") or "pretrain", 40) if has_metrics else "ladder",
        "has_ladder": files.is_regular(run.path / LADDER),
        "served": list(run.served),
        "state": state,
        "ended": printable(ended, 200) if ended and state == "ended" else None,
        "step": last.pop("step", None),
        "last": dict(list(last.items())[:50]),
    }


def ladder_of(run: RunFolder) -> list[dict[str, Any]]:
    """Results of the rungs of a ladder run; [] for other runs."""
    rungs = _read_json(run.path / LADDER).get("rungs")
    found = []
    for rung in rungs[:100] if isinstance(rungs, list) else ():
        if isinstance(rung, dict) and isinstance(rung.get("rung"), str):
            texts = {name: rung[name] for name in TEXTS if isinstance(rung.get(name), str)}
            row: dict[str, Any] = {"sample": ""} | {name: printable(text, TEXTS[name]) for name, text in texts.items()}
            row |= {name: rung[name] if is_number(rung.get(name)) else None for name in NUMBERS}
            found.append(row)
    return found


def _is_held(path: Path) -> bool:
    """Whether the process named in the run's lock is alive.

    Does not take the lock: a run that starts at that moment would be refused.
    """
    pid = holder_of(path)
    try:
        if pid is not None:
            os.kill(pid, 0)
    except PermissionError:  # alive, of another user
        return True
    except (OSError, OverflowError):
        return False
    return pid is not None


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; empty if there is none."""
    try:
        value = atomic.read_json(path, MAX_JSON)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
