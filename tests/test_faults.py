from dataclasses import dataclass

import numpy as np
import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.experiment import Budget
from offbeat.messages import message
from offbeat.method import Method
from offbeat.methods import (
    ADPSGD,
    METHODS,
    SGD,
    AllReduceSGD,
    AsyncSGD,
    DelayCompensatedSGD,
    LocalSGD,
    RingAllReduceSGD,
    SlowMo,
    StochasticGradientPush,
    StreamingDiLoCo,
)
from offbeat.methods.sgp import PushSum
from offbeat.runtime.simulated import Simulation
from offbeat.schedule import Cosine
from offbeat.suspensions import PeerLost
from offbeat.testing import small_experiment
from offbeat.topology import Complete, Ring
from offbeat.trace import FAULT_KINDS

EQUAL = Constant(seconds=0.01)
SURVIVORS = [
    SGD(),
    AsyncSGD(),
    AsyncSGD(servers=2),
    DelayCompensatedSGD(),
    ADPSGD(topology=Complete()),
    StochasticGradientPush(topology=Complete()),
]
surviving = pytest.mark.parametrize("method", SURVIVORS, ids=repr)


@message
class Hello:
    round: int


def fault(kind, rank, at, **settings):
    return Fault(kind=kind, rank=rank, at=at, **settings)


def simulate(method, *faults, seconds=0.5, workers=4, **settings):
    cluster = Cluster(workers=workers, faults=faults, **settings)
    simulation = Simulation(
        small_experiment(method, workers=workers, cluster=cluster, budget=Budget(seconds=seconds))
    )
    return simulation, simulation.run()


def last_gradient(run, rank):
    table = run.trace.gradients
    return table["end_ns"][table["node"] == rank].max(initial=0) / 1e9


# Those that go on


@surviving
@pytest.mark.parametrize("kind", ["crash", "leave"])
def test_the_others_go_on_when_a_worker_departs(method, kind):
    simulation, run = simulate(method, fault(kind, 1, at=0.2))
    assert run.error is None
    assert run.stop == "seconds"
    assert 0.15 < last_gradient(run, 1) < 0.25
    for rank in (0, 2, 3):
        assert last_gradient(run, rank) > 0.45
    assert simulation.departed == {1}
    assert run.notes == ["node 1 departed; the others went on"]
    assert run.metrics[-1].loss < run.metrics[0].loss / 5


@surviving
def test_a_late_worker_begins_at_the_present_model(method):
    placed = {}

    class Noting(Simulation):
        def _place(self, rank, start):
            placed[rank] = (self.clock.now / 1e9, start.clone())
            if self.clock.now:
                placed["model"] = self.method.model(self.nodes)
            return super()._place(rank, start)

    cluster = Cluster(workers=4, faults=(fault("join", 2, at=0.2),))
    simulation = Noting(small_experiment(method, cluster=cluster, budget=Budget(seconds=0.5)))
    run = simulation.run()
    assert run.error is None
    when, start = placed[2]
    assert when == 0.2
    assert torch.equal(start, placed["model"])
    assert start.abs().max() > 0.01
    table = run.trace.gradients
    first = table["start_ns"][table["node"] == 2].min() / 1e9
    assert 0.2 <= first < 0.25
    assert last_gradient(run, 2) > 0.45


@surviving
def test_one_worker_may_be_all_that_is_left(method):
    faults = [fault("crash", 0, at=0.1), fault("leave", 2, at=0.15), fault("crash", 3, at=0.2)]
    _, run = simulate(method, *faults)
    assert run.error is None
    assert last_gradient(run, 1) > 0.45


