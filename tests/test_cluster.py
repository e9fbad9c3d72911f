from itertools import islice

import numpy as np
import pytest
import yaml

from offbeat.cluster import (
    Access,
    Backbone,
    Cluster,
    Constant,
    Exponential,
    Fault,
    Lognormal,
    Normal,
    Outage,
    Pareto,
    Recorded,
    Site,
)
from offbeat.config import load_experiment
from offbeat.experiment import to_config
from offbeat.methods import ADPSGD, AsyncSGD
from offbeat.testing import small_experiment

EAST = Site(name="east", nodes=(0, 1))
WEST = Site(name="west", nodes=(2, 3))
WAN = Backbone(latency=0.03, bandwidth=1e7)
EVERYTHING = {
    "workers": 4,
    "compute": Pareto(seconds=0.02, shape=2.5),
    "computes": {1: Normal(seconds=0.03, deviation=0.004), 3: Recorded(seconds=(0.01, 0.02))},
    "slow": {2: 3.0},
    "access": {0: Access(up=1e6, down=2e6, latency=0.02), 2: Access(latency=0.0)},
    "sites": (EAST, WEST),
    "backbone": WAN,
    "all_reduce": "tree",
    "server_work": 1e-9,
    "faults": (Fault(kind="leave", rank=1, at=0.5), Fault(kind="join", rank=1, at=1.0)),
    "outages": (Outage(isolated=(0, 1), at=0.2, until=0.4),),
}


def take(cluster, rank, count, seed=0):
    return np.array(list(islice(cluster.compute_times(rank, seed), count)))


@pytest.mark.parametrize(
    ("compute", "deviation"),
    [
        (Constant(seconds=0.02), 0.0),
        (Lognormal(seconds=0.02, sigma=0.5), 0.02 * np.sqrt(np.exp(0.25) - 1)),
        (Exponential(seconds=0.02), 0.02),
        (Normal(seconds=0.02, deviation=0.005), 0.005),
        (Pareto(seconds=0.02, shape=6.0), 0.02 / np.sqrt(6 * 4)),
        (Recorded(seconds=(0.01, 0.02, 0.03)), np.sqrt(2 / 3) * 0.01),
    ],
)
def test_compute_times_have_the_mean_that_they_name(compute, deviation):
    times = take(Cluster(workers=1, compute=compute), 0, 20_000)
    assert (times > 0).all()
    assert times.mean() == pytest.approx(0.02, abs=4 * deviation / np.sqrt(20_000) + 1e-12)
    assert times.std() == pytest.approx(deviation, rel=0.05, abs=1e-12)


@pytest.mark.parametrize(
    ("compute", "quantiles"),
    [
        # Of the logarithm, as many deviations from the median as a normal one.
        (Lognormal(seconds=0.02, sigma=0.5), 0.02 * np.exp(-0.125 + 0.5 * np.array([-1.2816, 0]))),
        (Normal(seconds=0.02, deviation=0.005), 0.02 + 0.005 * np.array([-1.2816, 0])),
        (Exponential(seconds=0.02), -0.02 * np.log([0.9, 0.5])),
        (Pareto(seconds=0.02, shape=3.0), 0.02 * (2 / 3) * np.array([0.9, 0.5]) ** (-1 / 3)),
    ],
)
def test_compute_times_have_the_quantiles_of_their_distribution(compute, quantiles):
    times = take(Cluster(workers=1, compute=compute), 0, 20_000)
    assert np.quantile(times, [0.1, 0.5]) == pytest.approx(quantiles, rel=0.03)


def test_a_normal_time_is_never_less_than_a_hundredth_of_the_mean():
    times = take(Cluster(workers=1, compute=Normal(seconds=0.02, deviation=0.02)), 0, 5000)
    assert times.min() == 0.02 / 100
    assert np.mean(times == times.min()) == pytest.approx(0.161, abs=0.02)


def test_a_pareto_time_is_never_less_than_its_scale():
    times = take(Cluster(workers=1, compute=Pareto(seconds=0.02, shape=1.5)), 0, 20_000)
    assert times.min() == pytest.approx(0.02 * 0.5 / 1.5, rel=1e-3)
    # The tail, whose mean has no variance to be tested with.
    assert np.mean(times > 10 * times.min()) == pytest.approx(10**-1.5, rel=0.1)


