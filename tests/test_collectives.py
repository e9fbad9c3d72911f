import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.cluster import Cluster
from offbeat.collectives import ALGORITHMS, Chunk, algorithm_for, chunk_bounds, cost, shared
from offbeat.messages import codec_of
from offbeat.methods import AllReduceSGD, RingAllReduceSGD
from offbeat.parameters import Layout
from offbeat.problems import Digits
from offbeat.runtime.compute import SerialEvaluator
from offbeat.runtime.host import Host
from offbeat.runtime.network import UniformNetwork
from offbeat.runtime.processes import run_processes
from offbeat.runtime.replay import replay_run
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import small_experiment

HEADER = codec_of(Chunk).size(Chunk(torch.empty(0), 0, 0))
FREE = Cluster(workers=4, latency=0.0, bandwidth=float("inf"))
BYTES_SENT = {  # by all members together, of vectors of S bytes, over S
    "ring": lambda n: 2 * (n - 1),
    "whole-ring": lambda n: n * (n - 1),
    "direct": lambda n: n * (n - 1),
    "tree": lambda n: 2 * (n - 1),
    "server": lambda n: 2 * (n - 1),
    "shared": lambda n: n * (n - 1),  # small ones
}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def ns(seconds):
    return round(seconds * 1e9)


@given(st.integers(0, 100), st.integers(1, 20))
def test_chunks_cover_the_vector_and_differ_by_one_at_most(size, parts):
    bounds = chunk_bounds(size, parts)
    lengths = [b - a for a, b in pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(lengths)) == (0, size, parts)
    assert max(lengths) - min(lengths) <= 1


@every_algorithm
@given(st.integers(1, 9), st.integers(0, 20), st.integers(0, 100))
def test_the_mean_is_the_mean(algorithm, n, size, seed):
    values = torch.randn(n, size, generator=torch.Generator().manual_seed(seed)).double()
    mean = ALGORITHMS[algorithm].mean(list(values))
    torch.testing.assert_close(mean, values.mean(dim=0), rtol=0, atol=1e-12)


def test_the_order_of_summation_is_the_documented_one():
    big = [torch.tensor([x], dtype=torch.double) for x in (1e20, 1.0, -1e20, 1.0)]
    # ((x0 + x1) + x2) + x3, and (x0 + x1) + (x2 + x3).
    for algorithm in ("whole-ring", "direct", "server"):
        assert ALGORITHMS[algorithm].mean(big).item() == 0.25
    assert ALGORITHMS["tree"].mean(big).item() == 0.0
    assert ALGORITHMS["ring"].mean(big).item() == 0.25


def reduce_once(script, n, size, delays, algorithm, latency=3e-4, bandwidth=1e5, **settings):
    """All workers enter one all-reduce after their delays: (Simulation, exit times)."""
    values = torch.randn(n, size, generator=torch.Generator().manual_seed(size), dtype=torch.double)
    results, left = {}, {}

    async def worker(node):
        await node.sleep(delays[node.rank])
        results[node.rank] = await node.all_reduce(values[node.rank])
        left[node.rank] = ns(node.now)

    cluster = Cluster(
        workers=n, latency=latency, bandwidth=bandwidth, all_reduce=algorithm, **settings
    )
    simulation = script(worker, workers=n, cluster=cluster)
    assert simulation.result.error is None
    expected = ALGORITHMS[algorithm].mean(list(values))
    assert len(results) == n
    for result in results.values():
        assert torch.equal(result, expected)
    return simulation, [left[rank] for rank in range(n)]


@pytest.mark.parametrize("collectives", ["priced", "messages"])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
@every_algorithm
def test_an_all_reduce_takes_the_time_of_its_closed_form(script, algorithm, n, collectives):
    latency, bandwidth, size = 2e-4, 1e6, 5 * n
    _, left = reduce_once(
        script, n, size, [0.0] * n, algorithm, latency, bandwidth, collectives=collectives
    )
    # Each chunk of the ring has a header of its own.
    headers = n if algorithm == "ring" else 1
    expected = cost(algorithm, n, 8 * size + headers * HEADER, latency, bandwidth)
    assert max(left) == ns(expected)


@pytest.mark.parametrize("n", [3, 5, 6, 7, 9, 11])
@given(st.floats(0, 1e-2), st.floats(1e3, 1e9))
@settings(max_examples=20)
def test_a_tree_that_is_not_full_takes_at_most_its_bound(n, latency, bandwidth):
    values = torch.zeros(50)
    network = UniformNetwork(n, latency, bandwidth)
    price = ALGORITHMS["tree"].price(network, range(n), [0] * n, values)
    size = HEADER + 4 * 50
    assert max(price.finished) <= ns(cost("tree", n, size, latency, bandwidth)) + 10


