"""HogWild++: what clusters exchange, when, and that nothing else differs from Hogwild!."""

import dataclasses

import numpy as np
import pytest

from offbeat.hogwild import (
    AccessTimes,
    GraphCut,
    MatrixCompletion,
    Samples,
    Settings,
    SparseLeastSquares,
    SparseSVM,
    circulant,
    linear_instance,
    simulate,
    train,
)
from offbeat.hogwild.hypergraph import Hypergraph
from offbeat.hogwild.kinds import SQUARED
from offbeat.hogwild.loops import Rules, work
from offbeat.hogwild.ring import default_hold, exchange, ring_of, shares
from offbeat.hogwild.simulated import Interleaved
from offbeat.hogwild.training import no_watch, shared_by_threads

SMALL = SparseSVM(rows=600, features=3000, nonzeros=20)


def test_shares_are_the_paper_s():
    assert shares(1) == (1.0, 0.0)
    golden = (5**0.5 - 1) / 2
    assert shares(2) == pytest.approx((golden, 1 - golden))
    for clusters in (3, 4, 10, 100):
        beta, mixing = shares(clusters)
        assert beta + beta**clusters == pytest.approx(1)
        assert mixing == pytest.approx(1 - beta ** (clusters - 1))


def exchanged(x, snapshots, cluster):
    """The exchange, as the paper writes it; both are changed."""
    beta, mixing = shares(len(x))
    following = (cluster + 1) % len(x)
    change, there = x[cluster] - snapshots[cluster], x[following].copy()
    x[following] = there + beta * change
    x[cluster] = mixing * there + (1 - mixing) * x[cluster] + (beta + mixing - 1) * change
    snapshots[cluster] = x[cluster]


@pytest.mark.parametrize("problem", [SMALL, MatrixCompletion(rows=30, columns=30, entries=200)])
@pytest.mark.parametrize("clusters", [2, 3])
def test_an_exchange_is_the_paper_s(problem, clusters):
    costs = problem.build(np.float64).costs
    coordinates = len(problem.build(np.float64).start)
    rng = np.random.default_rng(0)
    ring = ring_of(rng.standard_normal((clusters, coordinates)), 10)
    ring.snapshots[:] = rng.standard_normal((clusters, coordinates))
    x, snapshots = ring.x.copy(), ring.snapshots.copy()
    for cluster in range(clusters):
        exchange(costs, ring, cluster)
        exchanged(x, snapshots, cluster)
        np.testing.assert_allclose(ring.x, x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ring.snapshots, snapshots, rtol=1e-12, atol=1e-12)


def test_what_is_exchanged_of_a_cut_stays_on_the_simplex():
    costs = GraphCut(rows=4, columns=4).build(np.float64).costs
    rng = np.random.default_rng(0)
    ring = ring_of(rng.dirichlet([0.1] * costs.ways, (3, 16)).reshape(3, -1), 10)
    ring.snapshots[:] = rng.dirichlet([0.1] * costs.ways, (3, 16)).reshape(3, -1)
    x, snapshots = ring.x.copy(), ring.snapshots.copy()
    exchange(costs, ring, 0)
    exchanged(x, snapshots, 0)
    points = ring.x.reshape(-1, costs.ways)
    np.testing.assert_allclose(points.sum(1), 1)
    assert points.min() >= 0
    assert np.array_equal(ring.snapshots[0], ring.x[0])
    inside = (x.reshape(-1, costs.ways) > 0).all(1)
    # A projection moves points that are on the plane by nothing, or on to the simplex.
    on_plane = inside & np.isclose(x.reshape(-1, costs.ways).sum(1), 1)
    assert on_plane.any()
    assert not inside.all()
    np.testing.assert_allclose(points[on_plane], x.reshape(-1, costs.ways)[on_plane])


def instance_of(rows: int):
    """Least squares whose samples all touch three coordinates."""
    rng = np.random.default_rng(1)
    edges = circulant(rows, 20, np.array([0, 3, 7]))
    samples = Samples(
        hypergraph=edges, values=rng.standard_normal(3 * rows), labels=rng.standard_normal(rows)
    )
    return linear_instance(samples, loss=SQUARED, precision=np.float64)


