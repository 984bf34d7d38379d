"""Row 1: a crash or a kill -9 at any moment of a save leaves the old checkpoint or the new one, and resume is exact."""

import random
import shutil
import signal
import time

import pytest
import torch

from faultkit import crash_at
from groundling.errors import CheckpointError
from groundling.storage import atomic
from groundling.storage.manifest import check_manifest
from groundling.train.checkpoints.checkpoint import Checkpoints, restore
from groundling.train.run_folder import find_resumable
from groundling.train.step import train_step

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "training.safetensors",
    "state.json",
    "manifest.json",
)


def go_on(state):
    """One more step: what comes of weights, optimizer, data position and dropout together."""
    train_step(state.objective, state.batches.next_step(), state.optimizers)
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [None, 0.9], ids=["plain", "averaged"])
def test_a_crash_at_any_operation_of_a_save_leaves_the_old_or_the_new(tiny, tmp_path, decay):
    """Every single operation is tried, those of pruning too. What is found then goes on as the unbroken run does."""
    states = {step: tiny.state(step, decay=decay) for step in (5, 10)}
    base = Checkpoints(tmp_path / "base" / "checkpoints", keep=1)
    torch.manual_seed(1)
    tiny.save(base, states[5])
    dropout = torch.get_rng_state()
    truth = {}
    for step in (5, 10):
        torch.set_rng_state(dropout)
        truth[step] = go_on(tiny.state(step, decay=decay))
    seen = []
    number, crashed = 0, True
    while crashed:
        number += 1
        run = tmp_path / str(number)
        shutil.copytree(base.folder, run / "checkpoints")
        checkpoints = Checkpoints(run / "checkpoints", keep=1)
        torch.set_rng_state(dropout)
        crashed = crash_at(number, lambda checkpoints=checkpoints: tiny.save(checkpoints, states[10]))
        found, skipped = find_resumable(run)
        step = int(found.name.removeprefix("step-"))
        assert step in (5, 10)
        assert skipped == [], "nothing half-written has a checkpoint's name"
        assert not list(run.rglob(".tmp-*")), "what the crash left was swept"
        fresh = tiny.state(77, decay=decay)
        torch.manual_seed(99)
        restore(found, fresh)
        assert equal(go_on(fresh), truth[step])
        seen.append(step)
        torch.set_rng_state(dropout)
        tiny.save(checkpoints, states[10])  # the next save is not disturbed by what was left
        assert [path.name for path in checkpoints.finished()] == ["step-00000010"]
        shutil.rmtree(run)
    assert seen == sorted(seen), "once the new one is there, it stays"
    assert set(seen) == {5, 10}
    assert len(seen) > 40, "the sweep went through the whole save"


def test_a_first_save_that_crashes_leaves_nothing_to_resume_from(tiny, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert crash_at(20, lambda: tiny.save(checkpoints, tiny.state(5)))
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        find_resumable(tmp_path)


def test_the_order_of_operations_survives_a_power_cut(tiny, tmp_path):
    """Each file is on disk before its name, the manifest is the last file, the folder is synced before and after its
    rename, and nothing is removed before that. (A kill cannot show it: the page cache survives.)"""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    tiny.save(checkpoints, tiny.state(5))
    log = []
    atomic.observers.append(lambda operation, path: log.append((operation, path)))
    new = tiny.save(checkpoints, tiny.state(10))
    atomic.observers.clear()

    def index(operation, wanted):
        (found,) = [i for i, (o, path) in enumerate(log) if o == operation and wanted(path)]
        return found

    renamed = index("replace", lambda path: path == new)
    for name in FILES:
        temporary = [i for i, (_, path) in enumerate(log) if path.name.startswith(f".tmp-{name}-")]
        operations = [log[i][0] for i in temporary]
        assert operations[0] == "open"
        assert operations[-1] == "fsync"
        assert set(operations[1:-1]) == {"write"}
        named = index("replace", lambda path, name=name: path.name == name)
        assert temporary[-1] < named < renamed
        assert log[named + 1] == ("fsync_folder", log[named][1].parent)
    written = [path.name for o, path in log[:renamed] if o == "replace"]
    assert written[-1] == "manifest.json"
    synced = {path.name.split("-")[0] for o, path in log[:renamed] if o == "fsync_folder"}
    assert {"bundle", ".tmp"} <= synced
    assert log[renamed + 1] == ("fsync_folder", checkpoints.folder)
    removals = [i for i, (o, path) in enumerate(log) if o == "unlink" or "removed" in path.name]
    assert removals
    assert min(removals) > renamed + 1


# Real processes, really killed

KILL_POINTS = {
    "mid-file": ("write@step-00000010#3", "step-00000005"),
    "before the rename": ("replace@checkpoints/step-00000010", "step-00000005"),
    "in prune": ("unlink@removed-step-00000005#2", "step-00000010"),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", KILL_POINTS)
def test_a_killed_process_is_resumed_to_the_same_bytes(tiny, tmp_path, where, last_bytes):
    spec, left = KILL_POINTS[where]
    how = {"steps": 15, "eval_every": None, "keep_checkpoints": 1}
    tiny.pretrain(tmp_path / "unbroken", **how)
    config = tiny.config(tmp_path / "run", **how)
    killed = tiny.finish(config, env={"GROUNDLING_KILL_AT": spec})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "run" / "checkpoints").glob(".tmp-*"))
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").finished()] == [left]
    resumed = tiny.finish(config, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from {tmp_path / 'run' / 'checkpoints' / left}" in resumed.stderr
    assert last_bytes(tmp_path / "run") == last_bytes(tmp_path / "unbroken")
    assert not list((tmp_path / "run").rglob(".tmp-*"))


VARIANTS = {
    "muon": {"optim": {"kind": "muon"}},
    "averaged": {"average_decay": 0.9, "order": "random"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_again_and_again_at_random_moments(tiny, tmp_path, variant, last_bytes, losses):
    """kill -9 by the clock, wherever that meets the process; in the end the weights are those of an unbroken run."""
    how = {"steps": 150, "save_every": 2, "eval_every": 10, "schedule": {"kind": "cosine"}, **VARIANTS[variant]}
    tiny.pretrain(tmp_path / "unbroken", **how)
    config, run = tiny.config(tmp_path / "run", **how), tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoints")
    moments = random.Random(variant)
    kills = 0
    for _ in range(5):
        before = checkpoints.finished()[-1:]
        process = tiny.start(config, "--resume" if before else "--overwrite")
        until = time.monotonic() + 60
        while process.poll() is None and checkpoints.finished()[-1:] == before and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.25))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        for path in checkpoints.finished():
            check_manifest(path)
    assert kills >= 3, "the run was over too soon to be killed"
    last = tiny.finish(config, "--resume" if checkpoints.finished() else "--overwrite")
    assert last.returncode == 0, last.stderr
    assert last_bytes(run) == last_bytes(tmp_path / "unbroken")
    assert losses(run) == losses(tmp_path / "unbroken")
