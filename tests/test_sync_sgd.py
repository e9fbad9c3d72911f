"""The synchronous parameter server: all-reduce's bits, and who is waited for."""

from collections import Counter

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.experiment import Budget
from offbeat.methods import AllReduceSGD, SyncSGD
from offbeat.runtime.simulated import Simulation
from offbeat.schedule import Cosine
from offbeat.testing import Quadratic, simulated, small_experiment

EQUAL = Constant(seconds=0.01)


def ended(method, workers, **settings):
    simulation = Simulation(small_experiment(method, workers=workers, **settings))
    run = simulation.run()
    assert run.error is None
    return simulation, run


@pytest.mark.parametrize("returns", ["parameters", "gradient"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_one_server_gives_the_bits_of_all_reduce(workers, returns):
    samples = 50 * workers * Quadratic().batch_size
    settings = {"momentum": 0.9, "schedule": Cosine(total=samples, warmup=samples // 5)}
    expected, _ = ended(AllReduceSGD(), workers, **settings)
    simulation, run = ended(SyncSGD(returns=returns), workers, **settings)
    for node in simulation.nodes:
        if returns == "parameters" or not node.is_server:
            assert torch.equal(node.parameters, expected.nodes[0].parameters)
    assert run.staleness.max() == 0
    assert torch.allclose(run.vector, simulation.nodes[0].parameters, rtol=1e-15)


@pytest.mark.parametrize("returns", ["parameters", "gradient"])
def test_servers_that_share_the_parameters_differ_in_rounding_only(returns):
    one, several = (
        simulated(small_experiment(SyncSGD(returns=returns, servers=n), workers=3, momentum=0.9))
        for n in (1, 4)
    )
    torch.testing.assert_close(one.vector, several.vector, rtol=0, atol=1e-12)


def test_a_server_that_returns_gradients_keeps_the_start():
    simulation, run = ended(SyncSGD(returns="gradient"), 3)
    assert simulation.nodes[3].parameters.abs().max() == 0
    assert simulation.nodes[3].version == 0
    assert run.vector.abs().max() > 0.1


def contributions(run, server):
    """How many gradients each step of the server is the mean of."""
    steps = run.trace.steps
    return Counter(steps["version"][steps["node"] == server].tolist())


def run_with(faults, workers=3, **settings):
    cluster = Cluster(
        workers=workers, compute=EQUAL, latency=1e-4, bandwidth=float("inf"), faults=faults,
        **settings,
    )  # fmt: skip
    return simulated(
        small_experiment(SyncSGD(), workers=workers, cluster=cluster, budget=Budget(seconds=0.3))
    )


def test_the_server_goes_on_with_those_who_are_left():
    run = run_with((Fault(kind="crash", rank=1, at=0.1), Fault(kind="leave", rank=0, at=0.2)))
    counts = contributions(run, 3)
    assert sorted(set(counts.values())) == [1, 2, 3]
    assert [counts[k] for k in sorted(counts)] == sorted(counts.values(), reverse=True)
    assert run.staleness.max() == 0
    assert run.seconds == pytest.approx(0.3, abs=0.02)


def test_what_a_worker_sent_before_its_crash_is_in_this_round_s_mean():
    # Worker 2 has sent its gradient at 10 ms; the server waits for worker 0 until 40 ms.
    run = run_with((Fault(kind="crash", rank=2, at=0.02),), slow={0: 4.0})
    counts = contributions(run, 3)
    assert counts[0] == 3
    assert set(counts.values()) == {2, 3}
    assert counts[1] == 2
    assert run.staleness.max() == 0


@pytest.mark.parametrize("rank", [0, 2])
def test_a_late_worker_is_waited_for_from_its_first_round_on(rank):
    run = run_with((Fault(kind="join", rank=rank, at=0.105),))
    counts = contributions(run, 3)
    assert [counts[k] for k in sorted(counts)] == sorted(counts.values())
    assert set(counts.values()) == {2, 3}
    assert run.staleness.max() <= 1


def test_a_server_left_alone_waits_for_a_late_worker():
    crash, join = Fault(kind="crash", rank=0, at=0.1), Fault(kind="join", rank=1, at=0.2)
    run = run_with((crash, join), workers=2)
    ends = run.trace.gradients["end_ns"] / 1e9
    assert ((ends > 0.11) & (ends < 0.2)).sum() == 0
    assert (ends > 0.21).sum() > 5


def test_where_gradients_are_returned_every_worker_is_needed():
    method = SyncSGD(returns="gradient")
    assert not method.survives_loss
    assert SyncSGD().survives_loss
    cluster = Cluster(workers=3, faults=(Fault(kind="crash", rank=1, at=0.1),))
    run = Simulation(small_experiment(method, workers=3, cluster=cluster)).run()
    assert run.error == (
        "SyncSGD on node 3 (server) cannot go on: worker 1 is gone, and SyncSGD does not survive "
        "a loss"
    )
    cluster = Cluster(workers=3, faults=(Fault(kind="join", rank=1, at=0.1),))
    with pytest.raises(ValueError, match="SyncSGD lets no worker join late"):
        small_experiment(method, workers=3, cluster=cluster)
