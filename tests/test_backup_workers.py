"""Synchronous SGD with backup workers: who makes a step, who is dropped, and who is waited for."""

from collections import Counter

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault, Pareto
from offbeat.experiment import Budget
from offbeat.methods import BackupSyncSGD, RennalaSGD, SyncSGD
from offbeat.runtime.loop.joining import require_possible
from offbeat.runtime.simulated import Simulation
from offbeat.schedule import Cosine
from offbeat.testing import simulated, small_experiment
from test_theory import by_hand, close

EQUAL = Constant(seconds=0.01)


def free(workers, **settings):
    settings.setdefault("compute", EQUAL)
    return Cluster(workers=workers, latency=0.0, bandwidth=float("inf"), **settings)


def contributions(run):
    """How many gradients each step is the mean of."""
    return Counter(run.trace.steps["version"].tolist())


@pytest.mark.parametrize("cluster", [Cluster(workers=4), free(4, slow={1: 5.0})], ids=["", "slow"])
def test_without_backups_it_is_synchronous_sgd_to_the_bit(cluster):
    settings = {"momentum": 0.9, "schedule": Cosine(total=800), "cluster": cluster}
    none, synchronous = (
        simulated(small_experiment(method, **settings))
        for method in (BackupSyncSGD(backups=0), SyncSGD())
    )
    assert torch.equal(none.vector, synchronous.vector)
    assert none.seconds == synchronous.seconds


@pytest.mark.parametrize("backups", [1, 2, 4])
def test_a_step_is_the_mean_of_the_first_and_nobody_waits_for_the_rest(backups):
    # Of five, workers 3 and 4 are ten times as slow as the others.
    method = BackupSyncSGD(backups=backups)
    cluster = free(5, slow={3: 10.0, 4: 10.0})
    run = simulated(small_experiment(method, workers=5, cluster=cluster, budget=Budget(seconds=1)))
    assert set(contributions(run).values()) == {5 - backups}
    assert run.staleness.max() == 0
    step = 0.1 if backups < 2 else 0.01
    assert len(contributions(run)) == pytest.approx(1 / step, abs=1)


@pytest.mark.parametrize("backups", [0, 1, 2, 4])
def test_the_run_is_its_formula(backups):
    cluster = Cluster(workers=5, compute=Pareto(shape=1.2), latency=2e-3, slow={4: 3.0})
    experiment = small_experiment(BackupSyncSGD(backups=backups), workers=5, cluster=cluster)
    run, gradient = simulated(experiment), by_hand(experiment)
    messages = run.trace.messages
    pushes = messages[messages["to"] == 5]
    x, version = torch.zeros(8, dtype=torch.double), 0
    taken_at, computed, first = [0] * 5, [0] * 5, {}
    for worker in pushes[pushes["end_ns"].argsort(kind="stable")]["source"].tolist():
        if taken_at[worker] == version:
            first[worker] = gradient(x, worker, computed[worker])
        else:  # Dropped: it goes on from the present parameters.
            taken_at[worker] = version
        computed[worker] += 1
        if len(first) == 5 - backups:
            x, version = x - 0.05 * sum(first.values()) / (5 - backups), version + 1
            for answered in first:
                taken_at[answered] = version
            first = {}
    assert version == len(contributions(run)) > 20
    assert (sum(computed) > version * (5 - backups)) == (backups > 0)
    close(run.vector, x)


def test_late_gradients_are_dropped_answered_and_counted():
    # Worker 3 is late for every step, and works on.
    schedule = Cosine(total=330 * 4)
    cluster = free(4, slow={3: 10.1})
    simulation = Simulation(
        small_experiment(
            BackupSyncSGD(), cluster=cluster, schedule=schedule, budget=Budget(samples=330 * 4)
        )
    )
    run = simulation.run()
    assert run.error is None
    late = (run.trace.gradients["node"] == 3).sum()
    assert late >= 9
    applied = len(run.staleness)
    assert 330 - applied - late <= 3
    assert set(contributions(run).values()) == {3}
    pushes = (run.trace.messages["to"] == 4).sum()
    assert simulation.nodes[4].samples == pytest.approx(4 * pushes, abs=3 * 4)


