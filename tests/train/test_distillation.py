"""The objective with a teacher: its loss, and a weight that fades with the learning rate."""

import dataclasses

import pytest
import torch

from groundling.data.batches import Batch
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.loss import distillation_loss_sum
from groundling.train.distill.objective import DistillationObjective, FadeTeacher
from groundling.train.loop import Callback, train
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import Progress, TrainState
from groundling.train.step import Objective

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=6, vocab_size=7)
SCHEDULE = ScheduleConfig(kind="linear", warmup_steps=0, final_fraction=0.0)


class Feed:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def next_step(self) -> list[Batch]:
        return [self.batch]


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).double()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    idx_BT, targets_BT = torch.randint(CONFIG.vocab_size, (2, 4, 6), generator=generator).unbind()
    teacher_probs_BTV = torch.rand(4, 6, CONFIG.vocab_size, generator=generator, dtype=torch.float64).softmax(-1)
    return Batch(idx_BT, targets_BT, 24, teacher_probs_BTV)


@pytest.mark.parametrize(("fades", "weight"), [(True, 0.2), (False, 0.8)])
def test_the_weight_of_a_step_follows_the_learning_rate_if_it_fades(model, batch, fades, weight):
    """From step 3 of 4 on, as in a resumed run: the learning rate is a quarter of the highest."""
    expected = distillation_loss_sum(model(batch.idx_BT), batch.targets_BT, batch.teacher_probs_BTV, weight).item()
    objective = DistillationObjective(model, 0.8)
    losses = []

    class Record(Callback):
        def after_step(self, state, stats) -> None:
            losses.append(stats.loss)

    fade = [FadeTeacher(objective, SCHEDULE, 4)] if fades else []
    optimizers = Optimizers(model, OptimConfig(lr=1e-30))
    state = TrainState(model, objective, optimizers, Feed(batch), progress=Progress(step=3))
    train(state, n_steps=4, schedule=SCHEDULE, callbacks=[*fade, Record()])
    assert losses == pytest.approx([expected / 24], rel=1e-12)


def test_without_a_teachers_distributions_the_loss_is_the_plain_one(model, batch):
    plain = dataclasses.replace(batch, teacher_probs_BTV=None)
    assert torch.equal(DistillationObjective(model, 0.8)(plain), Objective(model)(plain))
