"""Workers under virtual time: what they do, what they lose, and the paper's orderings."""

import dataclasses

import numpy as np
import pytest

from offbeat.hogwild import (
    SCHEMES,
    AccessTimes,
    MatrixCompletion,
    Perceptron,
    Samples,
    Settings,
    SparseLeastSquares,
    SparseSVM,
    circulant,
    linear_instance,
    simulate,
    train,
)
from offbeat.hogwild.kinds import HINGE, SQUARED
from offbeat.hogwild.schemes import orders
from offbeat.hogwild.simulated import Interleaved

SMALL = SparseSVM(rows=600, features=3000, nonzeros=20)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_settings_give_the_same_bits(scheme):
    settings = Settings(scheme=scheme, workers=1 if scheme == "serial" else 7, epochs=2)
    one, two = simulate(SMALL, settings), simulate(SMALL, settings)
    assert np.array_equal(one.x, two.x)
    assert one.seconds == two.seconds
    other = simulate(SMALL, dataclasses.replace(settings, seed=1))
    assert not np.array_equal(one.x, other.x)


@pytest.mark.parametrize(
    "problem", [SMALL, MatrixCompletion(rows=50, columns=50, entries=500), Perceptron(hidden=2)]
)
def test_one_worker_is_one_thread_to_the_bit(problem):
    settings = Settings(scheme="serial", workers=1, epochs=2)
    simulated = simulate(problem, settings)
    assert np.array_equal(simulated.x, train(problem, settings).x)
    assert simulated.collisions.collided.sum() == simulated.collisions.lost.sum() == 0
    assert simulated.collisions.max_lag == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_end_where_serial_does(scheme):
    serial = simulate(SMALL, Settings(scheme="serial", workers=1))
    found = simulate(SMALL, Settings(scheme=scheme, workers=1 if scheme == "serial" else 10))
    assert found.objective == pytest.approx(serial.objective, rel=0.02)


def test_one_worker_s_time_is_the_closed_form():
    times = AccessTimes(jitter=0.3)
    settings = Settings(scheme="serial", workers=1, epochs=1, delay=1e-7)
    serial = simulate(SMALL, settings, times)
    sizes = SMALL.instance().sizes()
    (order,) = orders(600, settings, np.random.default_rng(0))
    slower = np.exp(0.3 * np.random.default_rng([0, 1]).standard_normal(600))
    # A read, the gradient, a load and a store of each vertex.
    expected = ((3e-9 + 1e-9 * slower) * sizes[order] + 1e-7).sum()
    assert serial.seconds == pytest.approx(expected, rel=1e-9)
    averaged = simulate(SMALL, dataclasses.replace(settings, scheme="averaging"), times)
    assert averaged.seconds == pytest.approx(serial.seconds, rel=1e-9)


def two_workers(times: AccessTimes, **changed):
    """Two edges on the same three coordinates, by a worker each; x is 1 where an update is kept."""
    edges = circulant(2, 3, np.arange(3))
    samples = Samples(hypergraph=edges, values=np.ones(6), labels=np.full(2, 1e12))
    instance = linear_instance(samples, loss=SQUARED, precision=np.float64)
    settings = Settings(workers=2, epochs=1, **changed)
    x = instance.start.copy()
    shares = [np.array([0]), np.array([1])]
    together = Interleaved(instance, settings, times, x[None])
    taken = together.epoch(1e-12, shares, np.ones(2))
    return np.round(x), taken, together.collisions()


EVEN = AccessTimes(read=1.0, compute=1.0, load=1.0, store=1.0, transfer=0, lock=0, handoff=0)


def test_two_equal_workers_write_over_each_other():
    x, taken, met = two_workers(EVEN)
    # Both read at 0, 1, 2, compute until 6, and load and store at the same instants.
    assert taken == 12
    assert x.tolist() == [1, 1, 1]
    assert met.updates.tolist() == [2, 2, 2]
    assert met.lost.tolist() == [1, 1, 1]
    assert met.collided.tolist() == [1, 1, 1]


def test_atomic_adds_lose_nothing_but_collide():
    x, taken, met = two_workers(EVEN, adds="atomic")
    assert taken == 12
    assert x.tolist() == [2, 2, 2]
    assert met.lost.tolist() == [0, 0, 0]
    assert met.collided.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("scheme", "taken"), [("vector-lock", 18), ("locked", 18)])
def test_locks_make_the_second_wait(scheme, taken):
    x, seconds, met = two_workers(EVEN, scheme=scheme)
    assert seconds == taken
    assert x.tolist() == [2, 2, 2]
    assert met.lost.tolist() == [0, 0, 0]
    # It had read before the first one wrote.
    assert met.collided.tolist() == [1, 1, 1]
    assert (met.mean_lag, met.max_lag) == (0.5, 1)


def test_times_of_locks_and_transfers():
    costly = dataclasses.replace(EVEN, lock=10.0, transfer=100.0, handoff=1000.0)
    # Read 3, compute 3; the lock, 10; three loads and stores; then the second: the lock with a
    # handoff, and each load with a transfer.
    _, seconds, _ = two_workers(costly, scheme="vector-lock")
    assert seconds == 6 + 10 + 6 + 1010 + 6 + 300
    # Three locks, which the second takes one by one with a transfer each.
    _, seconds, _ = two_workers(costly, scheme="locked")
    assert seconds == 6 + 30 + 6 + 330 + 6 + 300