@surviving
def test_a_slow_down_shows_in_the_trace(method):
    slow = fault("slow", 1, at=0.1, factor=5.0, until=0.3)
    _, run = simulate(method, slow, compute=EQUAL)
    table = run.trace.gradients[run.trace.gradients["node"] == 1]
    took = (table["end_ns"] - table["start_ns"]) / 1e9
    asked = table["start_ns"] / 1e9
    assert took[(asked > 0.1) & (asked < 0.3)] == pytest.approx(0.05)
    assert took[(asked < 0.1) | (asked > 0.3)] == pytest.approx(0.01)
    kinds = [(FAULT_KINDS[row["kind"]], row["node"], row["factor"]) for row in run.trace.faults]
    assert kinds == [("slow", 1, 5.0), ("slow", 1, 1.0)]


def test_the_trace_records_every_fault():
    _, run = simulate(
        AsyncSGD(), fault("join", 3, at=0.05), fault("crash", 1, at=0.1), fault("leave", 2, at=0.2)
    )
    rows = [
        (FAULT_KINDS[row["kind"]], int(row["node"]), int(row["at_ns"])) for row in run.trace.faults
    ]
    assert rows == [
        ("join", 3, 50_000_000),
        ("crash", 1, 100_000_000),
        ("leave", 2, 200_000_000),
    ]


def test_a_crash_takes_messages_under_way_with_it():
    simulation, run = simulate(AsyncSGD(), fault("crash", 1, at=0.22), latency=0.02, compute=EQUAL)
    lost = run.trace.messages[run.trace.messages["outcome"] == 1]
    assert len(lost) >= 1
    assert {1} <= set(lost["source"]) | set(lost["to"])
    assert (run.trace.messages["to"] >= 0).all()
    assert len(lost) == len(simulation.lost_messages)


def test_the_next_samples_are_left_to_others_when_a_worker_crashes():
    cluster = Cluster(workers=4, compute=EQUAL, faults=(fault("crash", 1, at=0.105),))
    run = Simulation(
        small_experiment(AsyncSGD(), cluster=cluster, budget=Budget(samples=800))
    ).run()
    assert (run.stop, run.error) == ("samples", None)
    # The one that was being computed when its worker crashed is gone.
    assert len(run.trace.gradients) == 199


# What remains as peers


@dataclass(frozen=True, kw_only=True)
class Roll(Method):
    """Notes who its neighbours are at every round."""

    seen: dict
    survives_loss = True

    async def step(self, node):
        await node.gradient()
        peers = node.peers(Ring())
        total = peers.self_weight + sum(peers.out.values())
        assert total == pytest.approx(1)
        assert set(peers.into) == set(peers.out)
        self.seen.setdefault(node.rank, []).append((node.now, tuple(sorted(peers.out))))


def test_peers_are_those_who_are_there():
    seen = {}
    simulate(
        Roll(seen=seen),
        fault("crash", 1, at=0.2),
        fault("join", 3, at=0.1),
        workers=5,
        compute=EQUAL,
    )
    zero = dict.fromkeys(peers for _, peers in seen[0])
    assert list(zero) == [(1, 4), (4,)]
    # 4 knows 3 as a neighbour only once it has joined.
    assert list(dict.fromkeys(peers for _, peers in seen[4])) == [(0,), (0, 3)]
    assert {peers for _, peers in seen[3]} == {(2, 4)}
    noticed = next(when for when, peers in seen[0] if peers == (4,))
    assert noticed == pytest.approx(0.2, abs=0.021)


def test_the_weights_of_push_sum_are_shared_out_over_who_is_left():
    simulation, run = simulate(
        StochasticGradientPush(topology=Complete()), fault("leave", 1, at=0.1), compute=EQUAL
    )
    assert run.error is None
    weights = [node.state(PushSum).weight for node in simulation.nodes]
    assert len(weights) == 3
    # Complete graph: everyone has the same after a round.
    assert weights == pytest.approx([weights[0]] * 3)
    x = torch.stack([node.parameters for node in simulation.nodes])
    torch.testing.assert_close(x, x[:1].expand(3, 8), rtol=0, atol=0.2)


# Those that cannot go on


