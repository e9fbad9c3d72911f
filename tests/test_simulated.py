import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.experiment import Budget
from offbeat.messages import message
from offbeat.method import Method
from offbeat.methods import (
    ADPSGD,
    SGD,
    AllReduceSGD,
    AsyncSGD,
    LocalSGD,
    StochasticGradientPush,
)
from offbeat.node import Node
from offbeat.problems import Digits, Split, Supervised
from offbeat.runtime.clock import VirtualClock
from offbeat.runtime.compute import Job, SerialEvaluator
from offbeat.runtime.network import UniformNetwork
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.suspensions import PeerLost
from offbeat.testing import Quadratic, fingerprint, simulated, small_experiment
from offbeat.topology import Complete

EQUAL = Constant(seconds=0.01)


@message
class Numbered:
    number: int
    payload: Tensor


def digits(method, steps=10, workers=4, **settings):
    defaults = {
        "problem": Digits(hidden=8),
        "steps": steps,
        "workers": workers,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1),
    }
    return small_experiment(method, **(defaults | settings))


# Links


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.01)), min_size=1, max_size=12))
def test_links_are_first_in_first_out(script, sent):
    order = []

    async def worker(node):
        if node.rank == 0:
            for number, (size, pause) in enumerate(sent):
                await node.sleep(pause)
                node.send(1, Numbered(number, torch.zeros(size)))
        else:
            for _ in sent:
                order.append((await node.recv(Numbered))[1].number)

    cluster = Cluster(workers=2, latency=1e-3, bandwidth=1e4)
    assert script(worker, cluster=cluster).result.error is None
    assert order == list(range(len(sent)))


def test_a_transfer_takes_its_bytes_over_the_bandwidth_and_then_the_latency():
    network = UniformNetwork(3, latency=1e-3, bandwidth=1e6)
    assert network.transfer(0, 1, 500, now=7) == (7, 7 + 500_000 + 1_000_000)


def test_a_transfer_occupies_both_sides_and_the_latency_nobody():
    network = UniformNetwork(4, latency=1.0, bandwidth=1e9)
    assert network.transfer(0, 1, 100, now=0) == (0, 100 + 10**9)
    # The sender's outgoing side, then the receiver's incoming one, then neither.
    assert network.transfer(0, 2, 10, now=0)[0] == 100
    assert network.transfer(3, 1, 10, now=0)[0] == 100
    assert network.transfer(1, 0, 10, now=0)[0] == 0
    assert network.transfer(2, 3, 10, now=0)[0] == 0


def test_messages_of_one_host_arrive_at_once():
    network = UniformNetwork(2, latency=1.0, bandwidth=1.0)
    assert network.transfer(1, 1, 1000, now=5) == (5, 5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 999)), max_size=30))
def test_no_side_carries_two_transfers_at_once(transfers):
    network = UniformNetwork(4, latency=1e-6, bandwidth=1e9)
    outgoing, incoming = {}, {}
    for source, to, size in transfers:
        if source == to:
            continue
        begin, arrival = network.transfer(source, to, size, now=0)
        assert begin >= outgoing.get(source, 0)
        assert begin >= incoming.get(to, 0)
        outgoing[source] = incoming[to] = begin + size
        assert arrival == begin + size + 1000


def test_the_clock_is_in_order_and_breaks_ties_by_its_seed():
    def order(seed):
        clock, seen = VirtualClock(seed), []
        for number in range(20):
            clock.at(5, seen.append, number)
        clock.at(1, seen.append, "first")
        clock.at(9, seen.append, "last")
        assert not clock.idle
        while clock.advance():
            pass
        assert clock.now == 9
        return seen

    assert (order(0)[0], order(0)[-1]) == ("first", "last")
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(1)[1:-1]) == list(range(20))


# Snapshots


def gradients_under_interference(script):
    """The gradients of a worker whose parameters another role spoils while they are computed."""
    computed = []

    async def worker(node):
        for _ in range(5):
            computed.append(((await node.gradient()).vector, node.parameters.clone()))

    async def meddler(node):
        while True:
            await node.sleep(0.0041)
            node.mix(scale=0.5, add=torch.ones_like(node.parameters))

    cluster = Cluster(workers=1, compute=EQUAL)
    simulation = script(worker, meddler, workers=1, cluster=cluster, budget=Budget(seconds=0.06))
    assert simulation.result.error is None
    return simulation, [gradient for gradient, _ in computed]