@pytest.mark.parametrize("collectives", ["priced", "messages"])
@pytest.mark.parametrize("n", [2, 4, 7])
@every_algorithm
def test_an_all_reduce_moves_its_share_of_the_bytes(script, algorithm, n, collectives):
    size = 5 * n
    simulation, _ = reduce_once(script, n, size, [0.0] * n, algorithm, collectives=collectives)
    messages = BYTES_SENT[algorithm](n) * (n if algorithm == "ring" else 1)
    payload = simulation.bytes_sent - messages * HEADER
    assert payload == BYTES_SENT[algorithm](n) * 8 * size


@every_algorithm
@settings(max_examples=60)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.floats(0, 0.02), min_size=n, max_size=n))
    ),
    st.integers(0, 23),
    st.sampled_from([0.0, 1e-5, 3e-3]),
    st.sampled_from([3e3, 1e5, math.inf]),
)
def test_the_price_of_a_collective_is_the_time_and_bytes_of_its_messages(
    script, algorithm, entering, size, latency, bandwidth
):
    n, delays = entering
    priced, left_priced = reduce_once(
        script, n, size, delays, algorithm, latency, bandwidth, collectives="priced"
    )
    messages, left = reduce_once(
        script, n, size, delays, algorithm, latency, bandwidth, collectives="messages"
    )
    assert left_priced == left
    assert priced.bytes_sent == messages.bytes_sent
    sent = [np.zeros(n), np.zeros(n)]
    for simulation, total in zip((priced, messages), sent, strict=True):
        table = simulation.result.trace.messages
        np.add.at(total, table["source"], table["bytes"])
    assert sent[0].tolist() == sent[1].tolist()


def test_two_collectives_in_a_row_are_priced_as_their_messages(script):
    def run(algorithm, collectives):
        left = {}

        async def worker(node):
            for _ in range(3):
                await node.sleep(0.001 * node.rank)
                await node.all_reduce(torch.zeros(20))
                left.setdefault(node.rank, []).append(ns(node.now))

        cluster = Cluster(
            workers=5,
            latency=3e-4,
            bandwidth=1e5,
            all_reduce=algorithm,
            collectives=collectives,
        )
        assert script(worker, workers=5, cluster=cluster).result.error is None
        return left

    for algorithm in ALGORITHMS:
        assert run(algorithm, "priced") == run(algorithm, "messages")


def test_an_unknown_algorithm_has_no_cost():
    with pytest.raises(ValueError, match="no all-reduce is called 'star'; there are ring, whole-"):
        cost("star", 4, 1e6, 0.0, 1e6)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,)])
def test_any_shape_is_reduced(script, shape):
    means = []

    async def worker(node):
        means.append(await node.all_reduce(torch.full(shape, float(node.rank))))

    for collectives in ("priced", "messages"):
        cluster = Cluster(workers=3, collectives=collectives)
        assert script(worker, workers=3, cluster=cluster).result.error is None
    assert len(means) == 6
    for mean in means:
        assert torch.equal(mean, torch.full(shape, 1.0))


@pytest.mark.parametrize("collectives", ["priced", "messages"])
def test_a_group_reduces_without_the_others(script, collectives):
    means = {}

    async def worker(node):
        group = [0, 2] if node.rank % 2 == 0 else [3, 1]
        means[node.rank] = (await node.all_reduce(torch.tensor([node.rank + 1.0]), group)).item()

    cluster = Cluster(workers=4, collectives=collectives)
    assert script(worker, workers=4, cluster=cluster).result.error is None
    assert means == {0: 2.0, 2: 2.0, 1: 3.0, 3: 3.0}


@pytest.mark.parametrize("collectives", ["priced", "messages"])
def test_collectives_of_different_keys_may_be_open_in_any_order(script, collectives):
    means = {}

    async def reduce(node, key):
        return await node.all_reduce(torch.tensor([10.0 * key + node.rank]), key=key)

    async def worker(node):
        order = [1, 2, 3] if node.rank == 0 else [3, 1, 2]
        open_ones = {key: node.start(reduce(node, key)) for key in order}
        means[node.rank] = [(await open_ones[key]).item() for key in (2, 3, 1)]

    cluster = Cluster(workers=2, collectives=collectives)
    assert script(worker, cluster=cluster).result.error is None
    assert means == {0: [20.5, 30.5, 10.5], 1: [20.5, 30.5, 10.5]}