@pytest.mark.parametrize("collectives", ["priced", "messages"])
@pytest.mark.parametrize(
    "method",
    [
        AllReduceSGD(),
        RingAllReduceSGD(),
        LocalSGD(),
        StreamingDiLoCo(),
        SlowMo(inner=StochasticGradientPush(topology=Complete())),
    ],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("kind", ["crash", "leave"])
def test_a_collective_without_one_of_its_members_ends_the_run_and_names_it(
    method, collectives, kind
):
    simulation, run = simulate(method, fault(kind, 2, at=0.2), seconds=5.0, collectives=collectives)
    assert run.stop == "error"
    name = type(method).__name__
    assert run.error.startswith(f"{name} on node ")
    assert run.error.endswith(f"cannot go on: worker 2 is gone, and {name} does not survive a loss")
    assert 0.15 < simulation.clock.now / 1e9 < 1.0
    assert len(run.trace.gradients) > 10
    assert len(run.metrics) >= 2


@pytest.mark.parametrize("kind", ["crash", "leave"])
@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if not method().survives_loss]
)
def test_whoever_does_not_survive_a_loss_never_goes_on_in_silence(name, kind):
    # At several moments of a round: some learn of it between two rounds, others within one.
    for at in (0.1, 0.112, 0.12):
        run = simulate(METHODS[name](), fault(kind, 1, at))[1]
        assert run.error is not None, at
        assert f"cannot go on: worker 1 is gone, and {name} does not survive a loss" in run.error


@pytest.mark.parametrize("method", [AsyncSGD(), AsyncSGD(servers=2), DelayCompensatedSGD()])
def test_a_servers_crash_ends_the_run_and_names_the_server(method):
    simulation, run = simulate(method, fault("crash", 4, at=0.2), latency=0.01)
    assert run.stop == "error"
    assert run.error.endswith("cannot go on: server 4 is gone")
    assert 0.2 <= simulation.clock.now / 1e9 < 0.3
    assert len(run.metrics) >= 1


def test_evaluations_between_a_servers_crash_and_its_notice_are_left_out():
    cluster = Cluster(workers=4, latency=0.05, faults=(fault("crash", 4, at=0.2),))
    run = Simulation(
        small_experiment(AsyncSGD(), cluster=cluster, budget=Budget(seconds=1.0), evaluate_every=4)
    ).run()
    assert run.error.endswith("server 4 is gone")
    assert max(row.seconds for row in run.metrics) <= 0.2


def test_a_run_without_workers_ends():
    _, run = simulate(SGD(), *(fault("crash", rank, at=0.1) for rank in range(4)))
    assert run.error is None
    assert len(run.trace.gradients) > 10
    assert "node 3 departed; the others went on" in run.notes


def test_a_server_without_workers_is_a_deadlock():
    _, run = simulate(AsyncSGD(), *(fault("crash", rank, at=0.1) for rank in range(4)))
    assert "node 4 (server) awaits recv(Push)" in run.error


@pytest.mark.parametrize("method", [AllReduceSGD(), LocalSGD(), StreamingDiLoCo(), SlowMo()])
def test_nobody_joins_late_where_a_loss_is_not_survived(method):
    with pytest.raises(ValueError, match=f"{type(method).__name__} lets no worker join late"):
        simulate(method, fault("join", 1, at=0.1))


@pytest.mark.parametrize("kind", ["join", "slow", "leave"])
def test_servers_only_crash(kind):
    with pytest.raises(ValueError, match=f"fault {kind} names node 4, a server; only workers"):
        simulate(AsyncSGD(), fault(kind, 4, at=0.1))


def test_a_fault_of_no_node_is_refused():
    with pytest.raises(ValueError, match="fault crash names node 9; there are 4 workers and 1 ser"):
        simulate(AsyncSGD(), fault("crash", 9, at=0.1))


# PeerLost


