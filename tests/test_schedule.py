import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offbeat.methods import METHODS, SGD
from offbeat.schedule import Constant, Cosine, Polynomial, Schedule, Steps, XuSchedule
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


@pytest.mark.parametrize("made", [Cosine, Polynomial])
@pytest.mark.parametrize(("warmup", "total"), [(5, 5), (6, 5), (-1, 5), (0, 0)])
def test_a_warm_up_that_does_not_fit_is_refused(made, warmup, total):
    with pytest.raises(
        ValueError, match=f"warmup {warmup} must be at least 0 and below .* {total}"
    ):
        made(total=total, warmup=warmup)


def test_polynomial_warms_up_in_a_line_and_falls_by_a_power():
    schedule = Polynomial(total=110, warmup=10)
    factors = [schedule.factor(s) for s in (0, 5, 10, 60, 85, 110, 10**6)]
    assert factors == [0, 0.5, 1, 0.5, 0.25, 0, 0]
    schedule = Polynomial(total=100, power=2)
    assert [schedule.factor(s) for s in (0, 50, 90)] == pytest.approx([1, 0.25, 0.01])


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_is_torch_s_own_in_a_plain_loop(power):
    steps, warmup, batch = 20, 5, 32
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    lr_scheduler = torch.optim.lr_scheduler
    after = lr_scheduler.PolynomialLR(optimizer, total_iters=steps - warmup, power=power)
    before = lr_scheduler.LinearLR(optimizer, start_factor=1e-12, total_iters=warmup)
    scheduler = lr_scheduler.SequentialLR(optimizer, [before, after], milestones=[warmup])
    schedule = Polynomial(total=steps * batch, warmup=warmup * batch, power=power)
    for step in range(steps):
        (rate,) = scheduler.get_last_lr()
        assert schedule.factor(step * batch) == pytest.approx(rate, abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_xu_s_schedule_is_its_formula():
    rate, a, c = 0.2, 0.05, 0.75  # gamma_t = gamma_0 (1 + a gamma_0 t)^-c
    schedule = XuSchedule(decay=a * rate, power=c)
    for t in (0, 1, 10, 10**6):
        assert rate * schedule.factor(t) == pytest.approx(rate * (1 + a * rate * t) ** -c)
    assert schedule.factor(0) == 1


@pytest.mark.parametrize(
    ("made", "settings", "text"),
    [
        (Polynomial, {"total": 5, "power": 0}, "power is 0; it must be positive"),
        (XuSchedule, {"decay": -1}, "decay is -1; it must not be negative"),
        (XuSchedule, {"decay": 1, "power": -0.5}, "power is -0.5; it must not be negative"),
    ],
)
def test_settings_that_cannot_be_are_refused(made, settings, text):
    with pytest.raises(ValueError, match=text):
        made(**settings)


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
    one_by_one = method.family == "parameter server" and not method.synchronous
    last = 39 * batch if one_by_one else 9 * 4 * batch
    # Free peers share the samples unevenly.
    low, high = (last, last) if one_by_one or method.synchronous else (last, 2 * last)
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
