"""Lines of different speed, sites, outages and servers' own work."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offbeat.cluster import Access, Backbone, Cluster, Fault, Outage, Site
from offbeat.experiment import Budget
from offbeat.messages import codec_of, message
from offbeat.methods import ADPSGD, AllReduceSGD, AsyncSGD, StochasticGradientPush
from offbeat.runtime.network import Outages, UnequalNetwork, UniformNetwork, network_of
from offbeat.runtime.simulated import Simulation
from offbeat.testing import audited, simulated, small_experiment
from offbeat.trace import DELIVERED, LOST

MS = 1_000_000  # nanoseconds


@message
class Load:
    number: int
    payload: Tensor


SIZE = codec_of(Load).size(Load(0, torch.zeros(100)))


def loads(*numbers):
    return [Load(number, torch.zeros(100)) for number in numbers]


# Lines


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 999), st.integers(0, 500)),
        max_size=30,
    ),
    st.sampled_from([1e5, 3.3e6, float("inf")]),
)
def test_equal_lines_give_the_uniform_network_to_the_nanosecond(transfers, bandwidth):
    cluster = Cluster(workers=4, latency=1.7e-4, bandwidth=bandwidth)
    uniform, general = UniformNetwork(4, 1.7e-4, bandwidth), UnequalNetwork(4, cluster)
    now = 0
    for source, to, size, pause in transfers:
        now += pause
        assert general.begin(source, to, now) >= now
        assert general.transfer(source, to, size, now) == uniform.transfer(source, to, size, now)


@pytest.mark.parametrize("method", [AllReduceSGD(), AsyncSGD(), ADPSGD()], ids=repr)
def test_a_run_over_lines_that_are_described_one_by_one_is_the_same(method):
    def run(**settings):
        cluster = Cluster(
            workers=4, latency=1e-3, bandwidth=1e5, collectives="messages", **settings
        )
        return simulated(small_experiment(method, cluster=cluster))

    alike = {node: Access(up=1e5, down=1e5, latency=1e-3) for node in range(4)}
    assert run(access=alike).trace.hash() == run().trace.hash()


def test_a_transfer_takes_the_slowest_of_its_lines_and_occupies_each_at_its_own_rate():
    cluster = Cluster(
        workers=3,
        latency=4e-3,
        bandwidth=1e6,
        access={0: Access(up=5e5, latency=2e-3), 1: Access(down=2e5)},
    )
    network = network_of(cluster, 3)
    # 1000 bytes: 2 ms up, 5 ms down, and the mean of 2 and 4 ms.
    assert network.transfer(0, 1, 1000, 0) == (0, 5 * MS + 3 * MS)
    assert network.transfer(0, 2, 1000, 0) == (2 * MS, 2 * MS + 2 * MS + 3 * MS)
    assert network.transfer(2, 1, 1000, 0) == (5 * MS, 5 * MS + 5 * MS + 4 * MS)
    # Directions are apart, and node 1 sends as everyone does.
    assert network.transfer(1, 0, 1000, 0) == (0, 1 * MS + 3 * MS)


def two_sites(**settings):
    return Cluster(
        workers=5,
        latency=1e-3,
        bandwidth=1e6,
        sites=(Site(name="north", nodes=(0, 1)), Site(name="south", nodes=(2, 3))),
        backbone=Backbone(latency=10e-3, bandwidth=1e5),
        **settings,
    )


def test_sites_share_a_backbone_in_each_direction():
    network = network_of(two_sites(), 5)
    assert network.transfer(0, 2, 1000, 0) == (0, 10 * MS + 11 * MS)
    # Another sender and receiver, the same backbone; the other way it is free.
    assert network.transfer(1, 3, 1000, 0) == (10 * MS, 20 * MS + 11 * MS)
    assert network.begin(0, 3, 0) == 20 * MS
    assert network.transfer(3, 1, 1000, 0) == (0, 10 * MS + 11 * MS)
    # Node 4 is at a third site, with lines of its own to the other two.
    assert network.transfer(4, 0, 1000, 0) == (0, 10 * MS + 11 * MS)
    # Within a site there is no backbone.
    assert network_of(two_sites(), 5).transfer(0, 1, 1000, 0) == (0, 1 * MS + 1 * MS)


def test_the_backbone_does_not_hold_the_lines_longer_than_they_need():
    network = network_of(two_sites(), 5)
    network.transfer(0, 2, 1000, 0)
    assert network.begin(0, 1, 0) == 1 * MS
    assert network.begin(3, 2, 0) == 1 * MS


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2000), st.integers(0, MS)),
        max_size=30,
    )
)
def test_lines_of_different_speed_are_first_in_first_out(transfers):
    access = {1: Access(up=1e4), 3: Access(down=3e4, latency=0.2)}
    network, now, last = network_of(two_sites(access=access), 5), 0, {}
    for source, to, size, pause in transfers:
        now += pause
        begin, arrival = network.transfer(source, to, size, now)
        assert now <= begin <= arrival
        assert arrival >= last.get((source, to), 0)
        last[source, to] = arrival


def test_a_colocated_server_has_the_line_of_its_worker():
    def longest(**settings):
        cluster = Cluster(workers=3, latency=1e-3, bandwidth=1e6, **settings)
        method = AsyncSGD(servers=1, colocated=True)
        messages = simulated(small_experiment(method, workers=3, cluster=cluster)).trace.messages
        return (messages["end_ns"] - messages["start_ns"])[messages["source"] == 3].max()

    assert longest(access={0: Access(up=1e4)}) > 5 * longest()
    # The server is node 3, but the line is that of the host's first node.
    assert longest(access={3: Access(up=1e4)}) == longest()


@pytest.mark.parametrize("algorithm", ["ring", "whole-ring", "direct", "tree", "server"])
def test_collectives_over_unequal_lines_pass_their_messages(script, algorithm):
    means, left = [], []

    async def worker(node):
        means.append(await node.all_reduce(torch.full((50,), float(node.rank))))
        left.append(node.now)

    simulation = script(worker, workers=5, cluster=two_sites(all_reduce=algorithm))
    assert simulation.result.error is None
    assert all(mean.eq(2.0).all() for mean in means)
    assert "all_reduce" not in simulation.result.trace.kinds
    # Something has to cross to another site and come back.
    assert max(left) > 20e-3


# Outages


def test_the_end_of_an_outage_is_that_of_all_in_a_row():
    outages = Outages(
        Cluster(
            workers=4,
            outages=(
                Outage(isolated=(0, 1), at=3.0, until=5.0),
                Outage(isolated=(1,), at=1.0, until=4.0),
                Outage(isolated=(2,), at=8.0, until=9.0),
            ),
        ),
        4,
    )
    second = 1_000_000_000
    assert outages.end(0, 2, 0) == 0
    assert outages.end(1, 2, second) == 5 * second
    assert outages.end(0, 1, second) == 4 * second  # Both are cut off from 3 s on, together.
    assert outages.end(0, 2, second) == second
    assert outages.end(0, 2, 5 * second) == 5 * second
    assert outages.end(3, 2, 8 * second) == 9 * second


def cut_off(script, workers, worker, *outages, **settings):
    cluster = Cluster(workers=workers, latency=1e-3, bandwidth=1e6, outages=outages, **settings)
    simulation = script(worker, workers=workers, cluster=cluster)
    assert simulation.result.error is None
    return simulation


def test_what_is_sent_during_an_outage_waits_and_keeps_its_order(script):
    arrived = []

    async def worker(node):
        if node.rank == 0:
            for load in loads(*range(6)):
                node.send(1, load)
                await node.sleep(0.03)
        elif node.rank == 1:
            for _ in range(6):
                arrived.append(((await node.recv(Load))[1].number, node.now))

    simulation = cut_off(script, 3, worker, Outage(isolated=(0,), at=0.05, until=0.1))
    assert [number for number, _ in arrived] == list(range(6))
    began = simulation.result.trace.messages["start_ns"] / 1e9
    assert ((began < 0.05) | (began >= 0.1)).all()
    duration = SIZE / 1e6
    assert began.tolist() == pytest.approx([0, 0.03, 0.1, 0.1 + duration, 0.12, 0.15])
    sent = simulation.result.trace.messages["sent_ns"] / 1e9
    assert sent.tolist() == pytest.approx([0, 0.03, 0.06, 0.09, 0.12, 0.15])


def test_an_outage_stops_nobody_else(script):
    arrived = {}

    async def worker(node):
        if node.rank == 0:
            for to, load in zip((1, 2, 3), loads(0, 1, 2), strict=True):
                node.send(to, load)
        else:
            await node.recv(Load)
            arrived[node.rank] = node.now

    cut_off(script, 4, worker, Outage(isolated=(1, 3), at=0.0, until=0.5))
    duration = SIZE / 1e6
    assert arrived == pytest.approx(
        {2: duration + 1e-3, 1: 0.5 + duration + 1e-3, 3: 0.5 + 2 * duration + 1e-3}
    )


def test_a_transfer_that_would_begin_in_an_outage_waits_too(script):
    arrived = []

    async def worker(node):
        if node.rank == 0:
            for load in loads(0, 1):  # The second begins when the first has been sent.
                node.send(1, load)
        else:
            for _ in range(2):
                await node.recv(Load)
                arrived.append(node.now)

    duration = SIZE / 1e6
    cut_off(script, 2, worker, Outage(isolated=(1,), at=duration / 2, until=0.2))
    assert arrived == pytest.approx([duration + 1e-3, 0.2 + duration + 1e-3])


def test_what_could_go_after_an_outage_does_not_overtake_what_the_outage_holds(script):
    arrived = []

    async def worker(node):
        if node.rank == 0:
            node.send(1, loads(0)[0])
            node.send(2, Load(1, torch.zeros(25_000)))  # Keeps the line beyond the outage.
            node.send(1, loads(2)[0])
        elif node.rank == 1:
            for _ in range(2):
                arrived.append((await node.recv(Load))[1].number)

    cut_off(script, 3, worker, Outage(isolated=(1,), at=0.0, until=0.05))
    assert arrived == [0, 2]


def test_a_departure_is_noticed_when_the_outage_is_over(script):
    seen = {}

    async def worker(node):
        if node.rank == 0:
            await node.sleep(5.0)
            return
        try:
            await node.recv(Load, source=0)
        except Exception as error:
            seen[node.rank] = (type(error).__name__, node.now)

    outage = Outage(isolated=(0, 1), at=0.05, until=0.5)
    cut_off(script, 3, worker, outage, faults=(Fault(kind="crash", rank=0, at=0.1),))
    assert seen == {
        1: ("PeerLost", pytest.approx(0.101)),
        2: ("PeerLost", pytest.approx(0.501)),
    }


def test_what_an_outage_holds_at_a_node_that_crashes_is_lost(script):
    async def worker(node):
        if node.rank == 0:
            for load in loads(0, 1):
                node.send(1, load)
            await node.sleep(5.0)

    outage = Outage(isolated=(0,), at=0.0, until=1.0)
    simulation = cut_off(script, 2, worker, outage, faults=(Fault(kind="crash", rank=0, at=0.1),))
    assert [lost.number for _, _, lost in simulation.lost_messages] == [0, 1]
    assert simulation.result.trace.messages["outcome"].tolist() == [LOST, LOST]
    assert simulation.in_flight == []


@pytest.mark.parametrize("method", [StochasticGradientPush(), ADPSGD()], ids=repr)
def test_ledgers_balance_through_an_outage(method):
    outages = (
        Outage(isolated=(0, 1), at=0.03, until=0.07),
        Outage(isolated=(1, 2), at=0.05, until=0.12),
    )
    faults = (Fault(kind="crash", rank=3, at=0.06), Fault(kind="leave", rank=2, at=0.06))
    cluster = Cluster(workers=5, latency=2e-3, bandwidth=1e5, outages=outages, faults=faults)
    simulation = audited(method, method.ledger, cluster, steps=30)
    run = simulation.run()
    assert run.stop != "error" or run.error.startswith("diverged")
    assert simulation.checks > 100


# Servers' own work


def test_a_server_works_on_one_message_at_a_time_in_order_of_arrival():
    work = 2e-6
    cluster = Cluster(workers=6, latency=1e-3, bandwidth=1e7, server_work=work)
    run = simulated(small_experiment(AsyncSGD(), workers=6, cluster=cluster))
    messages = run.trace.messages
    pushes = np.sort(messages[messages["to"] == 6], order="end_ns")
    served = run.trace.work
    assert len(served) == len(pushes)
    assert set(served["node"]) == {6}
    free = 0
    for push, work_row in zip(pushes, served, strict=True):
        assert work_row["start_ns"] == max(push["end_ns"], free)
        free = work_row["start_ns"] + round(int(push["bytes"]) * work * 1e9)
        assert work_row["end_ns"] == free
    # The gradient is applied when the processor is through with it.
    steps = run.trace.steps
    assert np.sort(steps["at_ns"]).tolist() == served["end_ns"].tolist()


def test_a_server_that_works_slowly_sets_the_pace():
    def seconds(work):
        cluster = Cluster(workers=6, latency=1e-4, bandwidth=1e9, server_work=work)
        return simulated(small_experiment(AsyncSGD(), workers=6, cluster=cluster, steps=40)).seconds

    size = 8 * 8  # Quadratic has eight parameters of eight bytes; headers come on top.
    slow = 0.01 / size  # More than ten milliseconds for each of 240 gradients.
    assert seconds(0.0) < 0.7
    assert seconds(slow) > 240 * 0.01 * 0.9


def test_what_waits_for_the_processor_of_a_server_that_crashes_is_lost():
    cluster = Cluster(workers=4, server_work=1e-3, faults=(Fault(kind="crash", rank=4, at=0.2),))
    simulation = Simulation(
        small_experiment(AsyncSGD(), cluster=cluster, budget=Budget(seconds=1.0))
    )
    run = simulation.run()
    assert run.error.endswith("server 4 is gone")
    assert any(to == 4 for _, to, _ in simulation.lost_messages)
    assert simulation.in_flight == []
    assert (run.trace.messages["outcome"] == DELIVERED).any()
