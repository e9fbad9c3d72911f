"""Minibatches handed out by the server: each once, whoever is fast and whoever departs."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from offbeat.cluster import Cluster, Fault
from offbeat.experiment import Budget
from offbeat.methods import AllReduceSGD, DispatchedAsyncSGD
from offbeat.methods.dispatched_async_sgd import Dispatch
from offbeat.problems import IID, Batches, shard
from offbeat.runtime.errors import RunError
from offbeat.runtime.loop import distribute
from offbeat.runtime.simulated import Simulation
from offbeat.testing import Quadratic, small_experiment

PER_EPOCH = 16  # 64 samples in minibatches of 4


def computed(cluster, method=None, **settings):
    """The minibatches of all gradients that were computed, in order of their ends, and the run."""
    experiment = small_experiment(
        method or DispatchedAsyncSGD(), workers=cluster.workers, cluster=cluster, **settings
    )
    simulation = Simulation(experiment)
    done, finish = [], simulation._computed

    def noting(asked):
        task, request, _ = asked
        if task.waiting is request and simulation.stop is None:
            done.append((task.node.rank, tuple(request.batch.tolist())))
        finish(asked)

    simulation._computed = noting
    run = simulation.run()
    assert run.error is None
    return done, simulation


def common_order(count, seed=0):
    """The first minibatches that one worker alone sees."""
    batches = Batches(shard(IID(), torch.zeros(64), 1, seed)[0], 4, seed, 0)
    return [tuple(batches.indices(k).tolist()) for k in range(count)]


@pytest.mark.parametrize("servers", [1, 2])
def test_each_minibatch_of_the_common_order_is_computed_once_whoever_is_fast(servers):
    cluster = Cluster(workers=4, slow={0: 7.0})
    done, _ = computed(cluster, DispatchedAsyncSGD(servers=servers), steps=3 * PER_EPOCH, seed=5)
    ranks = [rank for rank, _ in done]
    batches = [batch for _, batch in done]
    assert len(done) == 4 * 3 * PER_EPOCH
    assert sorted(batches) == sorted(common_order(len(done), seed=5))
    assert ranks.count(0) < ranks.count(1) / 4
    # What has ended within an epoch's time uses no sample twice.
    samples = [i for batch in common_order(PER_EPOCH, seed=5) for i in batch]
    assert sorted(samples) == list(range(64))


@pytest.mark.parametrize("kind", ["crash", "leave"])
def test_what_a_departed_worker_owed_is_handed_out_again(kind):
    faults = (Fault(kind=kind, rank=1, at=0.055), Fault(kind="crash", rank=2, at=0.0551))
    cluster = Cluster(workers=4, slow={1: 3.0, 2: 3.0}, faults=faults)
    done, simulation = computed(cluster, budget=Budget(seconds=0.5))
    dispatch = simulation.nodes[-1].state(Dispatch)
    assert sorted(dispatch.out) == [0, 3]
    # All but what these two were at when time was up; nothing twice.
    order = common_order(dispatch.following)
    computed_by_now = set(range(len(order))) - set(dispatch.out.values())
    assert sorted(batch for _, batch in done) == sorted(order[k] for k in computed_by_now)


def test_a_worker_that_begins_anew_does_not_owe_what_it_was_given_before():
    dispatch = Dispatch()
    assert [dispatch.hand_out(worker) for worker in (0, 1, 2)] == [0, 1, 2]
    dispatch.take_back(1)
    dispatch.take_back(1)
    assert dispatch.returned == [1]
    assert [dispatch.hand_out(worker) for worker in (1, 3)] == [1, 3]
    assert dispatch.out == {0: 0, 1: 1, 2: 2, 3: 3}


def test_every_node_knows_the_same_minibatches():
    simulation = Simulation(small_experiment(DispatchedAsyncSGD(), workers=3, seed=2))
    simulation.begin()
    for number, expected in enumerate(common_order(2 * PER_EPOCH + 1, seed=2)):
        for node in simulation.nodes:
            assert tuple(node.minibatch(number).tolist()) == expected
    simulation.scheduler.close()


# The user's own loop


def in_a_loop(method, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = nn.Linear(4, 1)
    return distribute(model, torch.optim.SGD(model.parameters(), lr=0.1), method=method)


def test_in_the_user_s_loop_the_method_is_refused(monkeypatch):
    text = "^DispatchedAsyncSGD chooses the samples of each gradient, which the user's own loop"
    with pytest.raises(ValueError, match=text):
        in_a_loop(DispatchedAsyncSGD(), monkeypatch)


@dataclass(frozen=True, kw_only=True)
class Undeclared(AllReduceSGD):
    """Chooses samples without saying so."""

    async def step(self, node):
        await node.gradient(batch=torch.arange(2))


def test_in_the_user_s_loop_a_choice_of_samples_is_an_error(monkeypatch):
    with pytest.raises(RunError, match="the samples of a gradient are the loop's: a method cannot"):
        in_a_loop(Undeclared(), monkeypatch)


def test_the_problem_has_as_many_minibatches_as_these_tests_say():
    assert Quadratic().samples == PER_EPOCH * Quadratic().batch_size
