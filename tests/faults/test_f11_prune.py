"""Row 11: whatever is saved, measured, crashed and swept, the newest, the best and another run's checkpoint stay."""

import math
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from faultkit import crash_at
from groundling.storage import atomic
from groundling.storage.manifest import check_manifest
from groundling.train.checkpoints.checkpoint import Checkpoints

LOSSES = st.sampled_from([None, 1.0, 2.0, 3.0, math.nan, math.inf])


def worth(loss):
    return loss if loss is not None and math.isfinite(loss) else math.inf


class Saving(RuleBasedStateMachine):
    """A run that saves, and crashes now and then, in a folder where another run's checkpoints lie as well."""

    tiny = None

    @initialize(keep=st.integers(1, 3), theirs=st.sets(st.integers(1, 30), max_size=3))
    def begin(self, keep, theirs):
        self.folder = Path(tempfile.mkdtemp())
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep)
        self.theirs = {Checkpoints(self.folder / "checkpoints").path_of(2 * step) for step in theirs}
        for path in self.theirs:
            step = int(path.name.removeprefix("step-"))
            self.tiny.save(Checkpoints(path.parent, 99), self.tiny.state(step, 0.5), "theirs")
        self.step, self.losses = -1, {}

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def next_state(self, loss):
        self.step += 2  # theirs are even
        return self.tiny.state(self.step, loss)

    @rule(loss=LOSSES)
    def save(self, loss):
        path = self.tiny.save(self.checkpoints, self.next_state(loss))
        self.losses[path] = loss
        there = [path for path in self.checkpoints.finished() if path not in self.theirs]
        assert len(there) <= self.checkpoints.keep + 1, "old ones are removed"

    @rule(loss=LOSSES, at=st.integers(1, 75))
    def crash_in_a_save(self, loss, at):
        """Before, in, or after the new one; in pruning too. What the crash left is sometimes swept, sometimes not."""
        state = self.next_state(loss)
        target = self.checkpoints.path_of(self.step)
        crash_at(at, lambda: self.tiny.save(self.checkpoints, state))
        if target.exists():
            self.losses[target] = loss

    @precondition(lambda self: self.losses)
    @rule()
    def save_the_same_step_again(self):
        """As a resumed run does that has nothing left to do."""
        newest = max(self.losses)
        step = int(newest.name.removeprefix("step-"))
        self.tiny.save(self.checkpoints, self.tiny.state(step))

    @rule()
    def sweep(self):
        atomic.sweep_temporaries(self.checkpoints.folder) if self.checkpoints.folder.exists() else None

    @invariant()
    def what_matters_is_there_and_whole(self):
        there = set(self.checkpoints.finished())
        assert self.theirs <= there
        assert there <= self.theirs | set(self.losses)
        ours = sorted(self.losses)
        assert set(ours[-self.checkpoints.keep :]) <= there, "the newest"
        if ours:
            least = min(worth(loss) for loss in self.losses.values())
            best = ours[-1] if least == math.inf else next(path for path in ours if worth(self.losses[path]) == least)
            assert best in there, "the best, the earliest of equals"
            assert self.checkpoints.by_loss("ours")[0] == best
            assert self.checkpoints.newest_good() == (max(there), [])
        for path in there:
            check_manifest(path)


def run_machine(tiny, examples, steps):
    Saving.tiny = tiny
    # What is found is not shrunk: every step writes files, and a short story is short already.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    how = settings(max_examples=examples, stateful_step_count=steps, deadline=None, phases=phases)
    run_state_machine_as_test(Saving, settings=how)


def test_the_newest_the_best_and_theirs_always_stay(tiny):
    run_machine(tiny, examples=5, steps=6)


@pytest.mark.slow
def test_the_newest_the_best_and_theirs_always_stay_at_length(tiny):
    run_machine(tiny, examples=60, steps=15)


def test_old_ones_go_in_the_order_of_their_steps(tiny, tmp_path):
    """Where names are compared as text, step 100000000 comes before step 99999999."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (99_999_998, 99_999_999, 100_000_000):
        tiny.save(checkpoints, tiny.state(step))
    assert [path.name for path in checkpoints.finished()] == ["step-99999999", "step-100000000"]


def test_the_best_stays_when_it_is_old(tiny, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for step, loss in ((1, 3.0), (2, 1.5), (3, 2.0), (4, 1.5), (5, None)):
        tiny.save(checkpoints, tiny.state(step, loss))
    assert [path.name for path in checkpoints.finished()] == ["step-00000002", "step-00000005"]
