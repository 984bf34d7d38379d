"""Row 10: no room for a checkpoint: the old one stays, nothing half-written stays, and one line says what to do."""

import errno
import os
import re
import resource
import shutil
import subprocess

import pytest

from groundling.cli import main
from groundling.errors import StorageError
from groundling.storage import atomic
from groundling.storage.manifest import check_manifest
from groundling.train.checkpoints.checkpoint import Checkpoints
from groundling.train.run_folder import find_resumable


def fail_at(number, operations=("write",), code=errno.ENOSPC):
    """From the n-th of these file operations on, the system refuses them."""
    seen = []

    def refuse(operation, path):
        if operation in operations:
            seen.append(path)
            if len(seen) >= number:
                raise OSError(code, os.strerror(code))

    atomic.observers[:] = [refuse]
    return seen


def message_of_save(tiny, checkpoints, state):
    """Why a save failed; empty when it did not."""
    try:
        tiny.save(checkpoints, state)
    except StorageError as error:
        return str(error)
    finally:
        atomic.observers.clear()
    return ""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_wherever_the_disk_is_full_the_old_checkpoint_stays(tiny, tmp_path, code):
    """Every write of a save is refused in turn."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    old = tiny.save(checkpoints, tiny.state(5))
    new, number = tiny.state(10), 1
    seen = fail_at(number, code=code)
    while message := message_of_save(tiny, checkpoints, new):
        assert "\n" not in message
        assert message.startswith("cannot write ")
        assert message.endswith("and run again")
        found, skipped = checkpoints.newest_good()
        assert skipped == []
        kept = [path.name for path in checkpoints.folder.iterdir() if path.name != "LATEST"]
        if found == old:
            assert kept == [old.name], "nothing half-written stays"
        else:  # only the hint for people was refused: the new one stands
            assert sorted(kept) == ["step-00000005", "step-00000010"]
            assert seen[-1].name.startswith(".tmp-LATEST")
            shutil.rmtree(found)
        number += 1
        seen = fail_at(number, code=code)
    assert number > 6
    assert [path.name for path in checkpoints.finished()] == ["step-00000010"]


@pytest.mark.parametrize("operation", ["open", "mkdir", "fsync", "fsync_folder", "replace"])
def test_whatever_is_refused_the_old_checkpoint_stays(tiny, tmp_path, operation):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    old = tiny.save(checkpoints, tiny.state(5))
    fail_at(1, (operation,))
    with pytest.raises(StorageError, match="the disk is full; free some room and run again"):
        tiny.save(checkpoints, tiny.state(10))
    assert checkpoints.newest_good() == (old, [])
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_record_that_cannot_be_written_ends_the_run_in_one_line(tiny, tmp_path, capsys):
    """The command's own exit code, and what was saved before."""
    config = tiny.config(tmp_path / "run")
    fail_at(8, ("append",))
    verb, *rest = tiny.command(config)[3:]
    assert main([verb, *rest]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("groundling: error: ")]
    assert len(error) == 1
    assert f"cannot write {tmp_path / 'run' / 'metrics.jsonl'}: the disk is full" in error[0]
    atomic.observers.clear()
    path, _ = find_resumable(tmp_path / "run")
    assert path.name == "step-00000005"


def test_room_is_looked_for_before_writing(tmp_path):
    atomic.require_room(tmp_path, 1000)
    with pytest.raises(StorageError, match=r"1,000,000,000\.0 MB are needed and [\d,.]+ MB are free; free some room"):
        atomic.require_room(tmp_path, 10**15)


@pytest.mark.slow
def test_a_process_that_may_not_write_so_much(tiny, tmp_path, last_bytes, monkeypatch):
    """A limit on the size of files, set by the system: the write fails as on a full disk, in a real process."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS")]:
        monkeypatch.delenv(name)  # the record of coverage is a large file too, and its failure would be shown
    run, how = tmp_path / "run", {"steps": 15}
    tiny.pretrain(tmp_path / "unbroken", **how)
    tiny.pretrain(run, steps=5)
    kept = last_bytes(run)
    config = tiny.config(run, **how)
    limit = 100_000
    assert len(kept["training.safetensors"]) > limit
    refused = tiny.finish(
        config, "--resume", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("groundling: error: cannot write ")
    assert "the file is larger than this process or file system allows" in refused.stderr.splitlines()[-1]
    assert last_bytes(run) == kept
    assert not list(run.rglob(".tmp-*"))
    resumed = tiny.finish(config, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert last_bytes(run) == last_bytes(tmp_path / "unbroken")


def may_mount() -> bool:
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare") or not may_mount(), reason="needs the right to mount a file system")
@pytest.mark.parametrize(
    ("size_kb", "said"),
    [(700, r"MB are needed and 0\.\d MB are free; free some room"), (300, "MB are free; free some room and run again")],
    ids=["for one", "for none"],
)
def test_a_disk_that_is_really_full(tiny, tmp_path, size_kb, said):
    """A file system of a few hundred KB, mounted for one process alone; a checkpoint takes 440 KB."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size={size_kb}k none {disk} || exit 77
        "$@"
        code=$?
        cp -r {disk} {copy}
        exit $code
    """
    command = tiny.command(tiny.config(disk / "run", steps=15))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("groundling: error: cannot write to ")
    assert re.search(said, last)
    found = Checkpoints(copy / "run" / "checkpoints").finished()
    assert [path.name for path in found] == (["step-00000005"] if size_kb == 700 else [])
    for path in found:
        check_manifest(path)
    assert not list(copy.rglob(".tmp-*"))
