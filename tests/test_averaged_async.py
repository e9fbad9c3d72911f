"""Asynchronous averaged SGD: its mean, and what one pass of it is worth."""

import pytest
import torch

from offbeat.cluster import Backbone, Cluster, Site
from offbeat.experiment import Budget
from offbeat.methods import AsyncSGD, AveragedAsyncSGD
from offbeat.problems import LeastSquares
from offbeat.runtime.simulated import Simulation
from offbeat.schedule import XuSchedule
from offbeat.testing import fingerprint, simulated, small_experiment
from test_theory import by_hand, close


@pytest.mark.parametrize("start", [0, 1, 60])
def test_it_is_the_mean_of_the_server_s_iterates(start):
    experiment = small_experiment(AveragedAsyncSGD(start=start), workers=3, lr=0.05)
    run, gradient = simulated(experiment), by_hand(experiment)
    pushes = run.trace.messages[run.trace.messages["to"] == 3]["source"].tolist()
    x = torch.zeros(8, dtype=torch.double)
    pulled, steps, iterates = [x] * 3, [0] * 3, []
    for worker in pushes:
        x = x - 0.05 * gradient(pulled[worker], worker, steps[worker])
        iterates.append(x)
        pulled[worker] = x
        steps[worker] += 1
    assert len(iterates) == 150
    close(run.vector, torch.stack(iterates[start:]).mean(dim=0))


@pytest.mark.parametrize("start", [0, 60])
def test_each_of_two_servers_has_the_mean_of_its_own_iterates(start):
    # Each is nearer to other workers, so that gradients come to them in other orders.
    cluster = Cluster(
        workers=3,
        sites=(Site(name="east", nodes=(0, 3)), Site(name="west", nodes=(1, 2, 4))),
        backbone=Backbone(latency=5e-3, bandwidth=1e9),
    )
    method = AveragedAsyncSGD(servers=2, start=start)
    experiment = small_experiment(method, workers=3, lr=0.05, cluster=cluster)
    run, gradient = simulated(experiment), by_hand(experiment)
    messages = run.trace.messages
    pushes = messages[messages["to"] >= 3]
    pushes = pushes[pushes["end_ns"].argsort(kind="stable")]
    order = [pushes[pushes["to"] == server]["source"].tolist() for server in (3, 4)]
    assert order[0] != order[1]
    x = torch.zeros(2, 4, dtype=torch.double)
    pulled = [[[part] for part in x.clone()] for _ in range(3)]
    iterates = [[], []]
    for worker, part in zip(pushes["source"].tolist(), (pushes["to"] - 3).tolist(), strict=True):
        step = len(pulled[worker][part]) - 1
        point = torch.cat([versions[step] for versions in pulled[worker]])
        x[part] -= 0.05 * gradient(point, worker, step).view(2, 4)[part]
        iterates[part].append(x[part].clone())
        pulled[worker][part].append(x[part].clone())
    assert [len(held) for held in iterates] == [150, 150]
    close(run.vector, torch.cat([torch.stack(held[start:]).mean(dim=0) for held in iterates]))


@pytest.mark.parametrize("servers", [1, 2])
def test_workers_do_what_they_do_in_asynchronous_sgd(servers):
    settings = {"cluster": Cluster(workers=4), "momentum": 0.9, "lr": 0.01}
    averaged, plain = (
        Simulation(small_experiment(method, **settings))
        for method in (AveragedAsyncSGD(servers=servers, start=0), AsyncSGD(servers=servers))
    )
    runs = [averaged.run(), plain.run()]
    assert [run.error for run in runs] == [None, None]
    for one, other in zip(averaged.nodes, plain.nodes, strict=True):
        assert torch.equal(one.parameters, other.parameters)
    assert (runs[0].vector - runs[1].vector).abs().max() > 1e-3
    late = simulated(small_experiment(AveragedAsyncSGD(servers=servers, start=10**6), **settings))
    assert fingerprint(late) == fingerprint(runs[1])


def test_one_pass_is_worth_several_of_asynchronous_sgd():
    problem = LeastSquares(
        dimension=20, samples=4000, condition=10.0, noise=1.0, batch_size=4, double=True
    )

    def excess(method, passes):
        run = simulated(
            small_experiment(
                method,
                problem=problem,
                lr=0.05,
                schedule=XuSchedule(decay=1e-3, power=2 / 3),
                budget=Budget(samples=4000 * passes),
                evaluate_every=1000,
            )
        )
        return run.metrics[-1].loss - problem.minimum()

    averaged = excess(AveragedAsyncSGD(start=400), 1)
    assert averaged < excess(AsyncSGD(), 1) / 5
    assert averaged < 1.2 * excess(AsyncSGD(), 5)
    assert averaged < excess(AveragedAsyncSGD(start=0), 1) / 5


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="start is -1; it must not be negative"):
        small_experiment(AveragedAsyncSGD(start=-1))