def test_what_was_sent_before_leaving_is_read_before_the_loss_shows(script):
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Farewell(Method):
        survives_loss = True

        async def step(self, node):
            if node.rank == 1:
                for number in range(3):
                    node.send(0, Hello(number))
                await node.sleep(0.1)
                return
            try:
                while True:
                    seen.append((await node.recv(Hello, source=1))[1].round)
            except PeerLost as lost:
                seen.append(lost)
            await node.sleep(10.0)

    _, run = simulate(Farewell(), fault("leave", 1, at=0.05), workers=2, latency=0.3)
    assert run.error is None
    *numbers, lost = seen
    assert numbers == [0, 1, 2]
    assert lost.peer == 1
    assert str(lost) == "node 1 is gone"


def test_a_loss_that_comes_with_the_last_message_never_overtakes_it():
    # Notice and message are due at the same instant: the order must not be left to chance.
    seen = {}

    @dataclass(frozen=True, kw_only=True)
    class Farewell(Method):
        survives_loss = True
        number: int

        async def step(self, node):
            if node.rank == 1:
                await node.sleep(0.1)
                node.send(0, Hello(1))
                return
            try:
                seen[self.number] = (await node.recv(Hello, source=1))[1].round
            except PeerLost:
                seen[self.number] = None
            await node.sleep(10.0)

    for seed in range(20):
        cluster = Cluster(workers=2, latency=0.01, bandwidth=float("inf"),
                          faults=(fault("leave", 1, at=0.05),))  # fmt: skip
        experiment = small_experiment(
            Farewell(number=seed), cluster=cluster, budget=Budget(seconds=1.0), seed=seed
        )
        Simulation(experiment).run()
    assert list(seen.values()) == [1] * 20


def test_receiving_from_one_who_is_known_to_be_gone_fails_at_once():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Late(Method):
        survives_loss = True

        async def step(self, node):
            await node.sleep(0.2)
            if node.rank == 0:
                with pytest.raises(PeerLost):
                    await node.recv(Hello, source=1)
                seen.append(node.now)

    simulate(Late(), fault("crash", 1, at=0.1), workers=2, seconds=0.3)
    assert seen == [0.2]


def test_receiving_from_anyone_goes_on_when_one_is_gone():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Anyone(Method):
        survives_loss = True

        async def step(self, node):
            if node.rank:
                await node.sleep(0.1 * node.rank)
                node.send(0, Hello(node.rank))
                await node.sleep(10.0)
            else:
                seen.append((await node.recv(Hello))[0])

    _, run = simulate(Anyone(), fault("crash", 1, at=0.05), workers=3, seconds=1.0)
    assert run.error is None
    assert seen == [2]


# Joining


def test_a_late_workers_first_gradient_is_no_staler_than_any():
    cluster = Cluster(workers=4, compute=EQUAL, faults=(fault("join", 3, at=0.2003),))
    simulation = Simulation(
        small_experiment(AsyncSGD(), cluster=cluster, budget=Budget(seconds=0.5), lr=0.01)
    )
    run = simulation.run()
    assert run.error is None
    assert run.staleness.max() <= 5


def test_a_late_worker_comes_into_the_schedule_where_the_others_are():
    cluster = Cluster(workers=4, compute=EQUAL, faults=(fault("join", 3, at=0.2),))
    simulation = Simulation(
        small_experiment(
            ADPSGD(topology=Complete()),
            cluster=cluster,
            budget=Budget(seconds=0.4),
            schedule=Cosine(total=1000),
        )
    )
    assert simulation.run().error is None
    samples = [node.samples for node in simulation.nodes]
    assert max(samples) - min(samples) <= 2 * 4 * 4


def test_delay_compensation_does_not_compensate_for_a_start_it_never_sent():
    cluster = Cluster(workers=4, compute=EQUAL, faults=(fault("join", 3, at=0.2),))
    results = []
    for strength in (0.0, 50.0):
        method = DelayCompensatedSGD(strength=strength)
        run = Simulation(
            small_experiment(method, cluster=cluster, budget=Budget(seconds=0.5), lr=0.01)
        ).run()
        assert run.error is None
        results.append(run.metrics[-1].loss)
    assert np.isfinite(results).all()