def test_recorded_times_come_in_their_order_from_a_place_that_the_seed_decides():
    recorded = tuple(0.001 * (k + 1) for k in range(50))
    cluster = Cluster(workers=8, compute=Recorded(seconds=recorded))
    starts = set()
    for rank in range(8):
        times = take(cluster, rank, 120)
        first = recorded.index(times[0])
        assert tuple(times) == tuple((recorded * 4)[first : first + 120])
        starts.add(first)
    assert len(starts) > 4


def test_recorded_times_are_read_from_a_file_once(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("seconds\n0.25\n\n1e-2,\n 3\n")
    compute = Recorded(seconds=str(path))
    assert compute == Recorded(seconds=(0.25, 0.01, 3.0))
    path.unlink()
    assert to_config(compute)["init_args"] == {"seconds": [0.25, 0.01, 3.0]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot read compute.seconds from .*times.csv: No such file"),
        ("", "compute.seconds holds no times"),
        ("0.1\nfast\n", "times.csv, line 2: 'fast' is no number of seconds"),
        ("0.1\n-2\n", r"compute.seconds\[1\] is -2; it must be a positive number"),
        ("0.1\nnan\n", r"compute.seconds\[1\] is nan"),
    ],
)
def test_a_file_of_times_that_cannot_be_is_refused(text, told, tmp_path):
    path = tmp_path / "times.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=told):
        Recorded(seconds=str(path))


def test_a_worker_may_have_its_own_distribution():
    own = Cluster(workers=2, computes={1: Constant(seconds=0.5)}, slow={1: 3.0})
    assert take(own, 1, 4) == pytest.approx(1.5)
    assert (take(own, 0, 4) == take(Cluster(workers=2), 0, 4)).all()


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
        ({"bandwidth": -5.0}, "cluster.bandwidth is -5 bytes/s; it must be at least 1"),
        ({"bandwidth": 0.0}, "cluster.bandwidth is 0"),
        ({"workers": 2, "slow": {2: 3.0}}, "cluster.slow names worker 2 of 2"),
        ({"workers": 2, "slow": {1: 0.0}}, "cluster.slow of worker 1 is 0; it must be a positive"),
        (
            {"workers": 1, "faults": (Fault(kind="join", rank=0, at=1.0),)},
            "every worker join late; one must be there",
        ),
        ({"workers": 2, "computes": {-1: Constant()}}, "cluster.computes names worker -1 of 2"),
        ({"server_work": -1e-9}, "cluster.server_work is -1e-09 s/byte; it must not be negative"),
        ({"all_reduce": "star"}, "cluster.all_reduce is 'star'; it is one of ring, whole-ring, di"),
        ({"sites": (EAST, WEST), "workers": 4}, "cluster.sites are 2 places, and nothing joins"),
        ({"sites": (EAST,), "workers": 3}, "cluster.sites are 2 places, and nothing joins them"),
        ({"backbone": WAN}, "cluster.backbone joins sites; give cluster.sites too"),
        (
            {"sites": (EAST, Site(name="west", nodes=(1, 2))), "backbone": WAN},
            "cluster.sites puts node 1 in both east and west",
        ),
        (
            {"sites": (EAST, Site(name="east", nodes=(2,))), "backbone": WAN},
            "cluster.sites has two sites named east",
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
        (
            lambda: Fault(kind="slow", rank=3, at=1, factor=2, until=0.5),
            "fault slow of node 3: until is 0.5 seconds, and it begins at 1",
        ),
        (lambda: Fault(kind="leave", rank=3, at=float("inf")), "node 3: at is inf seconds"),
        (lambda: Normal(deviation=-1), "compute.deviation is -1 s; it must not be negative"),
        (lambda: Normal(seconds=0), "compute.seconds is 0"),
        (lambda: Pareto(shape=1), "compute.shape is 1; it must be more than 1, or there is no me"),
        (lambda: Pareto(seconds=-1), "compute.seconds is -1"),
        (lambda: Recorded(seconds=()), "compute.seconds holds no times; give at least one"),
        (lambda: Access(up=0), "access.up is 0 bytes/s; it must be at least 1"),
        (lambda: Access(down=-1), "access.down is -1 bytes/s"),
        (lambda: Access(latency=-1), "access.latency is -1 s; it must not be negative"),
        (lambda: Backbone(latency=-1, bandwidth=1), "backbone.latency is -1 s"),
        (lambda: Backbone(latency=0, bandwidth=0), "backbone.bandwidth is 0 bytes/s"),
        (lambda: Site(name="east", nodes=()), "site east names no nodes"),
        (lambda: Site(name="east", nodes=(1, 2, 1)), "site east names node 1 twice"),
        (lambda: Site(name="east", nodes=(-1,)), "site east names node -1; nodes are numbered"),
        (lambda: Outage(isolated=(), at=0, until=1), "outage.isolated names no nodes"),
        (lambda: Outage(isolated=(1,), at=-1, until=1), "outage.at is -1 s"),
        (lambda: Outage(isolated=(1,), at=1, until=1), "outage.until is 1 s; it must be a time af"),
        (lambda: Outage(isolated=(1,), at=1, until=float("inf")), "outage.until is inf s"),
    ],
)
def test_times_and_faults_that_cannot_be_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_links_without_cost_are_allowed():
    assert Cluster(latency=0.0, bandwidth=float("inf")).bandwidth == float("inf")


