import dataclasses

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.methods import (
    ADPSGD,
    METHODS,
    AsyncSGD,
    LocalSGD,
    SlowMo,
    StochasticGradientPush,
    StreamingDiLoCo,
)
from offbeat.methods.dc_asgd import Backups, DelayCompensatedSGD, delay_compensated
from offbeat.methods.diloco import Reductions
from offbeat.methods.sgp import PushSum
from offbeat.methods.slowmo import slow_momentum
from offbeat.runtime.simulated import Simulation
from offbeat.testing import simulated, small_experiment
from offbeat.topology import Graph, Ring


def test_delay_compensation_by_its_formula():
    g, x, x_bak = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 3.0]), torch.tensor([1.0, 2.0])
    assert delay_compensated(g, x, x_bak, 0.5).tolist() == [1 + 0.5 * 1 * 2, -2 + 0.5 * 4 * 1]
    assert delay_compensated(g, x, x_bak, 0.0) is g
    assert g.tolist() == [1, -2]


def test_slow_momentum_by_its_formula():
    start, end, u = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([2.0])
    x, u = slow_momentum(start, end, u, lr=0.25, alpha=0.5, beta=0.5)
    assert u.tolist() == [0.5 * 2 + 0.5 / 0.25]
    assert x.tolist() == [1 - 0.5 * 0.25 * 3]


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (LocalSGD(local_steps=0), "local_steps is 0; it must be at least 1"),
        (SlowMo(period=0), "period is 0; it must be at least 1"),
        (SlowMo(inner=AsyncSGD()), "SlowMo cannot wrap AsyncSGD: it averages at the same step"),
        (SlowMo(inner=ADPSGD()), "SlowMo cannot wrap ADPSGD"),
        (SlowMo(inner=LocalSGD(local_steps=0)), "local_steps is 0"),
        (StreamingDiLoCo(overlap=16), "overlap is 16; it must be from 0 to local_steps - 1 = 15"),
        (StreamingDiLoCo(fragments=0), "fragments is 0; it must be from 1 to local_steps = 16"),
        (StreamingDiLoCo(mixing=1.5), "mixing is 1.5; it must be from 0 to 1"),
        (AsyncSGD(servers=0), "servers is 0; a parameter server needs at least 1"),
        (AsyncSGD(servers=5, colocated=True), "5 servers cannot be colocated with 4 workers"),
        (StochasticGradientPush(topology=Graph(edges=((0, 1), (2, 3)))), "no path leads from"),
        (ADPSGD(topology=Graph(edges=((0, 1), (5, 2)))), "an edge .5, 2. but 4 workers"),
    ],
)
def test_settings_that_cannot_work_are_refused(method, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(method, workers=4)


def test_more_fragments_than_tensors_end_the_run_with_the_numbers():
    run = Simulation(small_experiment(StreamingDiLoCo(fragments=9))).run()
    assert "cannot split 4 parameter tensors into 9 parts; ask for 1 to 4" in run.error


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_equal_by_their_settings(name):
    assert METHODS[name]() == METHODS[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS[name]().anything = 1


@pytest.mark.parametrize("overlap", [3, 5])
def test_fragments_of_streaming_diloco_are_under_way_together(overlap):
    method = StreamingDiLoCo(fragments=4, local_steps=6, overlap=overlap)
    simulation = Simulation(small_experiment(method, steps=24))
    together = set()
    step = simulation.step

    def watching():
        more = step()
        for node in simulation.nodes:
            pending = node.state(Reductions).pending
            together.add(frozenset(pending))
        return more

    simulation.step = watching
    assert simulation.run().error is None
    assert max(len(fragments) for fragments in together) > 1


def test_overlap_hides_the_time_of_the_reduction():
    def seconds(overlap):
        cluster = Cluster(workers=4, compute=Constant(seconds=0.01), latency=4e-3)
        method = StreamingDiLoCo(fragments=1, local_steps=5, overlap=overlap)
        return simulated(small_experiment(method, steps=40, cluster=cluster)).seconds

    # Six messages of 4 ms are 24 ms: three steps of 10 ms hide them.
    assert seconds(3) == pytest.approx(0.4, abs=1e-3)
    assert seconds(0) == pytest.approx(0.4 + 7 * 0.024, abs=2e-3)


def test_slow_momentum_keeps_or_resets_the_buffers():
    runs = {
        buffers: simulated(
            small_experiment(SlowMo(period=4, buffers=buffers), momentum=0.9, lr=0.02)
        )
        for buffers in ("reset", "keep")
    }
    assert not torch.equal(runs["reset"].vector, runs["keep"].vector)


def test_push_sum_weights_stay_one_on_a_regular_graph():
    simulation = Simulation(
        small_experiment(StochasticGradientPush(topology=Ring()), workers=5, steps=10)
    )
    assert simulation.run().error is None
    for node in simulation.nodes:
        assert node.state(PushSum).weight == pytest.approx(1, abs=1e-12)


def test_the_model_of_push_sum_is_the_sum_of_x_over_the_sum_of_w():
    faults = (Fault(kind="crash", rank=1, at=0.1),)
    cluster = Cluster(workers=4, latency=0.02, faults=faults)
    simulation = Simulation(small_experiment(StochasticGradientPush(), cluster=cluster))
    run = simulation.run()
    assert run.error is None
    x = torch.stack([node.parameters for node in simulation.nodes])
    w = [node.state(PushSum).weight for node in simulation.nodes]
    assert abs(sum(w) - 3) > 0.1
    torch.testing.assert_close(run.vector, x.sum(dim=0) / sum(w), rtol=0, atol=1e-12)


def test_delay_compensation_backs_up_what_each_worker_was_sent():
    simulation = Simulation(small_experiment(DelayCompensatedSGD(), workers=3, steps=10))
    assert simulation.run().error is None
    *workers, server = simulation.nodes
    for node in workers:
        assert torch.equal(server.state(Backups).sent[node.rank], node.parameters)


def test_the_model_of_several_servers_is_put_together_in_order():
    simulation = Simulation(small_experiment(AsyncSGD(servers=3), workers=2, steps=10))
    run = simulation.run()
    assert run.error is None
    held = torch.cat([node.parameters for node in simulation.nodes if node.is_server])
    assert torch.equal(run.vector, held)


def test_ad_psgd_averages_while_gradients_are_computed():
    run = simulated(small_experiment(ADPSGD(), workers=4, steps=40))
    mixes = run.trace.steps["mixes"]
    # Its own averaging once, and on average one of a neighbour's.
    assert mixes.mean() == pytest.approx(2, abs=0.3)
    assert run.staleness.max() == 0


def test_a_worker_alone_needs_no_partner():
    for method in (ADPSGD(), StochasticGradientPush(), LocalSGD(), SlowMo()):
        assert simulated(small_experiment(method, workers=1, steps=20)).stop == "samples"