def step_on(instance, x, edge, seen=None):
    """A step by the gradient where x was seen, or is."""
    costs = instance.costs
    own = slice(costs.offsets[edge], costs.offsets[edge + 1])
    touched, values = costs.vertices[own], costs.values[own]
    score = values @ (x if seen is None else seen)[touched]
    x[touched] -= 0.1 * (score - costs.labels[edge]) * values


@pytest.mark.parametrize("hold", [1, 3])
@pytest.mark.parametrize("workers", [2, 3])
def test_simulated_clusters_are_the_paper_s_pseudocode(workers, hold):
    """All edges take equally long, and workers finish theirs one after the other."""
    instance = instance_of(20 * workers)
    order = np.random.default_rng(2).permutation(20 * workers)
    given = [order[k::workers] for k in range(workers)]
    slower = np.ones((workers, 20))
    slower[:, 0] += np.arange(workers) / workers
    settings = Settings(scheme="hogwild++", workers=workers, hold=hold)
    times = AccessTimes(compute=1.0, transfer=0, exchange=0, jitter=0)
    x = np.zeros((workers, 20))
    simulated = Interleaved(instance, settings, times, x)
    expected, snapshots = np.zeros((workers, 20)), np.zeros((workers, 20))
    token, held, exchanges = 0, 0, 0
    for _ in range(2):
        simulated.epoch(0.1, given, slower.ravel())
        seen = [row.copy() for row in expected]
        for place in range(20):
            for worker in range(workers):
                step_on(instance, expected[worker], given[worker][place], seen[worker])
                if token == worker and held > 0:
                    held += 1
                    if held > hold:
                        token, held = (token + 1) % workers, 0
                elif token == worker:
                    exchanged(expected, snapshots, worker)
                    held, exchanges = 1, exchanges + 1
                if token == worker and held > 0 and place == 19:
                    token, held = (token + 1) % workers, 0
                seen[worker] = expected[worker].copy()
        for worker in range(workers):
            exchanged(expected, snapshots, worker)
    assert exchanges > 5
    np.testing.assert_allclose(x, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("thread", [0, 1])
def test_a_thread_exchanges_while_it_holds_the_token_and_passes_it_on(thread):
    instance = instance_of(20)
    ring = ring_of(np.zeros((2, 20)), 5)
    ring.x[1 - thread] = 0.5
    x, snapshots = ring.x.copy(), ring.snapshots.copy()
    order = np.random.default_rng(3).permutation(20)
    rules = Rules(locked=0, atomic=False, delay_ns=0, most=3, chunk=4)

    def go(edges):
        work(
            instance.costs,
            edges,
            ring.x[thread],
            0.1,
            rules,
            shared_by_threads(20),
            no_watch(2),
            ring,
            thread,
        )

    # Without the token it works alone.
    ring.token[0] = 1 - thread
    go(order)
    for edge in order:
        step_on(instance, x[thread], edge)
    np.testing.assert_allclose(ring.x, x, rtol=1e-12)
    # With it there is an exchange after the first edge.
    ring.token[0] = thread
    go(order)
    for place, edge in enumerate(order):
        step_on(instance, x[thread], edge)
        if place == 0:
            exchanged(x, snapshots, thread)
    np.testing.assert_allclose(ring.x, x, rtol=1e-12)
    assert ring.token[0] == 1 - thread
    # It is passed on at the end too, if it is still held.
    ring.token[0] = thread
    go(order[:2])
    assert ring.token[0] == 1 - thread


@pytest.mark.parametrize("hold", [1, 3])
def test_a_token_is_held_for_so_many_edges(hold):
    """What passes it on ends this thread: the token is what tells threads to stop."""
    edges = Hypergraph(offsets=np.arange(21), vertices=np.arange(20, dtype=np.int32), count=20)
    samples = Samples(hypergraph=edges, values=np.ones(20), labels=np.ones(20))
    instance = linear_instance(samples, loss=SQUARED, precision=np.float64)
    ring = ring_of(np.zeros((2, 20)), hold)
    rules = Rules(locked=0, atomic=False, delay_ns=0, most=1, chunk=4)
    shared = shared_by_threads(20)._replace(stop=ring.token)
    work(
        instance.costs, np.arange(20), ring.x[0], 0.1, rules, shared, no_watch(2), ring, 0,
    )  # fmt: skip
    # One before the exchange, and then so many.
    assert np.count_nonzero(ring.x[0]) == 1 + hold
    assert ring.token[0] == 1


def test_one_cluster_is_hogwild():
    settings = Settings(workers=6, epochs=3)
    plain = simulate(SMALL, settings)
    one = simulate(SMALL, dataclasses.replace(settings, scheme="hogwild++", clusters=1))
    assert np.array_equal(plain.x, one.x)
    assert plain.seconds == one.seconds
    for name in ("updates", "collided", "lost"):
        found = getattr(one.collisions, name)
        assert np.array_equal(getattr(plain.collisions, name), found)


def test_clusters_collide_only_within():
    settings = Settings(scheme="hogwild++", workers=8, epochs=2)
    whole = SparseSVM(rows=600, features=200, nonzeros=20)
    rates = {}
    for clusters in (1, 2, 8):
        met = simulate(whole, dataclasses.replace(settings, clusters=clusters)).collisions
        rates[clusters] = met.collision_rate
        assert met.updates.sum() == 2 * len(whole.instance().costs.vertices)
    assert rates[8] == 0
    assert 0.05 < rates[2] < rates[1]


def test_exchanges_take_their_time():
    settings = Settings(scheme="hogwild++", workers=2, epochs=1, hold=50)
    free = AccessTimes(transfer=0, exchange=0, jitter=0)
    seconds = [
        simulate(SMALL, settings, times).seconds
        for times in (free, dataclasses.replace(free, exchange=1e-9))
    ]
    # In 300 edges each exchanges 3,000 coordinates three times, and once at the end.
    assert seconds[1] - seconds[0] == pytest.approx(5 * 3000e-9, rel=0.01)


def test_after_an_exchange_both_x_are_in_the_cache_of_whoever_made_it():
    own = Hypergraph(offsets=np.arange(0, 15, 3), vertices=np.arange(12, dtype=np.int32), count=12)
    samples = Samples(hypergraph=own, values=np.ones(12), labels=np.ones(4))
    instance = linear_instance(samples, loss=SQUARED, precision=np.float64)
    times = AccessTimes(
        read=1.0, compute=1.0, load=1.0, store=1.0, transfer=100.0, exchange=0, jitter=0
    )
    settings = Settings(scheme="hogwild++", workers=2, hold=5)
    together = Interleaved(instance, settings, times, np.zeros((2, 12)))
    # An edge takes 12. After the first the first worker exchanges; then the second reads three
    # vertices, and loads them, from the first one's cache.
    taken = together.epoch(0.1, [np.array([0, 1]), np.array([2, 3])], np.ones(4))
    assert taken == 2 * 12 + 6 * 100


@pytest.mark.parametrize("run", [train, simulate])
@pytest.mark.parametrize("workers", [2, 6])
def test_it_ends_where_serial_does(run, workers):
    problem = SparseLeastSquares(rows=6000, features=1500, nonzeros=20, noise=0.3)
    serial = train(problem, Settings(scheme="serial", workers=1))
    for clusters in (2, None):
        settings = Settings(scheme="hogwild++", workers=workers, clusters=clusters)
        found = run(problem, settings)
        assert found.objective == pytest.approx(serial.objective, rel=0.02)


def test_the_token_is_held_for_as_long_as_exchanges_are_cheap():
    assert default_hold(47_236, 75, 2) == 2520
    assert default_hold(47_236, 75, 4) == 1260
    assert default_hold(100, 20, 2) == 64
    # The problem's own, in the outcome.
    assert train(SMALL, Settings(scheme="hogwild++", epochs=1)).settings.hold == 592
    assert train(SMALL, Settings(epochs=1)).settings.hold is None


def test_there_are_few_clusters_unless_more_are_asked_for():
    for workers, clusters in ((1, 1), (3, 3), (9, 4)):
        assert Settings(scheme="hogwild++", workers=workers).copies == clusters
    assert Settings(scheme="hogwild++", workers=9, clusters=6).copies == 6
    assert Settings(workers=9, clusters=6).copies == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clusters": 3}, "3 clusters of 2 workers: choose fewer"),
        ({"clusters": 0}, "clusters is 0; it must be at least 1"),
        ({"hold": 0}, "hold is 0; it must be at least 1"),
        ({"watch": True}, r"hogwild\+\+ has several x: there is nothing to watch"),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"scheme": "hogwild++"} | changed)
