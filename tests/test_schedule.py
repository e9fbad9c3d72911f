import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offbeat.methods import METHODS, SGD
from offbeat.schedule import Constant, Cosine, Schedule, Steps
from offbeat.testing import Quadratic, simulated, small_experiment


@pytest.mark.parametrize("samples", [0, 1, 10**9])
def test_constant_is_one(samples):
    assert Constant().factor(samples) == 1


def test_cosine_warms_up_in_a_line_and_falls_by_half_a_cosine():
    schedule = Cosine(total=110, warmup=10)
    assert [schedule.factor(s) for s in (0, 5, 10)] == [0, 0.5, 1]
    assert schedule.factor(60) == pytest.approx(0.5)
    assert schedule.factor(35) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert schedule.factor(110) == pytest.approx(0, abs=1e-15)
    assert schedule.factor(10**6) == pytest.approx(0, abs=1e-15)


@given(st.integers(0, 50), st.integers(51, 200), st.integers(0, 400))
def test_cosine_stays_between_zero_and_one(warmup, total, samples):
    assert 0 <= Cosine(total=total, warmup=warmup).factor(samples) <= 1


@pytest.mark.parametrize(("warmup", "total"), [(5, 5), (6, 5), (-1, 5), (0, 0)])
def test_cosine_refuses_a_warm_up_that_does_not_fit(warmup, total):
    with pytest.raises(
        ValueError, match=f"warmup {warmup} must be at least 0 and below .* {total}"
    ):
        Cosine(total=total, warmup=warmup)


def test_steps_multiply_at_each_milestone():
    schedule = Steps(milestones=(10, 20), gamma=0.5)
    assert [schedule.factor(s) for s in (0, 9, 10, 19, 20, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


class Recording(Schedule):
    """Notes the positions at which it is asked."""

    def __init__(self):
        self.asked = []

    def factor(self, samples):
        self.asked.append(samples)
        return 1.0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_to_the_same_position(name):
    # Samples applied, whether a server applies them one by one or peers all at once.
    schedule = Recording()
    method = METHODS[name]()
    simulated(small_experiment(method, workers=4, steps=10, schedule=schedule))
    batch = Quadratic().batch_size
    last = 39 * batch if method.server_count and not method.synchronous else 9 * 4 * batch
    # Free peers share the samples unevenly.
    low, high = (last, last) if method.server_count or method.synchronous else (last, 2 * last)
    if name in ("AccumulatedAsyncSGD", "SoftsyncSGD", "RennalaSGD", "BackupSyncSGD"):
        # A step is of three or four gradients; some of the last wait for others or are dropped.
        low, high = low - 9 * batch, high - 2 * batch
    assert low <= max(schedule.asked) <= high
    assert {s % batch for s in schedule.asked} == {0}


def test_the_learning_rate_follows_the_schedule():
    batch = Quadratic().batch_size
    full = simulated(small_experiment(SGD(), workers=1, steps=10))
    stopped = simulated(
        small_experiment(
            SGD(), workers=1, steps=30, schedule=Steps(milestones=(10 * batch,), gamma=0.0)
        )
    )
    assert torch.equal(full.vector, stopped.vector)