# Nodes that an experiment has


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"access": {5: Access(up=1e6)}}, "cluster.access names node 5; there are 4 workers and 1"),
        ({"access": {-1: Access()}}, "cluster.access names node -1"),
        (
            {"sites": (EAST, Site(name="west", nodes=(2, 6))), "backbone": WAN},
            "cluster.sites: west names node 6; there are 4 workers and 1 servers, 0 to 4",
        ),
        (
            {"outages": (Outage(isolated=(0, 9), at=0, until=1),)},
            "cluster.outages names node 9; there are 4 workers and 1 servers, 0 to 4",
        ),
        (
            {"outages": (Outage(isolated=(0, 1, 2, 3, 4), at=0.5, until=1),)},
            "cluster.outages at 0.5 s isolates all 5 nodes, which separates nobody",
        ),
        (
            # The server is in no site.
            {"sites": (Site(name="all", nodes=(0, 1, 2, 3)),)},
            "cluster.sites are 2 places, and nothing joins them",
        ),
    ],
)
def test_a_cluster_names_nodes_that_are_there(settings, told):
    with pytest.raises(ValueError, match=told):
        small_experiment(AsyncSGD(), cluster=Cluster(workers=4, **settings))


def test_servers_are_nodes_too():
    cluster = Cluster(workers=4, access={4: Access(up=1e6)})
    assert small_experiment(AsyncSGD(), cluster=cluster).cluster is cluster
    with pytest.raises(ValueError, match=r"cluster\.access names node 4"):
        small_experiment(ADPSGD(), cluster=cluster)


@pytest.mark.parametrize("field", ["access", "sites", "outages"])
def test_links_that_differ_are_not_uniform(field):
    assert Cluster(workers=4, slow={1: 2.0}, faults=EVERYTHING["faults"]).uniform
    backbone = {"backbone": WAN} if field == "sites" else {}
    assert not Cluster(workers=4, **{field: EVERYTHING[field]}, **backbone).uniform


def test_nodes_in_no_site_are_in_one_further_site():
    cluster = Cluster(workers=6, sites=(EAST, WEST), backbone=WAN)
    assert [cluster.site_of(node) for node in range(7)] == [0, 0, 1, 1, 2, 2, 2]


# Comings and goings


def plan(*faults):
    return tuple(Fault(kind=kind, rank=rank, at=at) for kind, rank, at in faults)


def test_a_node_may_come_and_go_several_times():
    faults = plan(
        ("join", 1, 3.0), ("leave", 1, 2.0), ("crash", 1, 5.0), ("join", 2, 1.0), ("join", 1, 6.0)
    )
    cluster = Cluster(workers=3, faults=faults)
    assert [cluster.begins_absent(rank) for rank in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        (
            plan(("leave", 1, 1.0), ("crash", 1, 2.0)),
            "crash of node 1 at 2 s, but since its leave at 1 s it is not there any more",
        ),
        (
            plan(("join", 1, 2.0), ("join", 1, 1.0)),
            "join of node 1 at 2 s, but since its join at 1 s it is there already",
        ),
        (
            plan(("join", 1, 1.0), ("crash", 1, 1.0)),
            "node 1 has both a join and a crash at 1 s; say which comes first",
        ),
    ],
)
def test_a_plan_of_faults_that_makes_no_sense_is_refused(faults, told):
    with pytest.raises(ValueError, match=told):
        Cluster(workers=3, faults=faults)


# YAML


def test_every_field_survives_the_way_through_yaml(tmp_path):
    experiment = small_experiment(AsyncSGD(), cluster=Cluster(**EVERYTHING))
    config = to_config(experiment)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(config))
    loaded = load_experiment(tmp_path / "experiment.yaml")
    assert loaded.cluster == experiment.cluster
    assert to_config(loaded.cluster) == config["cluster"]
