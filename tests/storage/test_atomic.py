"""Files appear whole or not at all: the order of operations, a crash at each of them, and each reason in one line."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faultkit import crash_at
from groundling.errors import StorageError
from groundling.storage import atomic

OLD, NEW = b"old " * 10, b"new " * 50_000  # 200 kB: more than one piece


@pytest.fixture
def seen():
    """The operations so far, as (operation, path)."""
    log: list[tuple[str, Path]] = []
    observer = lambda operation, path: log.append((operation, path))  # noqa: E731
    atomic.observers.append(observer)
    yield log
    atomic.observers.remove(observer)


def crash_at_each(work: Callable[[], None], check: Callable[[], None]) -> int:
    """Do `work` again and again, crash at its first, second, ... operation, and `check`; return how many there are."""
    k = 1
    while crash_at(k, work):
        check()
        k += 1
    return k - 1


def test_a_file_is_written_synced_renamed_and_the_folder_synced(tmp_path, seen, monkeypatch):
    fsync, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(len(seen)) or fsync(descriptor))
    target = tmp_path / "f"
    atomic.write_bytes(target, NEW)
    assert target.read_bytes() == NEW
    operations = [operation for operation, _ in seen]
    assert operations == ["open", *["write"] * 4, "fsync", "replace", "fsync_folder"]
    assert synced == [6, 8], "what is announced has to be done"
    temporary = seen[0][1]
    assert temporary.name.startswith(atomic.TEMPORARY_PREFIX)
    assert temporary.parent == tmp_path, "a rename is atomic only within one file system"
    assert {path for operation, path in seen if operation in ("write", "fsync")} == {temporary}
    assert seen[-2:] == [("replace", target), ("fsync_folder", tmp_path)]


def test_a_crash_anywhere_leaves_the_old_file_or_the_new_one(tmp_path):
    target = tmp_path / "f"
    target.write_bytes(OLD)
    contents = []

    def check() -> None:
        contents.append(target.read_bytes())
        target.write_bytes(OLD)

    assert crash_at_each(lambda: atomic.write_bytes(target, NEW), check) == 8
    assert contents == [OLD] * 7 + [NEW]
    assert target.read_bytes() == NEW
    assert atomic.sweep_temporaries(tmp_path), "crashes leave temporary files behind"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "f"
    target.write_bytes(OLD)

    def write_and_fail() -> None:
        with atomic.open_atomic(target) as file:
            file.write(NEW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert target.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [target]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    """As /dev/null and /dev/stdout are for a user who may write there."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(StorageError, match="it is a device or a pipe; give the name of a file"):
            atomic.write_bytes(path, b"new")
        assert path.is_fifo()
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_a_folder_appears_when_it_is_whole(tmp_path, seen):
    target = tmp_path / "folder"
    with atomic.new_folder(target) as new:
        (new / "inner").mkdir()
        atomic.write_text(new / "inner" / "a", "ä\n")
        assert not target.exists()
    assert (target / "inner" / "a").read_text("utf-8") == "ä\n"
    renamed = seen.index(("replace", target))
    synced = {path.name for operation, path in seen[:renamed] if operation == "fsync_folder"}
    assert {"inner", new.name} <= synced, "the names in the folder have to be on disk before it gets its own"
    assert seen[renamed + 1] == ("fsync_folder", tmp_path)


def test_a_crash_anywhere_leaves_no_half_of_a_folder(tmp_path):
    def work() -> None:
        with atomic.new_folder(tmp_path / "folder") as new:
            atomic.write_text(new / "a", "1")
            atomic.write_text(new / "b", "2")

    def check() -> None:
        if (tmp_path / "folder").exists():
            assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["a", "b"]
            atomic.remove_tree(tmp_path / "folder")

    assert crash_at_each(work, check) > 10
    assert (tmp_path / "folder").exists()
    atomic.sweep_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_error_while_a_folder_is_filled_leaves_nothing(tmp_path):
    def fill_and_fail() -> None:
        with atomic.new_folder(tmp_path / "folder") as new:
            (new / "a").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_as_a_whole_or_not(tmp_path):
    folder = tmp_path / "folder"

    def fill() -> None:
        (folder / "inner").mkdir(parents=True, exist_ok=True)
        (folder / "inner" / "a").touch()
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to(tmp_path)

    def check() -> None:
        assert not folder.exists() or len(list(folder.rglob("*"))) == 3
        fill()

    fill()
    crash_at_each(lambda: atomic.remove_tree(folder), check)
    assert not folder.exists()
    atomic.sweep_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [], "what a link points to stays, and nothing else does"