@pytest.mark.parametrize("collectives", ["priced", "messages"])
def test_calls_under_one_key_are_matched_in_order(script, collectives):
    means = {0: [], 1: []}

    async def worker(node):
        for round in range(3):
            await node.sleep(0.01 * node.rank)
            x = torch.tensor([round * 10.0 + node.rank])
            means[node.rank].append((await node.all_reduce(x)).item())

    assert script(worker, cluster=Cluster(workers=2, collectives=collectives)).result.error is None
    assert means == {0: [0.5, 10.5, 20.5], 1: [0.5, 10.5, 20.5]}


@pytest.mark.parametrize("collectives", ["priced", "messages"])
def test_a_barrier_holds_everyone_until_the_last_has_come(script, collectives):
    passed = {}

    async def worker(node):
        await node.sleep(0.1 * node.rank)
        await node.barrier()
        passed[node.rank] = node.now

    cluster = Cluster(workers=4, collectives=collectives)
    assert script(worker, workers=4, cluster=cluster).result.error is None
    assert min(passed.values()) >= 0.3


@pytest.mark.parametrize("collectives", ["priced", "messages"])
def test_what_is_reduced_is_what_was_given_then(script, collectives):
    means = []

    async def worker(node):
        x = torch.ones(4)
        reduced = node.start(reduce(node, x))
        await node.sleep(0.0)
        x.zero_()
        means.append(await reduced)

    async def reduce(node, x):
        return await node.all_reduce(x)

    cluster = Cluster(workers=2, latency=0.1, collectives=collectives)
    assert script(worker, cluster=cluster).result.error is None
    assert all(mean.eq(1).all() for mean in means)


def test_a_group_without_the_caller_is_refused(script):
    async def worker(node):
        await node.all_reduce(torch.ones(1), [1 - node.rank])

    assert "node 0 is not in the group (1,)" in script(worker).result.error


def test_different_shapes_are_refused_with_both(script):
    async def worker(node):
        await node.all_reduce(torch.ones(1 + node.rank))

    error = script(worker).result.error
    assert error == "all_reduce over 2 nodes was given different shapes: (1,), (2,)"


@pytest.mark.parametrize("cluster", [FREE, Cluster(workers=4)], ids=["free", "1 Gbit/s"])
def test_the_ring_in_messages_is_the_collective_to_the_bit(cluster):
    def run(method, **settings):
        settings = vars(cluster) | settings
        simulation = Simulation(
            small_experiment(method, steps=20, cluster=Cluster(**settings), momentum=0.9)
        )
        result = simulation.run()
        assert result.error is None
        return result

    runs = [
        run(AllReduceSGD()),
        run(AllReduceSGD(), collectives="messages"),
        run(RingAllReduceSGD()),
    ]
    for other in runs[1:]:
        assert torch.equal(other.vector, runs[0].vector)
        assert other.seconds == runs[0].seconds
        assert other.metrics[-1].bytes == runs[0].metrics[-1].bytes
        # Nodes that finish in the same nanosecond may do so in either order.
        for table in ("gradients", "steps"):
            assert sorted(other.trace.rows[table]) == sorted(runs[0].trace.rows[table])


@pytest.mark.parametrize("algorithm", ["whole-ring", "direct", "tree", "server", "shared"])
def test_processes_and_replays_use_the_experiments_algorithm(algorithm, tmp_path):
    cluster = Cluster(workers=3, all_reduce=algorithm)
    planned = small_experiment(
        AllReduceSGD(), workers=3, steps=20, cluster=cluster, evaluator="serial"
    )
    predicted = Simulation(planned).run()
    run = run_processes(planned, tmp_path)
    assert run.error is None
    assert torch.equal(run.vector, predicted.vector)
    assert run.metrics[-1].bytes == predicted.metrics[-1].bytes
    assert torch.equal(replay_run(planned, tmp_path / "journals").vector, run.vector)


@pytest.mark.parametrize("collectives", ["priced", "messages"])
@pytest.mark.parametrize(("n", "size"), [(2, 600_000), (3, 150_000), (4, 200_000), (5, 90_000)])
def test_members_of_one_machine_share_large_vectors_out(script, n, size, collectives):
    latency, bandwidth = 2e-4, 1e9
    simulation, left = reduce_once(
        script, n, size, [0.0] * n, "shared", latency, bandwidth, collectives=collectives
    )
    expected = cost("shared", n, 8 * size + n * HEADER, latency, bandwidth)
    assert max(left) == ns(expected)
    messages = 2 * n * (n - 1)
    assert simulation.bytes_sent - messages * HEADER == 2 * (n - 1) * 8 * size


