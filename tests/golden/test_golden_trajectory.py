"""Twenty steps of a tiny GPT, against the losses that are kept beside this file.

A change that is meant to change them: UPDATE_GOLDEN=1 python -m pytest tests/golden, and say why in the commit.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from groundling.data.batches import Batches
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer
from groundling.train.distill.objective import DistillationObjective, FadeTeacher
from groundling.train.distill.table import TeacherConfig, learn
from groundling.train.loop import Callback, train
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.optim.schedule import ScheduleConfig
from groundling.train.state import TrainState
from groundling.train.step import Objective

GOLDEN = Path(__file__).with_name("trajectory.json")
N_STEPS = 20


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_step(self, state, stats) -> None:
        self.seen.append(stats.loss)


ALPHABET = CharTokenizer("abcdefghijklm")
PLAIN = {"norm": "rmsnorm", "mlp": "swiglu"}
ALL_OF_IT = PLAIN | {"position": "rotary", "qk_norm": True, "bias": False, "tie_weights": False, "dropout": 0.1}
KINDS = {"adamw": ("adamw", PLAIN, 0.0), "muon": ("muon", PLAIN, 0.0), "taught": ("muon", ALL_OF_IT, 0.5)}
"""Name -> optimizer, model, the teacher's weight."""


def trajectory(optimizer: str, choices: dict, teacher_weight: float) -> list[float]:
    """The losses of twenty steps on numbers with a rule in them, two micro-batches a step, the gradient clipped."""
    places = np.arange(3000)
    tokens = ((places**2 // 7 + places) % 13).astype(np.uint16)
    torch.manual_seed(1337)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=13, **choices))
    teacher = learn(tokens, ALPHABET, TeacherConfig(order=3), [], torch.device("cpu")) if teacher_weight else None
    batches = Batches(
        tokens, block_size=16, batch_size=8, micro_batch_size=4, order="epochs", seed=1337, teacher=teacher
    )
    optimizers = Optimizers(model, OptimConfig(kind=optimizer, lr=1e-2))
    schedule = ScheduleConfig(warmup_steps=3)
    objective = DistillationObjective(model, teacher_weight) if teacher_weight else Objective(model)
    losses = Losses()
    fade = [FadeTeacher(objective, schedule, N_STEPS)] if teacher_weight else []
    train(
        TrainState(model, objective, optimizers, batches),
        n_steps=N_STEPS,
        schedule=schedule,
        max_norm=1.0,
        callbacks=[*fade, losses],
    )
    return losses.seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_twenty_steps_match_the_stored_ones(kind):
    losses = trajectory(*KINDS[kind])
    assert losses[-1] < losses[0] - 0.1, "a trajectory that learns nothing keeps nothing"
    kept = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        kept[kind] = [round(loss, 6) for loss in losses]
        GOLDEN.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    assert len(kept[kind]) == N_STEPS
    assert losses == pytest.approx(kept[kind], rel=1e-4), "see the top of this file if the change is meant"