def require_gradients_of_the_snapshots(script):
    simulation, computed = gradients_under_interference(script)
    world = World(simulation.experiment)
    A, b = world.data.train.inputs, world.data.train.targets
    x = torch.zeros(8, dtype=torch.double)
    mixes = 0
    assert len(computed) == 5
    for step, gradient in enumerate(computed):
        # By the time it was asked for, at step * 10 ms, the meddler had come every 4.1 ms.
        while (mixes + 1) * 4.1 <= step * 10:
            x = 0.5 * x + 1
            mixes += 1
        rows = world.batches[0].indices(step)
        expected = A[rows].T @ (A[rows] @ x - b[rows]) / len(rows)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_a_gradient_is_that_of_the_parameters_when_it_was_asked_for(script, monkeypatch):
    require_gradients_of_the_snapshots(script)

    # The test does notice when it is not.
    class Aliased(Tensor):
        def clone(self):
            return self

    honest = Node.gradient

    def live(self, at=None, batch=None, cancel_on=None):
        return honest(self, self.parameters.as_subclass(Aliased), batch, cancel_on)

    monkeypatch.setattr(Node, "gradient", live)
    with pytest.raises(AssertionError):
        require_gradients_of_the_snapshots(script)


def evaluator_with_meddling_hook(parameters):
    """A serial evaluator whose module has the node's parameters overwritten during forward."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    train = Split(torch.randn(6, 4), torch.randn(6, 1))
    evaluator = SerialEvaluator(module, nn.functional.mse_loss, train)

    def meddle(*_):
        parameters.fill_(7.0)

    module[1].register_forward_hook(meddle)
    return evaluator


def test_parameters_that_change_between_forward_and_backward_do_not_spoil_a_gradient():
    start = torch.randn(31, generator=torch.Generator().manual_seed(1))
    indices = torch.arange(6)

    quiet = Job(start.clone(), indices, 0)
    evaluator_with_meddling_hook(torch.zeros(31)).evaluate_one(quiet)

    live = start.clone()
    disturbed = Job(live, indices, 0)
    evaluator_with_meddling_hook(live).evaluate_one(disturbed)
    assert live.eq(7).all()
    assert torch.equal(disturbed.vector, quiet.vector)

    # Without a buffer of its own the evaluation is silently wrong, and this test sees it.
    live = start.clone()
    aliased = evaluator_with_meddling_hook(live)
    for parameter, view in zip(
        aliased.buffer.parameters, aliased.buffer.layout.views(live), strict=True
    ):
        parameter.data = view
    wrong = Job(live, indices, 0)
    aliased.evaluate_one(wrong)
    assert not torch.allclose(wrong.vector, quiet.vector, atol=1e-3)


# Evaluators


@pytest.mark.parametrize("method", [AsyncSGD(), AllReduceSGD(), ADPSGD()])
def test_evaluators_agree(method):
    serial, vmap, pool = (
        simulated(digits(method, evaluator=evaluator)) for evaluator in ("serial", "vmap", "pool")
    )
    torch.testing.assert_close(vmap.vector, serial.vector, rtol=0, atol=1e-5)
    assert vmap.staleness.tolist() == serial.staleness.tolist()
    assert fingerprint(pool) == fingerprint(serial)


def test_the_batched_evaluator_agrees_for_every_number_of_gradients_in_flight():
    for workers in (1, 2, 3, 5, 17, 33):
        serial, vmap = (
            simulated(digits(AllReduceSGD(), steps=2, workers=workers, evaluator=evaluator))
            for evaluator in ("serial", "vmap")
        )
        torch.testing.assert_close(vmap.vector, serial.vector, rtol=0, atol=1e-5)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))

    def forward(self, inputs):
        return self.layers(inputs)


def test_dropout_draws_from_a_stream_of_its_own():
    data = Digits().data()
    problem = Supervised(
        model_factory=Noisy,
        train=data.train,
        test=data.test,
        loss_function=nn.functional.cross_entropy,
        batch_size=16,
    )

    def run():
        torch.rand(1)  # What else draws from torch's generator does not matter.
        return simulated(digits(AsyncSGD(), problem=problem, evaluator="auto"))

    one, two = run(), run()
    assert one.resolved["evaluator"] == "serial"
    assert fingerprint(one) == fingerprint(two)


def test_minibatches_depend_on_rank_and_step_and_not_on_timing():
    def losses(cluster):
        run = simulated(small_experiment(SGD(), steps=10, cluster=cluster))
        table = run.trace.gradients
        return [table["loss"][table["node"] == rank].tolist() for rank in range(4)]

    fast = Cluster(workers=4, compute=EQUAL)
    assert losses(fast) == losses(Cluster(workers=4, slow={2: 5.0}))


# Budgets


def test_a_budget_of_samples_is_met_exactly_when_workers_share_it():
    run = simulated(small_experiment(AsyncSGD(), budget=Budget(samples=4 * 37)))
    assert (run.stop, len(run.trace.gradients), run.metrics[-1].samples) == ("samples", 37, 148)
    assert len(run.trace.steps) == 37


def test_a_budget_of_samples_is_shared_evenly_by_synchronous_workers():
    run = simulated(small_experiment(LocalSGD(), budget=Budget(samples=4 * 43)))
    assert np.bincount(run.trace.gradients["node"]).tolist() == [10, 10, 10, 10]


@pytest.mark.parametrize("method", [AsyncSGD(), ADPSGD(), AllReduceSGD(), LocalSGD()])
def test_a_budget_of_seconds_ends_all_computing(method):
    run = simulated(small_experiment(method, budget=Budget(seconds=0.25)))
    assert run.stop == "seconds"
    assert run.trace.gradients["end_ns"].max() <= 0.25e9
    assert run.seconds > 0.2


def test_whichever_budget_is_spent_first_ends_the_run():
    first, second = (
        simulated(small_experiment(AsyncSGD(), budget=Budget(samples=40, seconds=seconds)))
        for seconds in (100.0, 0.005)
    )
    assert (first.stop, second.stop) == ("samples", "seconds")
    assert len(first.trace.gradients) == 10
    assert len(second.trace.gradients) < 10


def test_nothing_is_evaluated_twice():
    run = simulated(small_experiment(SGD(), steps=20))
    assert len({(row.samples, row.loss) for row in run.metrics}) == len(run.metrics)


def test_an_accuracy_ends_the_run_at_the_evaluation_that_reaches_it():
    run = simulated(
        digits(LocalSGD(), budget=Budget(samples=200_000, accuracy=0.5), evaluate_every=256)
    )
    assert run.stop == "accuracy"
    assert run.metrics[-1].accuracy >= 0.5
    reached = run.reached(0.5)
    assert reached is not None
    assert all(row.accuracy < 0.5 for row in run.metrics if row.samples < reached.samples)
    assert run.metrics[-1].samples < reached.samples + 5 * 64


def test_evaluations_are_made_at_the_interval_and_at_both_ends():
    run = simulated(small_experiment(AsyncSGD(), budget=Budget(samples=400), evaluate_every=100))
    assert [row.samples for row in run.metrics] == [0, 100, 200, 300, 400, 400]
    assert run.metrics[0].seconds == 0
    # The last gradients are still on their way when they have been computed.
    assert [row.steps for row in run.metrics] == pytest.approx([0, 25, 50, 75, 100, 100], abs=4)
    assert run.metrics[-1].steps == 100


@pytest.mark.parametrize("method", [AsyncSGD(), AllReduceSGD(), LocalSGD(local_steps=10), ADPSGD()])
def test_the_last_evaluation_is_of_the_model_that_the_run_returns(method):
    simulation = Simulation(small_experiment(method, steps=20))
    run = simulation.run()
    assert run.metrics[-1].loss == simulation.world.evaluate(run.vector)["loss"]
    assert run.metrics[-1].bytes == simulation.bytes_sent


# A loss that is not finite


def test_divergence_says_where_and_when_and_keeps_what_was_recorded():
    run = Simulation(small_experiment(AsyncSGD(), lr=1e3, steps=500)).run()
    assert run.stop == "error"
    assert run.error.startswith("diverged: worker ")
    assert " s into the run; lower the learning rate" in run.error
    worker = int(run.error.split("worker ")[1].split()[0])
    assert 0 <= worker < 4
    assert len(run.trace.gradients) > 10
    assert len(run.metrics) > 1
    assert math.isfinite(run.metrics[0].loss)
    assert run.vector.shape == (8,)
    # The last gradient recorded came before the one that was not finite.
    when = float(run.error.split(", ")[1].split()[0])
    assert run.trace.gradients["end_ns"].max() / 1e9 <= when + 1e-6


def test_ctrl_c_keeps_the_run_so_far():
    simulation = Simulation(small_experiment(AsyncSGD(), steps=500))
    step, count = simulation.step, iter(range(1000))

    def interrupted():
        if next(count) == 200:
            raise KeyboardInterrupt
        return step()

    simulation.step = interrupted
    run = simulation.run()
    assert (run.stop, run.error) == ("interrupted", None)
    assert 10 < len(run.trace.gradients) < 200
    assert run.metrics[-1].samples == len(run.trace.gradients) * Quadratic().batch_size


# The trace


def test_workers_that_compute_all_the_time_are_busy():
    run = simulated(
        small_experiment(SGD(), cluster=Cluster(workers=4, compute=EQUAL, slow={1: 2.0}))
    )
    assert run.busy == pytest.approx([0.5, 1.0, 0.5, 0.5])


def test_computing_and_waiting_fill_the_time_of_a_worker():
    cluster = Cluster(workers=3, latency=2e-3, bandwidth=1e5)
    run = simulated(small_experiment(AsyncSGD(), workers=3, cluster=cluster, steps=20))
    for rank in range(3):
        spans = sorted(
            (int(row["start_ns"]), int(row["end_ns"]))
            for table in (run.trace.gradients, run.trace.waits)
            for row in table
            if row["node"] == rank
        )
        assert spans[0][0] == 0
        assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_every_message_is_recorded_with_its_bytes():
    run = simulated(small_experiment(AsyncSGD(), workers=3, steps=10))
    messages = run.trace.messages
    kinds = np.array(run.trace.kinds)[messages["kind"]]
    assert sorted(set(kinds)) == ["Pull", "Push"]
    assert (kinds == "Push").sum() == (kinds == "Pull").sum() == 30
    assert messages["bytes"].sum() == run.metrics[-1].bytes
    assert (messages["sent_ns"] <= messages["start_ns"]).all()
    assert (messages["start_ns"] < messages["end_ns"]).all()


def test_workers_may_begin_at_parameters_of_their_own():
    starts = torch.arange(32.0, dtype=torch.double).view(4, 8)
    simulation = Simulation(
        small_experiment(SGD(), lr=0.0, steps=2), initial=lambda rank: starts[rank]
    )
    run = simulation.run()
    assert torch.equal(run.vector, starts.mean(dim=0))
    assert [torch.equal(n.parameters, starts[n.rank]) for n in simulation.nodes] == [True] * 4
    distance = (starts - starts.mean(dim=0)).square().sum(dim=1).mean().sqrt().item()
    assert run.metrics[-1].consensus == pytest.approx(distance)


def test_a_seed_decides_the_timing():
    one, two, other = (
        simulated(small_experiment(StochasticGradientPush(), steps=10, seed=seed)).trace
        for seed in (5, 5, 6)
    )
    assert one.hash() == two.hash() != other.hash()


# Nodes that come back


def spot(*plan, workers=4, **settings):
    faults = tuple(Fault(kind=kind, rank=rank, at=at) for kind, rank, at in plan)
    return Cluster(workers=workers, compute=EQUAL, faults=faults, **settings)


COMES_AND_GOES = (
    ("crash", 1, 0.045),
    ("join", 1, 0.105),
    ("leave", 1, 0.155),
    ("join", 1, 0.205),
    ("join", 2, 0.055),
    ("crash", 2, 0.125),
    ("join", 2, 0.126),
)


@dataclass(frozen=True, kw_only=True)
class Lives(Method):
    """Every worker runs `worker(node)` once in each of its lives."""

    worker: Callable
    survives_loss = True

    async def step(self, node):
        raise AssertionError("there are no rounds")

    def roles(self, node):
        return {"worker": self.worker(node)}


def live(worker, cluster):
    method = Lives(worker=worker)
    simulation = Simulation(
        small_experiment(
            method, workers=cluster.workers, cluster=cluster, budget=Budget(seconds=10)
        )
    )
    assert simulation.run().error is None
    return simulation


RETURNS = [AsyncSGD(), ADPSGD(topology=Complete()), StochasticGradientPush(topology=Complete())]


@pytest.mark.parametrize("method", RETURNS, ids=repr)
def test_a_node_may_come_and_go_several_times(method):
    run = simulated(
        small_experiment(method, cluster=spot(*COMES_AND_GOES), budget=Budget(seconds=0.3))
    )
    ends = {
        rank: run.trace.gradients["end_ns"][run.trace.gradients["node"] == rank] / 1e9
        for rank in range(4)
    }
    for begin, end in ((0.046, 0.105), (0.172, 0.205)):
        assert not ((ends[1] > begin) & (ends[1] < end)).any()
    for begin, end in ((0.0, 0.045), (0.105, 0.155), (0.205, 0.3)):
        assert ((ends[1] > begin) & (ends[1] <= end)).sum() >= 3
    assert ends[2].min() > 0.055
    assert ((ends[2] > 0.055) & (ends[2] < 0.125)).sum() >= 5
    assert ((ends[2] > 0.126) & (ends[2] < 0.3)).sum() >= 10
    assert "departed" not in " ".join(run.notes)


def test_one_who_is_there_at_the_start_and_joins_again_is_there_at_the_start():
    cluster = spot(("crash", 1, 0.05), ("join", 1, 0.1))
    run = simulated(small_experiment(SGD(), cluster=cluster, budget=Budget(seconds=0.2)))
    assert (run.trace.gradients["start_ns"] == 0).sum() == 4


def test_one_who_comes_back_goes_on_with_its_minibatches():
    cluster = spot(("crash", 1, 0.055), ("join", 1, 0.1))
    simulation = Simulation(
        small_experiment(SGD(), lr=0.0, cluster=cluster, budget=Budget(seconds=0.205))
    )
    run = simulation.run()
    table = run.trace.gradients
    losses = table["loss"][table["node"] == 1].tolist()
    quiet = simulated(small_experiment(SGD(), lr=0.0, steps=30, cluster=spot()))
    expected = quiet.trace.gradients
    expected = expected["loss"][expected["node"] == 1].tolist()
    # Its sixth gradient was lost with it.
    assert losses == expected[:5] + expected[6 : 1 + len(losses)]
    assert len(losses) == 15


def test_one_who_comes_back_has_the_model_of_that_moment_and_a_round_of_its_own():
    cluster = spot(("crash", 1, 0.055), ("join", 1, 0.1005))
    simulation = Simulation(
        small_experiment(SGD(), lr=0.1, cluster=cluster, budget=Budget(seconds=0.205))
    )
    placed = []
    place = simulation._place

    def noting(rank, start):
        if simulation.clock.now:
            others = [node.parameters for node in simulation.nodes]
            placed.append((rank, torch.equal(start, torch.stack(others).mean(dim=0))))
        return place(rank, start)

    simulation._place = noting
    simulation.run()
    assert placed == [(1, True)]
    assert {node.first_round.get(1) for node in simulation.nodes} == {11}
    assert all(node.departed == set() for node in simulation.nodes)


def test_nothing_of_an_earlier_life_arrives_in_a_later_one():
    read = []

    async def worker(node):
        if node.rank == 0 and node.now == 0:
            await node.sleep(0.099)  # On its way when node 1 comes back.
            node.send(1, Numbered(1, torch.zeros(1)))
            await node.sleep(0.1)
            node.send(1, Numbered(2, torch.zeros(1)))
        elif node.rank == 1:
            node.send(2, Numbered(10 + round(node.now * 10), torch.zeros(1)))
            read.append((await node.recv(Numbered))[1].number)
        else:
            await node.sleep(0.15)
            read.append((await node.recv(Numbered))[1].number)

    cluster = spot(("crash", 1, 0.05), ("join", 1, 0.1), workers=3, latency=0.01)
    simulation = live(worker, cluster)
    assert read == [11, 2]
    lost = sorted(message.number for _, _, message in simulation.lost_messages)
    assert lost == [1, 10]


def test_whoever_awaits_one_who_is_back_before_it_was_missed_learns_of_it():
    seen = []

    async def worker(node):
        if node.rank == 0:
            try:
                await node.recv(Numbered, source=1)
            except PeerLost as lost:
                seen.append((lost.peer, node.now, sorted(node.departed)))
        elif node.rank == 1:
            await node.sleep(1.0)

    cluster = spot(("crash", 1, 0.05), ("join", 1, 0.06), workers=2, latency=0.5)
    live(worker, cluster)
    assert seen == [(1, 0.06, [])]


def test_a_join_before_it_has_left_calls_the_leaving_off():
    cluster = spot(("leave", 1, 0.051), ("join", 1, 0.052))
    run = simulated(small_experiment(SGD(), cluster=cluster, budget=Budget(seconds=0.205)))
    assert np.bincount(run.trace.gradients["node"]).tolist() == [20] * 4