def test_chunks_of_uneven_size_are_priced_as_their_messages(script):
    size = 150_001
    priced, left_priced = reduce_once(script, 3, size, [0.0] * 3, "shared", collectives="priced")
    messages, left = reduce_once(script, 3, size, [0.0] * 3, "shared", collectives="messages")
    assert left_priced == left
    assert priced.bytes_sent == messages.bytes_sent


@given(st.integers(2, 6), st.integers(0, 100))
def test_a_mean_over_blocks_has_the_bits_of_one_over_all(n, seed):
    size = shared.BLOCK + 3
    terms = list(torch.randn(n, size, generator=torch.Generator().manual_seed(seed)))
    out = torch.empty(size)
    shared.mean_of(terms, out)
    assert torch.equal(out, ALGORITHMS["direct"].mean(terms))


@dataclass(frozen=True, kw_only=True)
class Scaling(AllReduceSGD):
    """All-reduce SGD that writes to the mean, by a factor that differs from worker to worker."""

    async def step(self, node):
        gradient = await node.gradient()
        mean = await node.all_reduce(gradient)
        mean *= 1 + node.rank
        node.apply(mean, taken_at=gradient.version)
        whole = await node.all_reduce(node.parameters, key=1)
        node.load(whole)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_mean_of_a_large_vector_is_each_member_s_own(workers, tmp_path):
    planned = small_experiment(
        Scaling(), workers=workers, steps=6, problem=Digits(hidden=8192), evaluator="serial"
    )
    assert 4 * Layout.of(planned.problem.model()).size > shared.WHOLE
    run = run_processes(planned, tmp_path)
    assert run.error is None
    assert torch.equal(run.vector, Simulation(planned).run().vector)
    assert torch.equal(replay_run(planned, tmp_path / "journals").vector, run.vector)


def test_a_ring_is_for_members_that_are_not_on_one_machine():
    assert algorithm_for("ring", on_one_machine=True) is ALGORITHMS["shared"]
    assert algorithm_for("ring", on_one_machine=False) is ALGORITHMS["ring"]
    for name in ALGORITHMS:
        if name != "ring":
            assert algorithm_for(name, on_one_machine=True) is ALGORITHMS[name]


@pytest.mark.parametrize(("machines", "chunks"), [([5, 5], 1), ([0, 7], 2)])
def test_hosts_and_replays_choose_by_the_machines(machines, chunks, tmp_path):
    steps = 5
    planned = small_experiment(AllReduceSGD(), workers=2, steps=steps, evaluator="serial")
    world = World(planned)
    evaluator = SerialEvaluator(world.make_module(), world.problem.loss, world.data.train)
    journals = tmp_path / "journals"
    journals.mkdir()
    with contextlib.ExitStack() as stack:
        hosts = [
            Host(
                planned.method,
                [0, 1],
                index,
                listen=f"unix:{tmp_path / str(index)}",
                secret=b"test",
                may_compute=lambda node, request: request.step < steps,
                on_failure=pytest.fail,
                journals=journals,
                machines=machines,
            )
            for index in (0, 1)
        ]
        for host in hosts:
            stack.callback(host.abort)
        meet(hosts)
        nodes = [world.node(host.index, host, world.initial) for host in hosts]
        for host, node in zip(hosts, nodes, strict=True):
            host.add(node)
            host.begin(time.monotonic_ns())
        for _ in range(steps):
            asked = [host.next_request(timeout=10.0) for host in hosts]
            for host, (task, request) in zip(hosts, asked, strict=True):
                job = world.job(host.index, request)
                evaluator.evaluate_one(job)
                host.fulfil(task, request, job.vector, job.loss, 0)
        for host in hosts:
            with host.changed:
                assert host.changed.wait_for(lambda host=host: host.parked, timeout=10.0)
        sent = [host.records.sent for host in hosts]
    assert sent == [{(0, 1): chunks * steps}, {(1, 0): chunks * steps}]
    assert torch.equal(nodes[0].parameters, nodes[1].parameters)
    assert torch.equal(replay_run(planned, journals).vector, nodes[0].parameters)
    assert torch.equal(Simulation(planned).run().vector, nodes[0].parameters)


def meet(hosts):
    addresses = {host.index: host.transport.address for host in hosts}
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda host: host.connect(addresses, timeout=10.0), hosts))
