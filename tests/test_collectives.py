import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.cluster import Cluster
from offbeat.collectives import Chunk, chunk_bounds, ring_mean
from offbeat.message import codec_of
from offbeat.methods import AllReduceSGD, RingAllReduceSGD
from offbeat.runtime.simulated import Simulation
from offbeat.testing import small_experiment

HEADER = codec_of(Chunk).size(Chunk(torch.empty(0), 0, 0))
FREE = Cluster(workers=4, latency=0.0, bandwidth=float("inf"))


def ns(seconds):
    return round(seconds * 1e9)


@given(st.integers(0, 100), st.integers(1, 20))
def test_chunks_cover_the_vector_and_differ_by_one_at_most(size, parts):
    bounds = chunk_bounds(size, parts)
    lengths = [b - a for a, b in pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(lengths)) == (0, size, parts)
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 7), st.integers(0, 20), st.integers(0, 100))
def test_ring_mean_is_the_mean(n, size, seed):
    values = torch.randn(n, size, generator=torch.Generator().manual_seed(seed)).double()
    torch.testing.assert_close(ring_mean(list(values)), values.mean(dim=0), rtol=0, atol=1e-12)


def reduce_once(script, n, size, delays, collectives, latency=3e-4, bandwidth=1e5):
    """All workers enter one all-reduce after their delays: (Simulation, results, exit times)."""
    values = torch.randn(n, size, generator=torch.Generator().manual_seed(size), dtype=torch.double)
    results, left = {}, {}

    async def worker(node):
        await node.sleep(delays[node.rank])
        results[node.rank] = await node.all_reduce(values[node.rank])
        left[node.rank] = ns(node.now)

    cluster = Cluster(workers=n, latency=latency, bandwidth=bandwidth, collectives=collectives)
    simulation = script(worker, workers=n, cluster=cluster)
    assert simulation.result.error is None
    for result in results.values():
        assert torch.equal(result, ring_mean(list(values)))
    return simulation, [left[rank] for rank in range(n)]


@pytest.mark.parametrize("collectives", ["priced", "messages"])
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_a_ring_all_reduce_takes_the_time_of_the_closed_form(script, n, collectives):
    latency, bandwidth, size = 2e-4, 1e6, 5 * n
    _, left = reduce_once(script, n, size, [0.0] * n, collectives, latency, bandwidth)
    message = HEADER + 8 * size // n
    assert left == [2 * (n - 1) * (ns(latency) + ns(message / bandwidth))] * n


@pytest.mark.parametrize("collectives", ["priced", "messages"])
@pytest.mark.parametrize("n", [2, 4, 7])
def test_a_ring_all_reduce_moves_its_share_of_the_bytes(script, n, collectives):
    size = 5 * n
    simulation, _ = reduce_once(script, n, size, [0.0] * n, collectives)
    payload = simulation.bytes_sent - n * 2 * (n - 1) * HEADER
    assert payload / n == 2 * (n - 1) / n * (8 * size)


@settings(max_examples=60)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.floats(0, 0.02), min_size=n, max_size=n))
    ),
    st.integers(0, 23),
    st.sampled_from([0.0, 1e-5, 3e-3]),
    st.sampled_from([3e3, 1e5, math.inf]),
)
def test_the_price_of_a_collective_is_the_time_of_its_messages(
    script, entering, size, latency, bandwidth
):
    n, delays = entering
    priced, left_priced = reduce_once(script, n, size, delays, "priced", latency, bandwidth)
    messages, left = reduce_once(script, n, size, delays, "messages", latency, bandwidth)
    assert left_priced == left
    assert priced.bytes_sent == messages.bytes_sent


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
