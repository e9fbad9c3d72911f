"""Stale synchronous parallel: who may be how far ahead, and of whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.cluster import Cluster, Constant, Fault, Lognormal, Pareto
from offbeat.experiment import Budget
from offbeat.methods import AllReduceSGD, AsyncSGD, StaleSynchronousSGD
from offbeat.runtime.simulated import Simulation
from offbeat.testing import simulated, small_experiment

EQUAL = Constant(seconds=0.01)


def free(workers, **settings):
    settings.setdefault("compute", EQUAL)
    return Cluster(workers=workers, latency=0.0, bandwidth=float("inf"), **settings)


def leads(run, workers):
    """At the beginning of every gradient: how far its worker is ahead of the slowest other.

    A worker's clock is the number of its gradients that have ended.
    """
    gradients = run.trace.gradients
    ended = {w: sorted(gradients["end_ns"][gradients["node"] == w].tolist()) for w in workers}
    begun = dict.fromkeys(workers, 0)
    found = []
    for row in sorted(gradients.tolist(), key=lambda row: row[1]):
        worker, began = row[0], row[1]
        clocks = [sum(end <= began for end in ended[w]) for w in workers]
        found.append(begun[worker] - min(clocks))
        begun[worker] += 1
    return found


@settings(max_examples=12)
@given(
    st.integers(0, 4),
    st.integers(2, 5),
    st.sampled_from([Lognormal(sigma=1.0), Pareto(shape=1.2), EQUAL]),
    st.floats(1, 20),
    st.sampled_from([0.0, 1e-3, 0.03]),
    st.integers(1, 2),
    st.integers(0, 1000),
)
def test_the_bound_is_never_exceeded(bound, workers, compute, slowness, latency, servers, seed):
    cluster = Cluster(workers=workers, compute=compute, latency=latency, slow={0: slowness})
    method = StaleSynchronousSGD(bound=bound, servers=servers)
    experiment = small_experiment(
        method, workers=workers, steps=8, lr=0.01, cluster=cluster, seed=seed
    )
    run = simulated(experiment)
    assert len(run.trace.gradients) == 8 * workers
    assert max(leads(run, range(workers))) <= bound


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_fastest_comes_to_its_bound_and_waits(bound):
    cluster = free(3, slow={0: 10.0})
    run = simulated(small_experiment(StaleSynchronousSGD(bound=bound), workers=3, cluster=cluster))
    assert max(leads(run, range(3))) == bound
    # From then on the slow worker sets everybody's pace.
    assert run.seconds == pytest.approx(50 * 0.1, rel=0.05)


def test_without_a_bound_nobody_waits():
    cluster = free(3, slow={0: 10.0})
    run, plain = (
        simulated(small_experiment(method, workers=3, cluster=cluster, momentum=0.9, lr=0.01))
        for method in (StaleSynchronousSGD(bound=None), AsyncSGD())
    )
    assert torch.equal(run.vector, plain.vector)
    assert run.staleness.tolist() == plain.staleness.tolist()
    assert max(leads(run, range(3))) > 30


@pytest.mark.parametrize("cluster", [Cluster(workers=4), free(4, slow={2: 7.0})], ids=["", "slow"])
def test_a_bound_of_zero_is_synchronous_sgd_on_the_sum_of_the_gradients(cluster):
    # Each of the n gradients is a step of its own, all of them taken at the same parameters.
    run = simulated(small_experiment(StaleSynchronousSGD(bound=0), lr=0.01, cluster=cluster))
    synchronous = simulated(small_experiment(AllReduceSGD(), lr=0.04, cluster=cluster))
    torch.testing.assert_close(run.vector, synchronous.vector, rtol=0, atol=1e-10)
    assert run.staleness.tolist() == [0, 1, 2, 3] * 50


def test_a_worker_sees_every_update_of_the_clocks_before_its_bound_and_its_own():
    # Ho et al. 2013: at clock c, all updates of the clocks up to c - s - 1.
    n, bound = 4, 2
    cluster = Cluster(workers=n, compute=Pareto(shape=1.3), latency=2e-3)
    experiment = small_experiment(StaleSynchronousSGD(bound=bound), workers=n, cluster=cluster)
    simulation = Simulation(experiment)
    served, pulled = [], {worker: [0] for worker in range(n)}
    send = simulation.post.send

    def watching(source, to, message):
        if to == n:
            served.append((source, message.clock))
        else:
            pulled[to].append(message.version)
        send(source, to, message)

    simulation.post.send = watching
    run = simulation.run()
    assert run.error is None
    messages = run.trace.messages
    order = messages["source"][messages["to"] == n].tolist()
    clock, updates = dict.fromkeys(range(n), 0), []
    for worker in order:
        clock[worker] += 1
        updates.append((worker, clock[worker] - 1))
    assert sorted(served) == sorted((worker, c + 1) for worker, c in updates)
    for worker, versions in pulled.items():
        for c, version in enumerate(versions):
            seen = set(updates[:version])
            owed = {(j, k) for j in range(n) for k in range(c - bound)}
            own = {(worker, k) for k in range(c)}
            assert owed | own <= seen


# Those who come and go


def run_with(*faults, workers=3, bound=1, servers=1, seconds=0.5, **settings):
    cluster = Cluster(workers=workers, compute=EQUAL, latency=1e-4, faults=faults, **settings)
    method = StaleSynchronousSGD(bound=bound, servers=servers)
    budget = Budget(seconds=seconds)
    return simulated(small_experiment(method, workers=workers, cluster=cluster, budget=budget))


def ends(run, worker):
    gradients = run.trace.gradients
    return gradients["end_ns"][gradients["node"] == worker] / 1e9


@pytest.mark.parametrize("kind", ["crash", "leave"])
@pytest.mark.parametrize("servers", [1, 2])
def test_when_the_slowest_departs_the_others_are_let_go(kind, servers):
    # Each of its gradients takes 150 ms; the others wait for the first from 20 ms on.
    slow = {0: 15.0}
    run = run_with(Fault(kind=kind, rank=0, at=0.1), slow=slow, servers=servers)
    for worker in (1, 2):
        assert ((ends(run, worker) > 0.04) & (ends(run, worker) < 0.1)).sum() == 0
        assert (ends(run, worker) > 0.2).sum() > 20
    assert len(ends(run, 0)) <= 1


def test_the_last_one_left_goes_on():
    run = run_with(Fault(kind="crash", rank=0, at=0.1), Fault(kind="crash", rank=2, at=0.2))
    assert ends(run, 1).max() > 0.48


def test_a_late_worker_begins_where_nobody_has_begun_and_is_waited_for_then():
    run = run_with(Fault(kind="join", rank=2, at=0.205), slow={2: 10.0}, seconds=1.0)
    before = [(ends(run, worker) < 0.2).sum() for worker in (0, 1)]
    assert min(before) >= 18, "nobody waits for who is not there"
    late = len(ends(run, 2))
    assert late >= 6
    for worker in (0, 1):
        after = (ends(run, worker) > 0.22).sum()
        assert after <= late + 3


def test_a_worker_that_comes_back_does_not_hold_the_others_to_its_first_life():
    run = run_with(
        Fault(kind="crash", rank=2, at=0.1), Fault(kind="join", rank=2, at=0.3), seconds=0.6
    )
    for worker in (0, 1):
        assert (ends(run, worker) > 0.32).sum() > 20
    assert (ends(run, 2) > 0.32).sum() > 20


def test_a_worker_that_crashed_while_it_waited_is_not_answered_in_its_next_life():
    # Worker 1 waits for worker 0, whose gradients take 150 ms; it is back at 120 ms, pushes, and is
    # answered once worker 0 has a clock of 2, at 300 ms; so is its next push at 450 ms.
    run = run_with(
        Fault(kind="crash", rank=1, at=0.1),
        Fault(kind="join", rank=1, at=0.12),
        slow={0: 15.0},
        seconds=0.42,
    )
    messages = run.trace.messages
    late = messages["end_ns"] / 1e9 > 0.12
    assert (late & (messages["source"] == 1)).sum() == 2
    assert (late & (messages["to"] == 1)).sum() == 1


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match="bound is -1; it must not be negative"):
        small_experiment(StaleSynchronousSGD(bound=-1))
