"""Downpour: its pseudocode, its identity with asynchronous SGD, Adagrad and the warm start."""

import functools

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.methods import AsyncSGD, Downpour
from offbeat.runtime.simulated import Simulation
from offbeat.testing import simulated, small_experiment
from test_theory import by_hand, close


def quick(n, **settings):
    """Speeds without ties, and messages that are quick: all comes in the order of gradients."""
    return Cluster(
        workers=n, compute=Constant(seconds=0.01), latency=1e-7, bandwidth=float("inf"),
        slow={rank: 1.0 + 0.37 * rank for rank in range(n)}, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("servers", [1, 2])
def test_fetching_and_pushing_each_step_is_asynchronous_sgd_to_the_bit(servers):
    cluster = Cluster(workers=4, latency=1e-3, bandwidth=float("inf"))
    downpour, plain = (
        simulated(small_experiment(method, momentum=0.9, lr=0.02, cluster=cluster))
        for method in (
            Downpour(servers=servers, local_lr=0.0, fetch="wait"),
            AsyncSGD(servers=servers),
        )
    )
    assert torch.equal(downpour.vector, plain.vector)
    of_servers = downpour.trace.steps["node"] >= 4
    assert of_servers.all(), "a worker's own step is not one of the optimizer"
    assert downpour.staleness.tolist() == plain.staleness.tolist()


def pseudocode(experiment, ended, server_step):
    """The parameters at the server, (d,), its steps made by `server_step(x, sum)`."""
    method, n = experiment.method, experiment.cluster.workers
    gradient = by_hand(experiment)
    server = torch.zeros(8, dtype=torch.double)
    x, accrued, t = [server] * n, [torch.zeros_like(server)] * n, [0] * n
    fetched = [server] * n
    for row in ended[ended["end_ns"].argsort()]:
        i = int(row["node"])
        g = gradient(x[i], i, t[i])
        accrued[i] = accrued[i] + g
        if method.fetch == "overlap" and t[i] % method.fetch_every == 0:
            x[i] = fetched[i]  # It was asked for when the gradient was begun, at another x.
        x[i] = x[i] - method.local_lr * g
        t[i] += 1
        if t[i] % method.push_every == 0:
            server = server_step(server, accrued[i])
            accrued[i] = torch.zeros_like(server)
        if t[i] % method.fetch_every == 0:
            fetched[i] = server
            x[i] = server if method.fetch == "wait" else x[i]
    assert len(set(t)) == n
    return server


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("fetch", ["overlap", "wait"])
@pytest.mark.parametrize(("fetch_every", "push_every"), [(1, 1), (1, 4), (4, 1), (3, 3), (3, 5)])
def test_it_is_its_pseudocode(fetch_every, push_every, fetch, servers):
    method = Downpour(
        fetch_every=fetch_every, push_every=push_every, local_lr=0.03, fetch=fetch, servers=servers
    )
    experiment = small_experiment(method, workers=3, steps=30, lr=0.02, cluster=quick(3))
    run = simulated(experiment)
    expected = pseudocode(experiment, run.trace.gradients, lambda x, total: x - 0.02 * total)
    close(run.vector, expected)


@pytest.mark.parametrize("fetch_every", [1, 3])
def test_a_fetch_slower_than_the_gradient_is_waited_for(fetch_every):
    # Of one worker, what the server holds does not depend on when it is asked.
    cluster = Cluster(workers=1, compute=Constant(seconds=0.01), latency=0.02)
    method = Downpour(fetch_every=fetch_every, push_every=2, local_lr=0.03)
    experiment = small_experiment(method, workers=1, steps=30, lr=0.02, cluster=cluster)
    run = simulated(experiment)
    expected = pseudocode(experiment, run.trace.gradients, lambda x, total: x - 0.02 * total)
    close(run.vector, expected)


def test_adagrad_is_the_server_s_alone():
    gamma, squares = 0.5, torch.zeros(8, dtype=torch.double)

    def adagrad(x, total):
        squares.add_(total**2)
        return x - gamma * total / (squares.sqrt() + 1e-10)

    experiment = small_experiment(
        Downpour(fetch_every=2, push_every=2, local_lr=0.03, fetch="wait"), workers=3, steps=30,
        cluster=quick(3), optimizer=functools.partial(torch.optim.Adagrad, lr=gamma),
    )  # fmt: skip
    simulation = Simulation(experiment)
    run = simulation.run()
    assert run.error is None
    close(run.vector, pseudocode(experiment, run.trace.gradients, adagrad))
    assert [node._optimizer is None for node in simulation.nodes] == [True] * 3 + [False]


def test_every_gradient_of_a_push_is_counted_with_its_own_staleness():
    method = Downpour(fetch_every=4, push_every=2, fetch="wait")
    run = simulated(small_experiment(method, workers=1, steps=16, cluster=quick(1)))
    # Versions 0 and 1 pass between the fetches: the last two gradients are one push late.
    assert run.staleness.tolist() == [0, 0, 1, 1] * 4


def test_a_fetch_beside_the_gradient_costs_no_time():
    cluster = Cluster(workers=2, compute=Constant(seconds=0.01), latency=4e-3)
    seconds = {
        fetch: simulated(
            small_experiment(Downpour(fetch=fetch), workers=2, steps=20, cluster=cluster)
        ).seconds
        for fetch in ("overlap", "wait")
    }
    # The first is always waited for.
    assert seconds["overlap"] == pytest.approx(20 * 0.01 + 0.008, abs=2e-3)
    assert seconds["wait"] == pytest.approx(20 * 0.018, abs=2e-3)


@pytest.mark.parametrize("crash", [False, True])
def test_a_warm_start_is_one_worker_s_alone(crash):
    # The pioneer crashes after some twenty of its steps: the next goes on alone.
    faults = (Fault(kind="crash", rank=0, at=0.2),) if crash else ()
    cluster = quick(3, faults=faults)
    run = Simulation(
        small_experiment(Downpour(warm_start=30), workers=3, steps=50, cluster=cluster)
    ).run()
    assert run.error is None
    ended = run.trace.gradients
    order = ended["node"][ended["end_ns"].argsort()].tolist()
    alone = order[:30]
    assert set(alone) == ({0, 1} if crash else {0})
    assert alone == sorted(alone)
    assert set(order[31:]) == ({1, 2} if crash else {0, 1, 2})
    # Nobody comes with a gradient of the cold start.
    assert run.staleness.max() < 10


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fetch_every": 0}, "fetch_every is 0; it must be at least 1"),
        ({"push_every": 0}, "push_every is 0; it must be at least 1"),
        ({"warm_start": -1}, "warm_start is -1; it must be at least 0"),
        ({"local_lr": -0.1}, "local_lr is -0.1; it must not be negative"),
        ({"servers": 0}, "servers is 0; a parameter server needs at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(Downpour(**settings), workers=4)
