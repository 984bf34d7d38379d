"""Resolve a path to text files: a file, all texts of a folder, or the matches of a glob; record what was skipped.

In a folder, file extensions are matched in any case, and links are followed. Nothing is read twice: a link to a folder
or file already visited is skipped, so a link to a parent folder does not loop.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from groundling.data import formats
from groundling.errors import DataError
from groundling.storage import files

ENDINGS = (".txt", ".md", *formats.PACKED)
"""Extensions taken from a folder, in any case."""
DEEP = "**"
"""In a glob: any number of folders, including none."""
MAX_ENDINGS = 6
"""Number of skipped file types to name, the most frequent first."""


@dataclass
class Found:
    """Files in a fixed order, and counts of what was skipped."""

    paths: list[Path] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    """Extensions of skipped files."""
    hidden: int = 0
    """Files and folders whose name starts with a dot."""
    again: int = 0
    """Links to files or folders already visited."""
    broken: int = 0
    """Broken links and special files."""
    unreadable: list[Path] = field(default_factory=list)
    """Folders without read permission."""
    folders: int = 0
    """Folders that a glob matches."""

    def skipped(self) -> str | None:
        """Describe what was skipped; None if nothing was."""
        common = [f"{n} {ending or 'without an ending'}" for ending, n in self.endings.most_common(MAX_ENDINGS)]
        more = ", ..." if len(self.endings) > MAX_ENDINGS else ""
        n_others = self.endings.total()
        others = _counted(n_others, "file") + f" that {_are(n_others)} not text by name ({', '.join(common)}{more})"
        parts = [
            (n_others, others),
            (self.hidden, f"{self.hidden} hidden"),
            (self.again, f"{_counted(self.again, 'link')} to what is read already"),
            (self.broken, f"{_counted(self.broken, 'broken link')} or special file{'' if self.broken == 1 else 's'}"),
            (self.folders, f"{_counted(self.folders, 'folder')} (give ** to look into folders)"),
            (len(self.unreadable), "without permission: " + ", ".join(map(str, self.unreadable[:3]))),
        ]
        return "; ".join(words for number, words in parts if number) or None


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def find_files(path: str) -> Found:
    """Return the text files of a path: a file, all files of a folder, or the matches of a glob, in a fixed order.

    Raises:
        DataError: there are none.
    """
    try:
        return _find(Path(path).expanduser(), path)
    except OSError as error:  # no permission, or the name is too long
        raise DataError(f"{str(error.filename or path)[:200]} cannot be read: {error.strerror}") from error


def _find(chosen: Path, path: str) -> Found:
    if chosen.is_dir():
        return _in_folder(chosen, path)
    if files.is_regular(chosen, links=True):
        return Found([chosen])
    if chosen.exists():
        raise DataError(f"{path} is not a file that can be read twice; save the text to a file first")
    found = _matching(str(chosen))
    if not found.paths:
        raise DataError(f"there is no text at {path!r}; give a file, a folder or a glob{_rest(found)}")
    return found


def _rest(found: Found) -> str:
    skipped = found.skipped()
    return f"; skipped: {skipped}" if skipped else ""


def _matching(pattern: str) -> Found:
    """Return the files a glob matches. Only `**` descends into folders, into each once."""
    found, seen = Found(), set[str]()
    for file in sorted(_glob(pattern, found.unreadable)):
        if files.is_regular(file, links=True):
            real = os.path.realpath(file)
            found.again += real in seen
            found.paths += [file] * (real not in seen)
            seen.add(real)
        elif file.is_dir() and DEEP not in Path(pattern).parts:
            found.folders += 1
    return found


def _glob(pattern: str, unreadable: list[Path]) -> Iterator[Path]:
    """Like `glob.glob`, but `**` does not follow circles of links, and a second `**` terminates."""
    parts = Path(pattern).parts
    if DEEP not in parts:
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207 - it takes absolute patterns, too
        return
    place = parts.index(DEEP)
    above, below = parts[:place], [part for part in parts[place + 1 :] if part != DEEP] or ["*"]
    for top in glob.glob(str(Path(*above))) if above else ["."]:  # noqa: PTH207
        for folder, _ in _Walk(Found(unreadable=unreadable)).folders(Path(top)):
            yield from map(Path, glob.glob(str(Path(glob.escape(str(folder)), *below))))  # noqa: PTH207


def _in_folder(folder: Path, path: str) -> Found:
    found = Found()
    _Walk(found).run(folder)
    if not found.paths:
        looked_for = f"looked for files ending in {', '.join(ENDINGS)}"
        raise DataError(f"the folder {path} holds no text; {looked_for}{_rest(found)}")
    found.paths.sort(key=lambda file: file.relative_to(folder).as_posix())
    return found


class _Walk:
    """Walks a folder: regular entries first, then links; visits each folder and linked file once."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._folders, self._files = set[tuple[int, int]](), set[tuple[int, int]]()

    def run(self, start: Path) -> None:
        """Classify all files."""
        linked: list[Path] = []
        for folder, entries in self.folders(start):
            for entry in entries:
                here = folder / entry.name
                if not files.is_regular(here, links=True):
                    self._found.broken += 1
                elif here.suffix.lower() not in ENDINGS or formats.is_other_by_name(here):
                    self._found.endings["".join(here.suffixes[-2:]).lower() or ""] += 1
                elif entry.is_symlink():
                    linked.append(here)
                else:
                    self._file(here, is_link=False)
        for file in linked:
            self._file(file, is_link=True)

    def folders(self, start: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
        """Yield each folder once, with its entries except folders and hidden files."""
        waiting, linked = [start], list[Path]()
        while waiting or linked:
            folder = waiting.pop() if waiting else linked.pop(0)
            if not self._is_new(folder, self._folders):
                self._found.again += 1
                continue
            try:
                with os.scandir(folder) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
                seen = [entry for entry in entries if not entry.name.startswith(".")]
                inside = {entry.name: entry for entry in seen if (folder / entry.name).is_dir()}
            except OSError:
                self._found.unreadable.append(folder)
                continue
            self._found.hidden += len(entries) - len(seen)
            for entry in inside.values():
                (linked if entry.is_symlink() else waiting).append(folder / entry.name)
            yield folder, [entry for entry in seen if entry.name not in inside]

    def _file(self, file: Path, is_link: bool) -> None:
        is_new = self._is_new(file, self._files)
        if is_new or not is_link:
            self._found.paths.append(file)
        else:
            self._found.again += 1

    @staticmethod
    def _is_new(path: Path, known: set[tuple[int, int]]) -> bool:
        stat = path.stat()
        key = (stat.st_dev, stat.st_ino)
        if key in known:
            return False
        known.add(key)
        return True
