"""Row 13: a run's folder belongs to one process at a time; a second one is told which, and changes nothing."""

import os

import pytest

from groundling.errors import CheckpointError, DataError
from groundling.train import run_folder


@pytest.mark.slow
@pytest.mark.parametrize("flag", [{}, {"resume": True}, {"overwrite": True}], ids=["new", "resume", "overwrite"])
def test_a_second_process_is_refused_with_the_first_ones_number(
    tiny, tmp_path, flag, wait_for, steps_recorded, snapshot
):
    run = tmp_path / "run"
    first = tiny.start(tiny.config(run, steps=100_000, eval_every=None, save_every=None))
    wait_for(lambda: steps_recorded(run) >= 2, first)
    with pytest.raises(CheckpointError, match=rf"is being used by another process \(pid {first.pid}\)"):
        tiny.pretrain(run, **flag)
    before = steps_recorded(run)
    wait_for(lambda: steps_recorded(run) > before, first)  # the first one goes on
    with pytest.raises(CheckpointError, match=rf"pid {first.pid}"):  # and is still named after a refusal
        tiny.pretrain(run, **flag)
    assert set(snapshot(run)) >= {"run.toml", "env.json", "metrics.jsonl"}


@pytest.mark.slow
def test_the_lock_falls_with_its_process(tiny, tmp_path, wait_for, steps_recorded):
    """kill -9 leaves the files of the lock, and nobody has to remove them."""
    run = tmp_path / "run"
    first = tiny.start(tiny.config(run, steps=100_000, save_every=5, eval_every=None))
    wait_for(lambda: steps_recorded(run) >= 12, first)
    first.kill()
    first.wait()
    assert (run / ".lock.pid").exists()
    done = steps_recorded(run)
    summary = tiny.pretrain(run, resume=True, steps=done + 5, eval_every=None)
    assert summary.figures["steps"] == done + 5


def test_the_holder_is_named_while_it_holds(tmp_path):
    with run_folder.locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock.pid").read_text(encoding="utf-8") == f"{os.getpid()}\n"
        with pytest.raises(CheckpointError, match=rf"pid {os.getpid()}\); wait for it, or choose another --out-dir"):
            run_folder.locked(tmp_path / "run").__enter__()
        assert (tmp_path / "run" / ".lock.pid").exists(), "a refusal does not take the name away"
    assert not (tmp_path / "run" / ".lock.pid").exists()
    with run_folder.locked(tmp_path / "run"):
        pass


def test_an_error_in_the_run_frees_the_folder(tmp_path):
    with pytest.raises(RuntimeError, match="oh"), run_folder.locked(tmp_path):
        raise RuntimeError("oh")
    with run_folder.locked(tmp_path):
        pass


def test_a_refused_run_leaves_no_folder_that_it_made(tiny, tmp_path):
    with pytest.raises(DataError, match="there is no text at"):
        tiny.pretrain(tmp_path / "new", data={"path": str(tmp_path / "none.txt")})
    assert not (tmp_path / "new").exists()


def test_a_folder_that_was_there_or_is_used_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "used"):
        with run_folder.locked(tmp_path / name):
            if name == "used":
                (tmp_path / name / "file").touch()
    assert (tmp_path / "mine").is_dir()
    assert (tmp_path / "used" / "file").is_file()
