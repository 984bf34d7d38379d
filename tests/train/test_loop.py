"""The loop: what is called when, when it ends, and where it goes on."""

import math

import numpy as np
import pytest
import torch

from groundling.data.batches import Batches
from groundling.errors import TrainingError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.loss import loss_sum
from groundling.train.loop import Callback, train
from groundling.train.optim.ema import WeightAverage
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import Progress, TrainState
from groundling.train.step import Objective

SCHEDULE = ScheduleConfig(kind="linear", warmup_steps=2, final_fraction=0.0)


def new_state(loss=loss_sum, average_decay: float | None = None) -> TrainState:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=6, vocab_size=5))
    batches = Batches(np.arange(200, dtype=np.uint16) % 5, block_size=6, batch_size=3)
    average = None if average_decay is None else WeightAverage(model, average_decay)
    return TrainState(model, Objective(model, loss), Optimizers(model, OptimConfig()), batches, average)


class Diary(Callback):
    """Writes down what it is told, and wants to stop after `last`."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.lines, self.factors = last, [], []

    def before_step(self, state) -> str | None:
        self.lines.append(f"before {state.progress.step}")
        state.model.eval()
        state.model.train()
        return "enough" if self.last is not None and state.progress.step >= self.last else None

    def after_step(self, state, stats) -> None:
        assert state.model.training
        self.lines.append(f"after {state.progress.step}")
        self.factors.append(stats.lr_factor)


def test_callbacks_run_before_each_update_and_after_the_last():
    diary, state = Diary(), new_state()
    assert train(state, n_steps=3, schedule=SCHEDULE, callbacks=[diary]) == "finished"
    assert diary.lines == ["before 0", "after 1", "before 1", "after 2", "before 2", "after 3", "before 3"]
    assert diary.factors == [SCHEDULE.factor(step, 3) for step in range(3)]
    assert state.progress.n_tokens == 3 * 3 * 6
    assert 0 < state.progress.train_s < 60


def test_a_callback_can_end_training_with_a_reason():
    diary, state = Diary(last=2), new_state()
    assert train(state, n_steps=9, schedule=SCHEDULE, callbacks=[diary]) == "enough"
    assert state.progress.step == 2
    assert diary.lines[-1] == "before 2"


class Ends(Diary):
    """Also notes how training ended."""

    def at_end(self, state, reason) -> None:
        self.lines.append(f"{reason} at {state.progress.step}")


def test_a_reason_skips_the_callbacks_after_it_and_all_are_called_at_the_end():
    """A checkpoint is written at the end also where the callback that saves comes later in the list."""
    first, later = Ends(last=1), Ends()
    assert train(new_state(), n_steps=9, schedule=SCHEDULE, callbacks=[first, later]) == "enough"
    assert first.lines == ["before 0", "after 1", "before 1", "enough at 1"]
    assert later.lines == ["before 0", "after 1", "enough at 1"]


def test_the_number_of_steps_counts_those_made_before():
    state = new_state()
    train(state, n_steps=3, schedule=SCHEDULE)
    diary = Diary()
    assert train(state, n_steps=5, schedule=SCHEDULE, callbacks=[diary]) == "finished"
    assert diary.lines == ["before 3", "after 4", "before 4", "after 5", "before 5"]
    assert train(state, n_steps=4, schedule=SCHEDULE) == "finished"
    assert state.progress.step == 5


def test_the_average_takes_in_each_update():
    state = new_state(average_decay=0.9)
    train(state, n_steps=4, schedule=SCHEDULE)
    assert state.average.n_updates == 4
    assert not torch.equal(state.average.mean["wte.weight"], state.model.wte.weight)


def test_a_loss_that_is_not_finite_ends_it_at_the_last_good_step():
    n_calls = 0

    def fails_at_the_third(logits_BTV, targets_BT):
        nonlocal n_calls
        n_calls += 1
        return loss_sum(logits_BTV, targets_BT) * (math.nan if n_calls == 3 else 1.0)

    state, expected = new_state(fails_at_the_third), new_state()
    with pytest.raises(TrainingError, match="nan"):
        train(state, n_steps=9, schedule=SCHEDULE)
    train(expected, n_steps=9, schedule=SCHEDULE, callbacks=[Diary(last=2)])
    assert state.progress.step == 2
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), expected.model.parameters(), strict=True))


def test_the_lowest_loss_is_remembered_with_its_step():
    progress = Progress()
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 2.5)):
        progress.step = step
        progress.record_evaluation(loss)
    assert (progress.best_val_loss, progress.best_step, progress.n_evals_since_best) == (2.0, 2, 2)
    assert (progress.val_loss, progress.evaluated_step) == (2.5, 4)
    progress.record_evaluation(1.0)
    assert (progress.best_val_loss, progress.best_step, progress.n_evals_since_best) == (1.0, 4, 0)


def test_a_nan_loss_is_never_the_best():
    progress = Progress(step=1)
    progress.record_evaluation(math.nan)
    assert (progress.best_val_loss, progress.best_step) == (math.inf, None)