def test_of_one_worker_it_is_rennala():
    runs = [
        simulated(small_experiment(method, workers=1, momentum=0.9))
        for method in (BackupSyncSGD(backups=0), RennalaSGD(gradients=1))
    ]
    assert torch.equal(runs[0].vector, runs[1].vector)


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_on_staleness_holds_at_any_speeds(seed):
    cluster = Cluster(workers=6, compute=Pareto(shape=1.2), latency=2e-3)
    method = BackupSyncSGD(backups=2)
    run = simulated(small_experiment(method, workers=6, cluster=cluster, seed=seed))
    assert run.staleness.max() == 0
    assert set(contributions(run).values()) == {4}


def run_with(*faults, workers=4, backups=1, seconds=0.5, **settings):
    cluster = Cluster(workers=workers, compute=EQUAL, latency=1e-4, faults=faults, **settings)
    budget = Budget(seconds=seconds)
    return simulated(
        small_experiment(
            BackupSyncSGD(backups=backups), workers=workers, cluster=cluster, budget=budget
        )
    )


def test_backups_stand_in_for_those_who_crash_and_then_fewer_are_enough():
    crashes = [Fault(kind="crash", rank=rank, at=0.1 * (rank + 1)) for rank in range(3)]
    run = run_with(*crashes)
    steps = run.trace.steps
    sizes = contributions(run)
    by_time = [(row["at_ns"] / 1e9, sizes[row["version"]]) for row in steps]
    assert {size for time, size in by_time if time < 0.195} == {3}
    assert {size for time, size in by_time if 0.215 < time < 0.29} == {2}
    assert {size for time, size in by_time if time > 0.315} == {1}
    assert steps["at_ns"].max() / 1e9 > 0.48


def test_a_crash_of_whom_the_server_waits_for_makes_the_step():
    # Worker 0 computes for 0.15 s; without backups the others have long sent theirs.
    run = run_with(Fault(kind="crash", rank=0, at=0.1), backups=0, slow={0: 15.0}, workers=3)
    first = run.trace.steps["at_ns"].min() / 1e9
    assert first == pytest.approx(0.1, abs=0.01)
    assert set(contributions(run).values()) == {2}


def test_a_worker_that_crashed_while_it_waited_is_not_answered_in_its_next_life():
    # The step of worker 0, at 150 ms, comes before the first push of worker 1's next life. That one
    # is late, and answered at once; the next waits for worker 0's second gradient.
    run = run_with(
        Fault(kind="crash", rank=1, at=0.13),
        Fault(kind="join", rank=1, at=0.145),
        slow={0: 15.0},
        workers=3,
        backups=0,
        seconds=0.25,
    )
    assert contributions(run) == {0: 3}, "what it sent before counts"
    messages = run.trace.messages
    late = messages["end_ns"] / 1e9 > 0.14
    assert (late & (messages["source"] == 1)).sum() == 2
    assert (late & (messages["to"] == 1)).sum() == 1


def test_a_late_worker_is_let_in():
    run = run_with(Fault(kind="join", rank=3, at=0.2), backups=0)
    assert set(contributions(run).values()) == {3, 4}


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (BackupSyncSGD(backups=4), "backups is 4; it must be from 0 to below the number of worke"),
        (BackupSyncSGD(backups=-1), "backups is -1; it must be from 0 to below"),
        (BackupSyncSGD(servers=2), "servers is 2; BackupSyncSGD needs one"),
    ],
)
def test_settings_that_cannot_work_are_refused(method, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(method, workers=4)


def test_a_user_s_own_loop_cannot_have_backups():
    with pytest.raises(ValueError, match="lets slow workers make fewer rounds than fast ones"):
        require_possible(BackupSyncSGD(), 4)
