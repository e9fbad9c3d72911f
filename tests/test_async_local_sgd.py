"""Asynchronous Local SGD: delayed Nesterov momentum, dynamic local updates, and the whole."""

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.methods import SGD, AsyncLocalSGD
from offbeat.methods.async_local_sgd import LocalRun, Outer, delayed_nesterov, dynamic_steps
from offbeat.runtime.simulated import Simulation
from offbeat.testing import simulated, small_experiment
from test_theory import by_hand, close


def pushes(gradients, *, beta, period, activation=0.0, lr=1.0):
    """Where the server is after these pseudo-gradients, each (d,), from 0."""
    x = m = collected = torch.zeros_like(gradients[0])
    for t, g in enumerate(gradients):
        x, m, collected = delayed_nesterov(
            x, g, m, collected, due=(t + 1) % period == 0, lr=lr, beta=beta, period=period,
            activation=activation,
        )  # fmt: skip
    return x


def test_the_outer_step_by_its_formula():
    x, g, m, total = (torch.tensor([v]) for v in (1.0, 2.0, 4.0, 6.0))
    settings = {"lr": 0.5, "beta": 0.5, "period": 4, "activation": 0.25}
    between = delayed_nesterov(x, g, m, total, due=False, **settings)
    assert [t.item() for t in between] == [1 - 0.5 * (0.25 * 0.5 * 4 + 2 / 4), 4, 8]
    due = delayed_nesterov(x, g, m, total, due=True, **settings)
    momentum = 0.5 * 4 + 8 / 4
    weight = 1 - 0.25 * 4 + 0.25
    assert [t.item() for t in due] == [1 - 0.5 * (weight * 0.5 * momentum + 2 / 4), momentum, 0]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_nesterov_s_momentum_grows_with_simultaneous_pushes_and_delayed_nesterov_s_does_not(beta):
    g = torch.tensor([1.0, -2.0], dtype=torch.double)
    blown_up = 4 + 4 * beta + 3 * beta**2 + 2 * beta**3 + beta**4
    close(pushes([g] * 4, beta=beta, period=1), -blown_up * g)
    # Four changes of one place are one change: a step of Nesterov's momentum along their mean.
    close(pushes([g] * 4, beta=beta, period=4), -(1 + beta) * g)
    close(pushes([g], beta=beta, period=1), -(1 + beta) * g)


@pytest.mark.parametrize("activation", [0.0, 0.1, 0.25])
def test_the_momentum_s_share_is_one_in_every_period(activation):
    # Whatever is spent between is missing from the step where momentum changes.
    zero, m = torch.zeros(1, dtype=torch.double), torch.ones(1, dtype=torch.double)
    x, total = zero, zero
    for t in range(4):
        x, m, total = delayed_nesterov(
            x, zero, m / (0.9 if t == 3 else 1), total, due=t == 3, lr=1.0, beta=0.9, period=4,
            activation=activation,
        )  # fmt: skip
    close(x, torch.tensor([-0.9], dtype=torch.double))


def test_a_period_of_one_is_torch_s_nesterov_and_without_momentum_sgd():
    gradients = list(torch.randn(6, 3, dtype=torch.double))
    for beta in (0.0, 0.8):
        x = torch.nn.Parameter(torch.zeros(3, dtype=torch.double))
        sgd = torch.optim.SGD([x], lr=0.3, momentum=beta, nesterov=beta > 0)
        for g in gradients:
            x.grad = g
            sgd.step()
        close(pushes(gradients, beta=beta, period=1, lr=0.3), x.detach())


def test_dynamic_steps_by_their_formula():
    seconds = [0.01, 0.01 * 1.5, 0.02, 0.03, 0.04, 1.0]
    assert [dynamic_steps(s, 0.01, 8) for s in seconds] == [8, 5, 4, 2, 2, 1]
    assert [dynamic_steps(k * 0.1, 0.1, 60) for k in (1, 2, 3, 4, 5, 6)] == [60, 30, 20, 15, 12, 10]
    assert dynamic_steps(0.0, 0.0, 8) == 8


