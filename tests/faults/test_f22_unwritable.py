"""Row 22: a folder that cannot be written to is noticed before any work; what is written has the modes of the umask."""

import os
import stat
from pathlib import Path

import pytest

from groundling.cli import main
from groundling.errors import StorageError
from groundling.storage import atomic
from groundling.train.checkpoints.checkpoint import Checkpoints


@pytest.fixture(params=["a file", "below a file", "in the kernel's own"])
def unwritable(request, tmp_path):
    """Nobody can make a folder here, not even root."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "run",
        "in the kernel's own": Path("/proc/groundling-run"),
    }[request.param]


def test_it_is_noticed_before_any_work(tiny, tmp_path, unwritable, capsys):
    """Before the text is looked at, too: it is not even there."""
    config = tiny.config(unwritable, data={"path": str(tmp_path / "no such text.txt")})
    verb, *rest = tiny.command(config)[3:]
    assert main([verb, *rest]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("groundling: error: cannot write ")
    assert str(unwritable) in said[0]
    assert said[0].endswith("choose a folder you can write to and run again")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_noticed(tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="no permission; choose a folder you can write to"):
        atomic.make_folder(tmp_path / "run")


def test_something_in_the_place_of_the_checkpoints_is_said(tiny, tmp_path):
    """A file where a folder should be, found at the first save: what is there stays."""
    run = tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoints")
    run.mkdir()
    (run / "checkpoints").write_text("mine", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cannot write .*checkpoints"):
        tiny.save(checkpoints, tiny.state(5))
    assert (run / "checkpoints").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
def test_modes_are_those_of_the_umask(tiny, tmp_path, mask, file_mode, folder_mode):
    """Not those of a temporary file, which only its owner may read."""
    run = tmp_path / "run"
    before = os.umask(mask)
    try:
        tiny.pretrain(run, steps=6)
    finally:
        os.umask(before)
    written = [path for path in run.rglob("*") if not path.name.startswith(".lock")]
    assert len(written) > 15
    wrong = {
        str(path.relative_to(run)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in written
        if stat.S_IMODE(path.stat().st_mode) != (folder_mode if path.is_dir() else file_mode)
    }
    assert wrong == {}


def test_a_run_behind_a_link_is_written_where_the_link_leads(tiny, tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large disk")
    tiny.pretrain(tmp_path / "run", steps=5)
    tiny.pretrain(tmp_path / "run", steps=10, resume=True)
    assert len(Checkpoints(tmp_path / "large disk" / "checkpoints").finished()) == 2
    assert (tmp_path / "run").is_symlink()


def test_overwriting_removes_a_link_and_not_what_it_leads_to(tiny, tmp_path):
    """The checkpoints had been put on another disk."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    tiny.pretrain(run, steps=5)
    (run / "checkpoints").rename(elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    tiny.pretrain(run, steps=3, overwrite=True)
    assert [path.name for path in Checkpoints(elsewhere).finished()] == ["step-00000005"]
    assert [path.name for path in Checkpoints(run / "checkpoints").finished()] == ["step-00000003"]
