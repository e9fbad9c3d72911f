"""Delayed: which gradient is applied at which step, what waits, and what it shares."""

import functools
import io
import math
import random

import pytest
import torch
from torch import nn

from offbeat.encoding import decode, encode
from offbeat.methods import SGD
from offbeat.optim import LAMB, Delayed, NormalDelay
from offbeat.parameters import Layout
from offbeat.runtime.capture import OptimizerState
from offbeat.stepping import ParameterOptimizer
from offbeat.testing import simulated, small_experiment

OPTIMIZERS = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": functools.partial(torch.optim.Adam, lr=0.01),
    "LAMB": functools.partial(LAMB, lr=0.01),
}


def weights(value=0.0):
    return [nn.Parameter(torch.full((3, 2), value)), nn.Parameter(torch.full((2,), value))]


def gradient(step: int):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(3, 2, generator=generator), torch.randn(2, generator=generator)]


def feed(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        for parameter, value in zip(params, gradient(step), strict=True):
            parameter.grad = value
        optimizer.step()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Spy(torch.optim.SGD):
    """Notes the gradients that it is given."""

    def __init__(self, params):
        super().__init__(params, lr=1.0)
        self.seen = []

    def step(self, closure=None):
        assert closure is None
        self.seen.append(self.param_groups[0]["params"][0].grad.item())


def applied(delay, steps: int, seed: int = 0) -> list[list[float]]:
    """The numbers of the gradients that each step applies."""
    x = nn.Parameter(torch.zeros(()))
    spy = Spy([x])
    optimizer = Delayed(spy, delay, seed=seed)
    result = []
    for step in range(steps):
        x.grad = torch.tensor(float(step))
        before = len(spy.seen)
        optimizer.step()
        result.append(spy.seen[before:])
    return result


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_delay_zero_is_the_bare_optimizer_to_the_bit(name: str):
    bare, wrapped = weights(0.5), weights(0.5)
    feed(OPTIMIZERS[name](bare), bare, 5)
    feed(optimizer := Delayed(OPTIMIZERS[name](wrapped), 0), wrapped, 5)
    assert same(bare, wrapped)
    assert optimizer.pending == 0


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_constant_delay_is_the_bare_optimizer_some_steps_later(name: str, delay: int):
    # What is fed does not depend on the parameters, so only the time differs: momentum, bias
    # corrections and decay begin with the first gradient that is applied.
    bare, wrapped = weights(0.5), weights(0.5)
    optimizer = Delayed(OPTIMIZERS[name](wrapped), delay)
    feed(optimizer, wrapped, delay)
    assert same(wrapped, weights(0.5))
    feed(optimizer, wrapped, 4, first=delay)
    feed(OPTIMIZERS[name](bare), bare, 4)
    assert same(bare, wrapped)
    assert optimizer.pending == delay


def test_a_gradient_is_applied_exactly_its_delay_later():
    assert applied(0, 4) == [[0], [1], [2], [3]]
    assert applied(1, 4) == [[], [0], [1], [2]]
    assert applied(3, 5) == [[], [], [], [0], [1]]


def test_none_overtakes_another_and_several_may_be_due():
    late = [2, 0, 0, 3, 1, 0, 0]
    # 1 and 2 wait for 0; 4 and 5 for 3, which is due at step 6.
    assert applied(lambda step, rng: late[step], 7) == [[], [], [0, 1, 2], [], [], [], [3, 4, 5, 6]]


def test_it_is_late_gradient_descent_to_the_bit():
    lr, curvature, delay = 0.3, 1.7, 2
    x = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Delayed(torch.optim.SGD([x], lr=lr), delay)
    iterates = [x.detach().clone()]
    for k in range(12):
        optimizer.zero_grad()
        (curvature / 2 * x.square()).sum().backward()
        optimizer.step()
        late = curvature * iterates[k - delay] if k >= delay else torch.zeros(2)
        iterates.append(iterates[-1].add(late, alpha=-lr))
        assert torch.equal(x, iterates[-1])


@pytest.mark.parametrize("delay", [0, 1, 4, 8])
def test_the_largest_stable_rate_is_the_known_one(delay: int):
    # x_{k+1} = x_k - a x_{k-d} is stable just if a < 2 sin(pi / (4 d + 2)).
    limit = 2 * math.sin(math.pi / (4 * delay + 2))
    for lr, stable in ((0.95 * limit, True), (1.05 * limit, False)):
        x = nn.Parameter(torch.ones((), dtype=torch.float64))
        optimizer = Delayed(torch.optim.SGD([x], lr=lr), delay)
        for _ in range(2000):
            x.grad = x.detach().clone()
            optimizer.step()
        assert (abs(x.item()) < 1) == stable


def test_random_delays_are_those_of_the_seed():
    delay = NormalDelay(mean=4, std=2)
    assert applied(delay, 60, seed=1) == applied(delay, 60, seed=1)
    assert applied(delay, 60, seed=1) != applied(delay, 60, seed=2)
    order = [number for numbers in applied(delay, 60) for number in numbers]
    assert order == list(range(len(order)))
    assert len(order) > 40


def test_normal_delays_are_normal_and_not_negative():
    rng = random.Random(0)
    drawn = torch.tensor([float(NormalDelay(mean=31, std=5)(k, rng)) for k in range(4000)])
    assert drawn.mean().item() == pytest.approx(31, abs=0.3)
    assert drawn.std().item() == pytest.approx(5, abs=0.3)
    assert {NormalDelay(mean=0, std=1)(k, rng) for k in range(200)} >= {0, 1}
    assert min(NormalDelay(mean=0, std=1)(k, rng) for k in range(200)) == 0
    assert applied(NormalDelay(mean=2, std=0), 5) == applied(2, 5)


def test_flush_applies_what_waits():
    bare, wrapped = weights(), weights()
    optimizer = Delayed(OPTIMIZERS["SGD"](wrapped), 3)
    feed(optimizer, wrapped, 7)
    assert optimizer.flush() == 3
    feed(OPTIMIZERS["SGD"](bare), bare, 7)
    assert same(bare, wrapped)
    assert (optimizer.pending, optimizer.flush()) == (0, 0)


def test_gradients_are_kept_as_they_were_and_the_present_ones_left():
    w = nn.Parameter(torch.zeros(2))
    optimizer = Delayed(torch.optim.SGD([w], lr=1.0), 1)
    w.grad = buffer = torch.ones(2)
    optimizer.step()
    buffer.fill_(10)  # As a loop does that keeps the memory of its gradients.
    optimizer.step()
    assert w.eq(-1).all()
    assert w.grad is buffer
    assert buffer.eq(10).all()
    optimizer.zero_grad(set_to_none=False)
    assert buffer.eq(0).all()
    optimizer.zero_grad()
    assert w.grad is None


def test_a_parameter_that_had_no_gradient_gets_none_late():
    w, v = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = Delayed(torch.optim.SGD([w, v], lr=1.0, momentum=0.9), 1)
    w.grad = torch.ones(2)
    optimizer.step()
    v.grad = torch.ones(2)
    optimizer.step()
    assert w.eq(-1).all()
    assert v.eq(0).all()
    assert v not in optimizer.state


def test_a_closure_is_called_once_a_step_and_its_gradient_comes_late():
    x, calls = nn.Parameter(torch.tensor(1.0)), []
    optimizer = Delayed(torch.optim.SGD([x], lr=0.5), 1)

    def closure():
        calls.append(x.item())
        optimizer.zero_grad()
        loss = x**2
        loss.backward()
        return loss

    assert [optimizer.step(closure).item() for _ in range(3)] == [1.0, 1.0, 0.0]
    assert calls == [1.0, 1.0, 0.0]  # x - 0.5 * 2 * 1, then twice as far as it should.
    assert x.item() == -1.0


def test_schedulers_and_new_groups_work_through_it():
    w, v = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = Delayed(torch.optim.SGD([w], lr=1.0), 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    w.grad = torch.ones(2)
    optimizer.step()
    scheduler.step()
    optimizer.add_param_group({"params": [v], "lr": 2.0})
    v.grad = torch.ones(2)
    optimizer.step()
    # The rate is that of the step that applies.
    assert w.eq(-0.5).all()
    assert v.eq(0).all()
    optimizer.step()
    assert v.eq(-2).all()
    assert optimizer.param_groups is optimizer.optimizer.param_groups


@pytest.mark.parametrize("delay", [3, NormalDelay(mean=3, std=2)])
def test_a_state_read_back_goes_on_to_the_bit(delay):
    whole = weights()
    optimizer = Delayed(OPTIMIZERS["Adam"](whole), delay, seed=5)
    feed(optimizer, whole, 6)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    again = [nn.Parameter(p.detach().clone()) for p in whole]
    other = Delayed(OPTIMIZERS["Adam"](again), delay, seed=7)
    other.load_state_dict(torch.load(saved))
    assert other.pending > 0
    for step in range(6, 14):
        feed(optimizer, whole, 1, first=step)
        feed(other, again, 1, first=step)
        assert same(whole, again)
        assert optimizer.pending == other.pending


def test_a_state_of_the_optimizer_inside_is_refused():
    optimizer = Delayed(torch.optim.SGD(weights(), lr=0.1), 2)
    with pytest.raises(ValueError, match="this is no state of a Delayed, but maybe of the opti"):
        optimizer.load_state_dict(optimizer.optimizer.state_dict())


@pytest.mark.parametrize(
    ("delay", "text"),
    [
        (-1, "delay is -1; it must be a number of steps, at least 0"),
        (lambda step, rng: 1.5, "delay is 1.5; it must be a number of steps"),
        (lambda step, rng: -2, "delay is -2; it must be a number of steps"),
    ],
)
def test_delays_that_cannot_be_are_refused(delay, text: str):
    with pytest.raises(ValueError, match=text):
        feed(Delayed(torch.optim.SGD(params := weights(), lr=0.1), delay), params, 1)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="Delayed wraps an optimizer"):
        Delayed(weights(), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="mean -1 and std 2 must not be negative"):
        NormalDelay(mean=-1, std=2)


# In offbeat


def delayed_sgd(params, delay: int = 4):
    return Delayed(torch.optim.SGD(params, lr=0.02, momentum=0.5), delay)


def test_in_a_simulation_delay_zero_is_the_bare_optimizer():
    bare = small_experiment(SGD(), workers=1, lr=0.02, momentum=0.5)
    none = small_experiment(SGD(), workers=1, optimizer=functools.partial(delayed_sgd, delay=0))
    late = small_experiment(SGD(), workers=1, optimizer=delayed_sgd)
    assert torch.equal(simulated(bare).vector, simulated(none).vector)
    assert not torch.equal(simulated(bare).vector, simulated(late).vector)


def test_captured_it_goes_on_to_the_bit():
    def on(vector):
        layout = Layout(("w", "b"), ((3, 2), (2,)))
        return ParameterOptimizer(vector, layout, lambda named: delayed_sgd([p for _, p in named]))

    flat = [torch.cat([g.reshape(-1) for g in gradient(k)]) for k in range(12)]
    whole = torch.zeros(8)
    optimizer = on(whole)
    for k in range(6):
        optimizer.step(flat[k], scale=1 / (1 + k))
    saved = encode(OptimizerState.of(optimizer))
    vector = whole.clone()
    again = on(vector)
    decode(saved).restore(again)
    for k in range(6, 12):
        optimizer.step(flat[k], scale=1 / (1 + k))
        again.step(flat[k], scale=1 / (1 + k))
    assert torch.equal(whole, vector)
    assert whole.ne(0).all()
