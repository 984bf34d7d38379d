"""Row 23: a clock that jumps, or files whose times were lost in a copy, change nothing: only steps count."""

import os
import time

import pytest

from groundling.bundle.layout import find_bundle
from groundling.train.checkpoints.checkpoint import Checkpoints
from groundling.train.run_folder import find_resumable

TIMES = {
    "backwards": lambda step: 2_000_000_000 - step,
    "all the same": lambda step: 1_000_000_000,
    "before 1970": lambda step: -step,
    "in the far future": lambda step: 4_000_000_000 if step == 1 else step,
}


@pytest.fixture
def run(tiny, tmp_path, request):
    """Checkpoints of steps 1 to 4, the second the best, with the times of `request.param`."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0)):
        set_times(tiny.save(checkpoints, tiny.state(step, loss)), TIMES[request.param](step))
    return tmp_path


def set_times(folder, when):
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (when, when))


each_clock = pytest.mark.parametrize("run", TIMES, indirect=True)


@each_clock
def test_the_newest_is_the_one_of_the_highest_step(run):
    assert [path.name[-1] for path in Checkpoints(run / "checkpoints").finished()] == ["1", "2", "3", "4"]
    assert find_resumable(run)[0].name == "step-00000004"
    assert find_bundle(run, "last").parent.name == "step-00000004"
    assert find_bundle(run, "best").parent.name == "step-00000002"


@each_clock
def test_the_oldest_by_step_are_pruned(tiny, run):
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    set_times(tiny.save(checkpoints, tiny.state(5, 2.5)), 1)
    assert [path.name[-1] for path in checkpoints.finished()] == ["2", "4", "5"]


def test_a_clock_that_jumps_in_a_run_changes_nothing(tiny, tmp_path, monkeypatch, last_bytes):
    """The time of day goes back and forth by years at every look; durations are of a clock that cannot."""
    tiny.pretrain(tmp_path / "whole")
    start = time.perf_counter()
    jumps = iter([0.0, 2e9, -5.0, 1e9] * 100_000)
    monkeypatch.setattr("time.time", lambda: next(jumps))
    tiny.pretrain(tmp_path / "halves", steps=10)
    set_times(tmp_path / "halves", 0)
    summary = tiny.pretrain(tmp_path / "halves", resume=True)
    assert last_bytes(tmp_path / "halves") == last_bytes(tmp_path / "whole")
    assert 0 < summary.figures["train_s"] < summary.wall_s < time.perf_counter() - start


def test_each_call_has_a_clock_of_its_own(tiny, tmp_path):
    """However old the process is: a notebook trains more than once."""
    for name in ("first", "second"):
        start = time.perf_counter()
        summary = tiny.pretrain(tmp_path / name)
        assert 0 < summary.figures["train_s"] < summary.wall_s < time.perf_counter() - start
