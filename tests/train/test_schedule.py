"""The learning rate's factor: its exact values at the corners, and what holds at every step."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.errors import ConfigError
from groundling.train.optim.schedule import ScheduleConfig

KINDS = ["cosine", "linear", "wsd", "constant"]


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_is_a_straight_line_to_the_top(kind):
    schedule = ScheduleConfig(kind=kind, warmup_steps=4)
    assert [schedule.factor(step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", {0: 1.0, 25: 0.2 + 0.8 * 0.853553, 50: 0.6, 75: 0.2 + 0.8 * 0.146447, 100: 0.2}),
        ("linear", {0: 1.0, 25: 0.8, 50: 0.6, 100: 0.2}),
        ("wsd", {0: 1.0, 50: 1.0, 75: 1.0, 80: 0.84, 100: 0.2}),
        ("constant", {0: 1.0, 50: 1.0, 100: 1.0}),
    ],
)
def test_the_shapes(kind, expected):
    schedule = ScheduleConfig(kind=kind, warmup_steps=0, final_fraction=0.2, decay_fraction=0.25)
    assert {step: schedule.factor(step, 100) for step in expected} == pytest.approx(expected, abs=1e-6)


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.integers(0, 30),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
    n_steps=st.integers(1, 60),
)
def test_it_warms_up_then_never_rises_and_stays_in_range(kind, warmup, final, decay, n_steps):
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, final_fraction=final, decay_fraction=decay)
    factors = [schedule.factor(step, n_steps) for step in range(n_steps)]
    rising, falling = factors[:warmup], factors[warmup:]
    assert all(a < b for a, b in pairwise(rising))
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert all(0 < factor < 1 for factor in rising)
    assert all(final - 1e-12 <= factor <= 1 for factor in falling)
    assert all(factor > 0 for factor in factors), "an update at rate 0 would be a step for nothing"
    if kind != "constant" and n_steps > warmup:
        assert schedule.factor(n_steps, n_steps) == pytest.approx(final)


@pytest.mark.parametrize(
    "bad", [{"warmup_steps": -1}, {"final_fraction": 1.1}, {"final_fraction": -0.1}, {"decay_fraction": 2.0}], ids=str
)
def test_invalid_settings_are_refused(bad):
    (name,) = bad
    with pytest.raises(ConfigError, match=name):
        ScheduleConfig(**bad)