@pytest.mark.parametrize("labels", [[1, -1], [-1, 1]])
@pytest.mark.parametrize("scheme", ["hogwild", "locked", "vector-lock", "round-robin"])
def test_a_gradient_that_moves_nothing_is_not_written(scheme, labels):
    """Beyond the margin, without a penalty; the other edge of the two is written."""
    edges = circulant(2, 3, np.arange(3))
    samples = Samples(hypergraph=edges, values=np.ones(6), labels=np.array(labels))
    instance = linear_instance(samples, loss=HINGE, precision=np.float64)
    x = np.full(3, 5.0)
    together = Interleaved(instance, Settings(workers=2, scheme=scheme), EVEN, x[None])
    taken = together.epoch(0.25, [np.array([0]), np.array([1])], np.ones(2))
    assert taken == 12
    assert x.tolist() == [4.75] * 3
    met = together.collisions()
    assert met.updates.tolist() == [1, 1, 1]
    assert met.collided.sum() == met.lost.sum() == met.max_lag == 0


@pytest.mark.parametrize("scheme", ["locked", "vector-lock"])
def test_who_writes_nothing_frees_no_lock_of_another(scheme):
    edges = circulant(3, 3, np.arange(3))
    labels = np.array([-1.0, 1.0, -1.0])
    samples = Samples(hypergraph=edges, values=np.ones(9), labels=labels)
    instance = linear_instance(samples, loss=HINGE, precision=np.float64)
    x = np.full(3, 5.0)
    together = Interleaved(instance, Settings(workers=3, scheme=scheme), EVEN, x[None])
    # The first has the locks from 6 on; the second is done at 8, and the third comes at 9.
    shares = [np.array([k]) for k in range(3)]
    taken = together.epoch(0.25, shares, np.array([3, 5, 6]) / 3)
    assert taken == pytest.approx(18)
    assert x.tolist() == [4.5] * 3


def test_lost_updates_are_those_that_x_lacks():
    """Every update adds 1 to a coordinate, unless it is lost."""
    edges = circulant(500, 5, np.arange(3))
    samples = Samples(hypergraph=edges, values=np.ones(1500), labels=np.full(500, 1e15))
    instance = linear_instance(samples, loss=SQUARED, precision=np.float64)
    x = instance.start.copy()
    shares = list(np.random.default_rng(0).permutation(500).reshape(10, 50))
    slower = np.exp(np.random.default_rng(1).standard_normal(500))
    together = Interleaved(instance, Settings(workers=10), AccessTimes(), x[None])
    together.epoch(1e-15, shares, slower)
    met = together.collisions()
    assert met.lost.sum() > 100
    np.testing.assert_allclose(x, met.updates - met.lost, rtol=1e-8)


def test_collisions_grow_with_density_and_with_workers():
    rates = {
        (nonzeros, workers): simulate(
            SparseLeastSquares(rows=400, features=2000, nonzeros=nonzeros, l2=0, noise=0),
            Settings(workers=workers, epochs=1),
        ).collisions.collision_rate
        for nonzeros in (5, 50)
        for workers in (2, 10, 50)
    }
    for nonzeros in (5, 50):
        by_workers = [rates[nonzeros, workers] for workers in (2, 10, 50)]
        assert by_workers == sorted(by_workers)
    for workers in (2, 10, 50):
        assert rates[5, workers] < rates[50, workers] / 3
    assert rates[5, 10] < 0.05
    dense = simulate(Perceptron(hidden=4), Settings(workers=10, epochs=1)).collisions
    assert dense.collision_rate > 0.8


def test_hogwild_is_before_locked_is_before_round_robin():
    """The paper's order in time, with ten cores."""
    problem = SparseSVM(rows=1500)
    seconds = [
        simulate(problem, Settings(scheme=scheme, workers=10, epochs=1)).seconds
        for scheme in ("hogwild", "locked", "round-robin")
    ]
    serial = simulate(problem, Settings(scheme="serial", workers=1, epochs=1)).seconds
    assert 1.3 * seconds[0] < seconds[1] < seconds[2] / 1.3
    assert seconds[0] < serial / 3


def test_the_gap_closes_with_the_time_that_a_gradient_takes():
    problem = SparseSVM(rows=1000)
    ratios = []
    for delay in (1e-6, 1e-5, 1e-4, 1e-3):
        settings = Settings(workers=10, epochs=1, delay=delay)
        hogwild = simulate(problem, settings).seconds
        in_turn = simulate(problem, dataclasses.replace(settings, scheme="round-robin")).seconds
        ratios.append(in_turn / hogwild)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 2
    assert ratios[-1] < 1.1


def test_the_speed_up_falls_as_density_rises():
    """Samples of as many features, of fewer and fewer in all, so that more are shared."""
    speed_ups = []
    for features in (40_000, 4000, 400, 40):
        problem = SparseSVM(rows=1000, features=features, nonzeros=20)
        serial = simulate(problem, Settings(scheme="serial", workers=1, epochs=2)).seconds
        speed_ups.append(serial / simulate(problem, Settings(workers=10, epochs=2)).seconds)
    assert speed_ups == sorted(speed_ups, reverse=True)
    assert speed_ups[0] > 1.15 * speed_ups[-1]


def test_whole_seconds_are_no_other_code():
    """Of times of another type all of it would be compiled anew."""
    instance = SparseSVM(rows=20).instance()
    whole = AccessTimes(read=1, transfer=0, lock=2)
    times = Interleaved(instance, Settings(workers=2), whole, instance.start[None]).times
    assert {type(value) for value in times} == {float}
    assert (times.read, times.transfer, times.lock) == (1.0, 0.0, 2.0)


def test_times_that_cannot_be():
    with pytest.raises(ValueError, match="load is -1; it must not be negative"):
        AccessTimes(load=-1)
