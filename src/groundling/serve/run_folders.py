"""Which training runs there are: folders with records, under names that a client may say.

The names come from a scan of a bounded size that follows no links. A client's word is looked up among them, and never
becomes a path.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundling.serve.curves import last_values

METRICS, LADDER = "metrics.jsonl", "ladder.json"
DEEPEST = 4
MOST_FOLDERS = 3000
MOST_RUNS = 500
MOST_JSON = 1 << 20
CLOSED = ("checkpoints", "bundle", "bundle.previous", "tensorboard")
"""Folders of a run in which no other run lies."""


@dataclass(frozen=True)
class RunFolder:
    """A run, and the models of it that are served."""

    name: str
    path: Path
    served: tuple[str, ...] = ()


def find_runs(root: Path, served: Mapping[str, Path]) -> dict[str, RunFolder]:
    """All runs by name: those under `root` by their way from there, other served ones as `served:NAME`.

    Args:
        root: the folder of runs; it may be missing.
        served: the places of the served models.
    """
    names_at: dict[Path, list[str]] = {}
    for name, path in served.items():
        place = path.resolve()
        names_at.setdefault(place.parent if place.name == "bundle" else place, []).append(name)
    found = {}
    for path in _folders(root):
        name = path.relative_to(root).as_posix()
        found[name] = RunFolder(name, path, tuple(names_at.pop(path.resolve(), ())))
    for path, names in names_at.items():
        if _has_records(path):
            found[f"served:{names[0]}"] = RunFolder(f"served:{names[0]}", path, tuple(names))
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _folders(root: Path) -> list[Path]:
    """Folders with records below a folder, the higher ones first."""
    level, n_seen = [root], 0
    found: list[Path] = []
    for _ in range(DEEPEST):
        below = []
        for folder in level:
            try:
                inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
            except OSError:  # not there, or not ours to read
                continue
            for name in inside:
                if name.startswith(".") or name in CLOSED or not _is_sayable(name):
                    continue
                n_seen += 1
                if n_seen > MOST_FOLDERS or len(found) >= MOST_RUNS:
                    return found
                below.append(folder / name)
                if _has_records(folder / name):
                    found.append(folder / name)
        level = below
    return found


def _has_records(path: Path) -> bool:
    return any((path / name).is_file() and not (path / name).is_symlink() for name in (METRICS, LADDER))


def _is_sayable(name: str) -> bool:
    return name.isprintable() and len(name) <= 200 and not any("\ud800" <= sign <= "\udfff" for sign in name)


def _natural(name: str) -> list[tuple[int, str]]:
    """ppo-2 before ppo-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,15})", name)]


def describe(run: RunFolder) -> dict[str, Any]:
    """What a list says of a run: what it is, how far it has come, and whether it goes on."""
    summary, environment = _read_json(run.path / "summary.json"), _read_json(run.path / "env.json")
    has_metrics = (run.path / METRICS).is_file()
    last = last_values(run.path / METRICS) if has_metrics else {}
    ended = summary.get("ended") or summary.get("reason")
    if not has_metrics:
        state = "ended"
    elif _is_held(run.path):
        state = "live"
    else:
        state = "ended" if summary else "broken off"
    return {
        "name": run.name,
        "kind": str(environment.get("stage") or "pretrain")[:40] if has_metrics else "ladder",
        "has_ladder": (run.path / LADDER).is_file(),
        "served": list(run.served),
        "state": state,
        "ended": str(ended)[:200] if ended and state == "ended" else None,
        "step": last.pop("step", None),
        "last": dict(list(last.items())[:50]),
    }


def ladder_of(run: RunFolder) -> list[dict[str, Any]]:
    """The rungs of a ladder that was climbed; none where there is no ladder."""
    rungs = _read_json(run.path / LADDER).get("rungs")
    kinds: dict[str, type | tuple[type, ...]] = {"rung": str, "adds": str, "sample": str, "parameters": int}
    numbers = ("val_loss", "val_loss_random_batches", "lecture_val_loss", "seconds")
    found = []
    for rung in rungs[:100] if isinstance(rungs, list) else ():
        if isinstance(rung, dict) and isinstance(rung.get("rung"), str):
            row = {name: rung[name] for name, kind in kinds.items() if isinstance(rung.get(name), kind)}
            row |= {name: rung[name] if isinstance(rung.get(name), (int, float)) else None for name in numbers}
            found.append({**row, "sample": str(row.get("sample", ""))[:4000]})
    return found


def _is_held(path: Path) -> bool:
    """Whether a process works on the run: the one that its lock names is alive.

    The lock itself is not tried: a run that begins at that moment would be refused.
    """
    try:
        pid = int((path / ".lock.pid").read_text(encoding="ascii")[:20])
        os.kill(pid, 0)
    except PermissionError:  # another user's, and alive
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return pid > 0


def _read_json(path: Path) -> dict[str, Any]:
    """An object of a small file; empty if there is none."""
    try:
        if path.stat().st_size > MOST_JSON:
            return {}
        value = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
