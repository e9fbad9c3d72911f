from itertools import islice

import numpy as np
import pytest

from offbeat.cluster import Cluster, Constant, Exponential, Fault, Lognormal


def take(cluster, rank, count, seed=0):
    return np.array(list(islice(cluster.compute_times(rank, seed), count)))


@pytest.mark.parametrize(
    ("compute", "deviation"),
    [
        (Constant(seconds=0.02), 0.0),
        (Lognormal(seconds=0.02, sigma=0.5), 0.02 * np.sqrt(np.exp(0.25) - 1)),
        (Exponential(seconds=0.02), 0.02),
    ],
)
def test_compute_times_have_the_mean_that_they_name(compute, deviation):
    times = take(Cluster(workers=1, compute=compute), 0, 20_000)
    assert (times > 0).all()
    assert times.mean() == pytest.approx(0.02, abs=4 * deviation / np.sqrt(20_000) + 1e-12)
    assert times.std() == pytest.approx(deviation, rel=0.05, abs=1e-12)


def test_compute_times_are_decided_by_seed_and_rank():
    cluster = Cluster(workers=2)
    assert (take(cluster, 0, 300) == take(cluster, 0, 300)).all()
    assert (take(cluster, 0, 300) != take(cluster, 1, 300)).all()
    assert (take(cluster, 0, 300) != take(cluster, 0, 300, seed=1)).all()


def test_a_slow_worker_takes_that_many_times_longer():
    plain, slowed = Cluster(workers=2), Cluster(workers=2, slow={1: 4.0})
    assert (take(slowed, 0, 9) == take(plain, 0, 9)).all()
    assert take(slowed, 1, 9) == pytest.approx(4 * take(plain, 1, 9))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"workers": 0}, "cluster.workers is 0; it must be at least 1"),
        ({"latency": -1e-3}, "cluster.latency is -0.001 s; it must not be negative"),
        ({"latency": float("nan")}, "cluster.latency is nan"),
        ({"bandwidth": -5.0}, "cluster.bandwidth is -5 bytes/s; it must be positive"),
        ({"bandwidth": 0.0}, "cluster.bandwidth is 0"),
        ({"workers": 2, "slow": {2: 3.0}}, "cluster.slow names worker 2 of 2"),
        ({"workers": 2, "slow": {1: 0.0}}, "cluster.slow of worker 1 is 0; it must be a positive"),
        (
            {"workers": 1, "faults": (Fault(kind="join", rank=0, at=1.0),)},
            "every worker join late; one must be there",
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        Cluster(**wrong)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Constant(seconds=0), "compute.seconds is 0; it must be a positive number"),
        (lambda: Exponential(seconds=-1), "compute.seconds is -1"),
        (lambda: Lognormal(seconds=float("inf")), "compute.seconds is inf"),
        (lambda: Lognormal(sigma=-0.1), "compute.sigma is -0.1; it must not be negative"),
        (lambda: Fault(kind="crash", rank=3, at=-1), "fault crash of node 3: at is -1 seconds"),
        (lambda: Fault(kind="slow", rank=3, at=1, factor=0), "slow of node 3: factor is 0"),
    ],
)
def test_times_and_faults_that_cannot_be_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_links_without_cost_are_allowed():
    assert Cluster(latency=0.0, bandwidth=float("inf")).bandwidth == float("inf")