def test_json_is_readable_and_text_is_utf_8(tmp_path):
    atomic.write_json(tmp_path / "j", {"é": [1, None]})
    assert (tmp_path / "j").read_bytes().decode("utf-8") == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    assert json.loads((tmp_path / "j").read_text("utf-8")) == {"é": [1, None]}


def test_a_header_can_be_written_last(tmp_path):
    with atomic.open_atomic(tmp_path / "f") as file:
        assert file.write(b"....rest") == 8
        assert file.seek(0) == 0
        file.write(memoryview(b"head"))
    assert (tmp_path / "f").read_bytes() == b"headrest"


def test_lines_are_appended(tmp_path, seen):
    for line in ("one", "zwei ü"):
        atomic.append_line(tmp_path / "f", line)
    assert (tmp_path / "f").read_text("utf-8") == "one\nzwei ü\n"
    assert [operation for operation, _ in seen] == ["append", "append"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full; free some room and run again"),
        (errno.EDQUOT, "the disk quota is used up; free some room"),
        (errno.EFBIG, "larger than this process or file system allows; choose a folder"),
        (errno.EACCES, "no permission; choose a folder you can write to"),
        (errno.EROFS, "the file system is read-only; choose a folder"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_each_reason_is_said_in_one_line(tmp_path, number, said):
    def fails(operation: str, path: Path) -> None:
        if operation == "write":
            raise OSError(number, os.strerror(number))

    (tmp_path / "f").write_bytes(OLD)
    atomic.observers.append(fails)
    try:
        with pytest.raises(StorageError, match=said) as refused:
            atomic.write_bytes(tmp_path / "f", NEW)
    finally:
        atomic.observers.remove(fails)
    assert str(tmp_path / "f") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (tmp_path / "f").read_bytes() == OLD
    assert len(list(tmp_path.iterdir())) == 1


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_a_real_limit_on_the_size_of_files(tmp_path):
    code = f"""
import resource, signal
from pathlib import Path
from groundling.storage import atomic
from groundling.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    atomic.write_bytes(Path({str(tmp_path / "f")!r}), bytes(200_000))
except StorageError as error:
    print(error)
"""
    done = in_a_process(code)
    assert "is larger than this process or file system allows" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_process_can_be_killed_at_an_operation_of_its_choice(tmp_path):
    code = f"""
from pathlib import Path
from groundling.storage import atomic
for name in ("a", "b", "b2"):
    atomic.write_text(Path({str(tmp_path)!r}) / name, "x")
"""
    done = in_a_process(code, GROUNDLING_KILL_AT="replace@/b#2")
    assert done.returncode == -signal.SIGKILL
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[1:] == ["a", "b"]
    assert names[0].startswith(".tmp-b2-")


def test_room_is_asked_for_before_a_large_write(tmp_path):
    atomic.require_room(tmp_path, 1)
    with pytest.raises(StorageError, match=r"1,000,000,000,000\.0 MB are needed and .* MB are free"):
        atomic.require_room(tmp_path, 10**18)


def test_a_folder_that_cannot_be_made(tmp_path):
    assert atomic.make_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == [], "the probe is taken away again"
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*file/inner"):
        atomic.make_folder(tmp_path / "file" / "inner")


def test_only_what_was_never_finished_is_swept(tmp_path):
    (tmp_path / ".tmp-a").mkdir()
    (tmp_path / ".tmp-a" / "x").touch()
    (tmp_path / ".tmp-b").touch()
    (tmp_path / "kept").touch()
    assert atomic.sweep_temporaries(tmp_path) == [".tmp-a", ".tmp-b"]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(NEW)
    assert atomic.sha256_of(tmp_path / "f") == hashlib.sha256(NEW).hexdigest()


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("GROUNDLING_CACHE", "~/mine")
    assert atomic.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("GROUNDLING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert atomic.cache_folder() == Path("/xdg/groundling")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert atomic.cache_folder() == Path.home() / ".cache" / "groundling"


def test_a_folder_is_made_while_another_process_sweeps_it(tmp_path, monkeypatch):
    """The probe that shows whether the folder can be written to is a temporary, and may be gone before we take it."""
    touch = Path.touch

    def swept_at_once(path: Path) -> None:
        touch(path)
        atomic.sweep_temporaries(tmp_path / "new")

    monkeypatch.setattr(Path, "touch", swept_at_once)
    assert atomic.make_folder(tmp_path / "new").is_dir()
