"""Row 8: asked to stop, by SIGTERM or Ctrl-C, at any moment: save, leave with 128 + the signal, and go on exactly."""

import os
import signal
import subprocess

import pytest

from groundling.system.metrics import read_records
from groundling.train.checkpoints.checkpoint import Checkpoints

SLOW_EVALUATION = {"steps": 8, "eval_every": 4, "save_every": None}
"""Half of a long text is validation: seconds, in which a signal has to be heard."""


@pytest.fixture
def long_text(tiny):
    tiny.text.write_text(tiny.text.read_text(encoding="utf-8") * 150, encoding="utf-8")
    return {"path": str(tiny.text), "val_fraction": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_after_a_few_steps_and_resumed(
    tiny, tmp_path, number, code, wait_for, steps_recorded, last_bytes, losses
):
    run, how = tmp_path / "run", {"steps": 400, "eval_every": 100, "save_every": 100}
    config = tiny.config(run, **how)
    process = tiny.start(config)
    wait_for(lambda: steps_recorded(run) >= 3, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert f"stopped as asked after {steps_recorded(run)} steps" in said
    (saved,) = Checkpoints(run / "checkpoints").finished()
    assert saved.name == f"step-{steps_recorded(run):08d}", "the step that was made is the step that is saved"
    assert steps_recorded(run) < 400
    assert not (run / "summary.json").exists(), "it does not look finished"
    resumed = tiny.finish(config, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    tiny.pretrain(tmp_path / "unbroken", **how)
    assert last_bytes(run) == last_bytes(tmp_path / "unbroken")
    assert losses(run) == losses(tmp_path / "unbroken")


@pytest.mark.slow
def test_stopped_in_an_evaluation(tiny, tmp_path, long_text, wait_for, steps_recorded, last_bytes, losses):
    run, how = tmp_path / "run", {**SLOW_EVALUATION, "data": long_text, "save_every": 4}
    config = tiny.config(run, **how)
    process = tiny.start(config)
    wait_for(lambda: steps_recorded(run) == 4, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143, said
    assert not [r for r in read_records(run / "metrics.jsonl") if "val_loss" in r], "the evaluation was given up"
    assert [path.name for path in Checkpoints(run / "checkpoints").finished()] == ["step-00000004"]
    resumed = tiny.finish(config, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    tiny.pretrain(tmp_path / "unbroken", **how)
    assert last_bytes(run) == last_bytes(tmp_path / "unbroken")
    assert losses(run) == losses(tmp_path / "unbroken"), "the evaluation was made up for"


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tiny, tmp_path, wait_for, steps_recorded):
    """Both are there before the process comes to itself again: there is no time for a save between them."""
    run = tmp_path / "run"
    process = tiny.start(tiny.config(run, steps=10_000, eval_every=None, save_every=None))
    wait_for(lambda: steps_recorded(run) >= 3, process)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.wait(timeout=60)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGINT)
    assert not Checkpoints(run / "checkpoints").finished()


@pytest.mark.slow
def test_a_signal_before_the_first_step_saves_nothing(tiny, tmp_path, long_text, wait_for):
    """The lock is taken before the text is prepared; from there on a signal is noted."""
    run = tmp_path / "run"
    config = tiny.config(run, data=long_text)
    process = tiny.start(config)
    wait_for((run / ".lock.pid").exists, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143, said
    assert said.endswith("stopped as asked before the first step; there is nothing to save, run it again\n")
    assert not Checkpoints(run / "checkpoints").finished()


def steps_of(run):
    return [path.name for path in Checkpoints(run / "checkpoints").finished()]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("whom", ["one rank", "torchrun"])
def test_two_ranks_stop_together(tiny, tmp_path, whom, wait_for, steps_recorded, last_bytes, losses):
    """The signal reaches one rank, or torchrun, which hands it on to all; both ranks save the same step."""
    run, how = tmp_path / "run", {"steps": 300, "eval_every": 100, "save_every": 100}
    whole = tiny.finish(tiny.config(tmp_path / "unbroken", **how), n_ranks=2)
    assert whole.returncode == 0, whole.stderr
    config = tiny.config(run, **how)
    process = tiny.start(config, n_ranks=2)
    wait_for(lambda: steps_recorded(run) >= 3, process)
    first = int((run / ".lock.pid").read_text(encoding="utf-8"))
    os.kill(first if whom == "one rank" else process.pid, signal.SIGTERM)
    try:
        _, said = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        pytest.fail("the ranks wait for each other")
    assert process.returncode != 0
    assert "stopped as asked" in said
    assert steps_of(run)[-1] == f"step-{steps_recorded(run):08d}"
    assert steps_recorded(run) < 300
    resumed = tiny.finish(config, "--resume", n_ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert last_bytes(run) == last_bytes(tmp_path / "unbroken")
    assert losses(run) == losses(tmp_path / "unbroken")
