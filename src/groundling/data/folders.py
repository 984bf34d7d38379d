"""Which files a path means: a file, all texts of a folder, or what a glob matches; and what was passed over.

In a folder the case of an ending does not matter, and links are followed, but nothing is read twice: a link to a folder
or a file that is read already is passed over, and so a link to a folder above it ends no more than itself.
"""

import glob
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from groundling.data import formats
from groundling.errors import DataError

ENDINGS = (".txt", ".md", *formats.PACKED)
"""What is taken from a folder, in any case."""
MOST_ENDINGS = 6
"""So many kinds of files that were passed over are named, the commonest first."""


@dataclass
class Found:
    """The files, in a fixed order, and what else was there."""

    paths: list[Path] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    """Of files that were passed over because of their name's ending."""
    hidden: int = 0
    """Files and folders whose name begins with a dot."""
    again: int = 0
    """Links to what is read already."""
    broken: int = 0
    """Links to nothing, and what is neither file nor folder."""
    unreadable: list[Path] = field(default_factory=list)
    """Folders that may not be looked into."""

    def passed_over(self) -> str | None:
        """What was passed over, in words; None: nothing."""
        common = [f"{n} {ending or 'without an ending'}" for ending, n in self.endings.most_common(MOST_ENDINGS)]
        more = ", ..." if len(self.endings) > MOST_ENDINGS else ""
        n_others = self.endings.total()
        files = _counted(n_others, "file") + f" that {_are(n_others)} not text by name ({', '.join(common)}{more})"
        parts = [
            (n_others, files),
            (self.hidden, f"{self.hidden} hidden"),
            (self.again, f"{_counted(self.again, 'link')} to what is read already"),
            (self.broken, f"{_counted(self.broken, 'link')} to nothing"),
            (len(self.unreadable), "without permission: " + ", ".join(map(str, self.unreadable[:3]))),
        ]
        return "; ".join(words for number, words in parts if number) or None


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def find_files(path: str) -> Found:
    """Return the text files that a path means: a file, all of a folder, or what a glob matches; in a fixed order.

    Raises:
        DataError: there are none.
    """
    chosen = Path(path).expanduser()
    if chosen.is_dir():
        return _in_folder(chosen, path)
    if chosen.is_file():
        return Found([chosen])
    if chosen.exists():
        raise DataError(f"{path} is not a file that can be read twice; save the text to a file first")
    found, seen = Found(), set[str]()
    for match in sorted(glob.glob(str(chosen), recursive=True)):  # noqa: PTH207 - `**` and absolute patterns alike
        file = Path(match)
        if file.is_file():
            real = os.path.realpath(file)  # `**` goes round a circle of links many times
            found.again += real in seen
            found.paths += [file] * (real not in seen)
            seen.add(real)
    if not found.paths:
        raise DataError(f"there is no text at {path!r}; give a file, a folder or a glob")
    return found


def _in_folder(folder: Path, path: str) -> Found:
    found = Found()
    _Walk(folder, found).run()
    if not found.paths:
        passed_over = found.passed_over()
        rest = f"; passed over: {passed_over}" if passed_over else ""
        raise DataError(f"the folder {path} holds no text; looked for files ending in {', '.join(ENDINGS)}{rest}")
    found.paths.sort(key=lambda file: file.relative_to(folder).as_posix())
    return found


class _Walk:
    """Goes through a folder: first what lies in it, then what links lead to, each folder and linked file once."""

    def __init__(self, folder: Path, found: Found) -> None:
        self._start, self._found = folder, found
        self._folders, self._files = set[tuple[int, int]](), set[tuple[int, int]]()
        self._linked_folders: list[Path] = []
        self._linked_files: list[Path] = []

    def run(self) -> None:
        self._tree(self._start)
        while self._linked_folders:
            self._tree(self._linked_folders.pop(0))
        for file in self._linked_files:
            self._file(file, is_link=True)

    def _tree(self, top: Path) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            if not self._is_new(folder, self._folders):
                self._found.again += 1
                continue
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                self._found.unreadable.append(folder)
                continue
            for entry in entries:
                here = folder / entry.name
                if entry.name.startswith("."):
                    self._found.hidden += 1
                elif here.is_dir():
                    (self._linked_folders if entry.is_symlink() else waiting).append(here)
                elif not here.is_file():
                    self._found.broken += 1
                elif here.suffix.lower() not in ENDINGS or formats.is_other_by_name(here):
                    self._found.endings["".join(here.suffixes[-2:]).lower() or ""] += 1
                elif entry.is_symlink():
                    self._linked_files.append(here)
                else:
                    self._file(here, is_link=False)

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