def quick(slow, **settings):
    return Cluster(
        workers=len(slow), compute=Constant(seconds=0.01), latency=1e-7, bandwidth=float("inf"),
        slow=dict(enumerate(slow)), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize(
    ("period", "activation", "dynamic"),
    [(None, 0.0, True), (None, 0.0, False), (1, 0.0, False), (2, 0.3, True)],
)
def test_it_is_its_pseudocode(period, activation, dynamic, servers):
    H, n, lr, beta, slow = 5, 3, 0.02, 0.6, [1.0, 1.37, 2.21]
    method = AsyncLocalSGD(
        local_steps=H, outer_lr=0.7, outer_momentum=beta, momentum_period=period,
        momentum_activation=activation, dynamic=dynamic, servers=servers,
    )  # fmt: skip
    experiment = small_experiment(
        method, workers=n, steps=60, lr=lr, momentum=0.5, cluster=quick(slow)
    )
    run = simulated(experiment)
    gradient, ended = by_hand(experiment), run.trace.gradients
    N, theta = period or n, torch.zeros(8, dtype=torch.double)
    m, total, arrivals, spoken = torch.zeros_like(theta), torch.zeros_like(theta), 0, set()
    x, v, start, t = [theta] * n, [theta] * n, [theta] * n, [0] * n
    left, steps = [H] * n, [H] * n
    for row in ended[ended["end_ns"].argsort()]:
        i = int(row["node"])
        v[i] = 0.5 * v[i] + gradient(x[i], i, t[i])  # Momentum stays with its worker.
        x[i] = x[i] - lr * v[i]
        t[i] += 1
        left[i] -= 1
        if left[i]:
            continue
        g, arrivals = start[i] - x[i], arrivals + 1
        total = total + g
        if arrivals % N == 0:
            m = beta * m + total / N
            theta = theta - 0.7 * ((1 - activation * N + activation) * beta * m + g / N)
            total = torch.zeros_like(theta)
        else:
            theta = theta - 0.7 * (activation * beta * m + g / N)
        spoken.add(i)
        if dynamic:
            steps[i] = int(min(slow[j] for j in spoken) / slow[i] * H)
        x[i], start[i], left[i] = theta, theta, steps[i]
    assert arrivals > 20
    assert steps == ([5, 3, 2] if dynamic else [5, 5, 5])
    close(run.vector, theta)


def test_a_worker_s_speed_is_that_of_its_steps_without_its_messages():
    # Messages take longer than steps, and differ from worker to worker.
    cluster = Cluster(workers=2, compute=Constant(seconds=0.01), latency=0.05, slow={1: 2.0})
    simulation = Simulation(small_experiment(AsyncLocalSGD(), workers=2, cluster=cluster))
    assert simulation.run().error is None
    seconds = simulation.nodes[2].state(Outer).seconds
    assert seconds == pytest.approx({0: 0.01, 1: 0.02}, abs=1e-6)
    assert [simulation.nodes[rank].state(LocalRun).steps for rank in (0, 1)] == [8, 4]


def test_the_slow_make_full_runs_again_when_the_fast_one_is_gone():
    cluster = quick([1.0, 4.0, 4.0], faults=(Fault(kind="crash", rank=0, at=1.0),))
    simulation = Simulation(small_experiment(AsyncLocalSGD(), workers=3, steps=60, cluster=cluster))
    seen = {}
    step = simulation.step

    def watching():
        more = step()
        for node in simulation.nodes:
            if node.rank == 1:
                seen[simulation.clock.now / 1e9 > 1.0] = node.state(LocalRun).steps
        return more

    simulation.step = watching
    assert simulation.run().error is None
    assert seen == {False: 2, True: 8}


@pytest.mark.parametrize("servers", [1, 2])
def test_one_worker_of_one_step_with_plain_outer_sgd_is_serial_sgd(servers):
    method = AsyncLocalSGD(local_steps=1, outer_lr=1.0, outer_momentum=0.0, servers=servers)
    run, serial = (
        simulated(small_experiment(m, workers=1, momentum=0.9, lr=0.02)) for m in (method, SGD())
    )
    close(run.vector, serial.vector)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"local_steps": 0}, "local_steps is 0; it must be at least 1"),
        ({"outer_momentum": 1.0}, "outer_momentum is 1; it must be from 0 to below 1"),
        ({"momentum_period": 0}, "momentum_period is 0; it must be at least 1"),
        ({"momentum_activation": 0.3}, "momentum_activation is 0.3; .* 1 / momentum_period = 0.25"),
        ({"servers": 0}, "servers is 0; a parameter server needs at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(AsyncLocalSGD(**settings), workers=4)
